//! A software model of a processor with Intel APIC virtualization.
//!
//! It is written from the manual's description of the hardware and shares no code with the drivers it is used
//! against; the two meet only in memory. A test creates the page and the descriptor with the driver's own types, shows
//! their words to the model's [`Memory`] under a physical address, and hands the model's VMCS to the driver:
//!
//! ```
//! use std::sync::{Arc, atomic::AtomicU32};
//! use vlapic_tests::model::{Capability, Core, Knobs, Level, Memory, Outcome, PhysicalBus, Shadow, VmcsRegion};
//! # use vlapic_tests::model::{controls, field};
//!
//! let page: Vec<AtomicU32> = (0..1024).map(|_| AtomicU32::new(0)).collect();
//! let memory = Arc::new(Memory::new());
//! memory.add_dwords(0x1000, &page);
//!
//! let capability = Capability::at(Level::VirtualInterruptDelivery);
//! let mut core = Core::new(0, memory.clone(), Arc::new(PhysicalBus::new()), capability, Knobs::default());
//! let mut region = VmcsRegion::with_default_controls(capability);
//! # region.set_bits(field::PIN_BASED, controls::pin::EXTERNAL_INTERRUPT_EXITING);
//! # region.set_bits(field::PRIMARY, controls::primary::TPR_SHADOW | controls::primary::SECONDARY);
//! # region.set_bits(field::SECONDARY, controls::secondary::VIRTUAL_INTERRUPT_DELIVERY);
//! # region.set(field::VIRTUAL_APIC_ADDRESS, 0x1000);
//! // ... the driver programs `region`, or `core` once the region is current ...
//! region.set(field::GUEST_INTERRUPT_STATUS, 0x51);
//! core.vmptrld(region);
//! core.vm_entry().expect("the controls are consistent");
//! assert_eq!(core.boundary(true, Shadow::None), Outcome::Delivered(0x51));
//! ```
//!
//! Every guest operation is one step of one [`Core`]; a test, or a [`Machine`] with several cores, decides the order.
//! Where the manual leaves a choice, [`Knobs`] selects the reading; a driver has to be right under all of them.
//!
//! Not modelled: SENDUIPI, APIC-timer virtualization, EPT sub-page write permissions, enclaves and transactions.

mod bus;
mod capability;
pub mod controls;
mod core;
mod descriptor;
mod entry;
mod entry_checks;
mod events;
mod exit;
pub mod field;
mod guest;
mod instructions;
mod interleave;
mod iommu;
mod knobs;
mod machine;
mod memory;
mod mmio;
mod msr;
mod ops;
mod page;
mod physical;
mod readings;
pub mod rig;
mod translation;
mod vmcs;

pub use self::bus::{PhysicalBus, PhysicalInterrupt};
pub use self::capability::{Capability, Feature, Level};
pub use self::controls::Controls;
pub use self::core::Core;
pub use self::entry::{Entered, EntryFailure};
pub use self::entry_checks::Violation;
pub use self::exit::{ExitReason, Outcome, VmExit};
pub use self::guest::{Activity, Shadow, Window};
pub use self::interleave::Point;
pub use self::iommu::{Iommu, RemapFault};
pub use self::knobs::Knobs;
pub use self::machine::Machine;
pub use self::memory::Memory;
pub use self::mmio::{Access, AccessCause, Direction};
pub use self::page::Page;
pub use self::physical::{MsrLeak, PhysicalApic};
pub use self::readings::{Kind, Reading};
pub use self::vmcs::VmcsRegion;
