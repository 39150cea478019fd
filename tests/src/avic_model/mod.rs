//! A software model of processors with AMD AVIC and x2AVIC, and of the IOMMU beside them.
//!
//! It is written from the manual's description of the hardware and shares no code with the drivers it is used against;
//! the two meet only in memory. A test places backing pages and tables in [`Memory`](crate::model::Memory) under
//! physical addresses, fills a [`Vmcb`], and hands it to a [`Core`]:
//!
//! ```
//! use vlapic_tests::avic_model::{Knobs, Outcome, rig::{Rig, Storage}};
//!
//! let storage = Storage::new(2);
//! let mut rig = Rig::new(&storage, 2, Knobs::default());
//! rig.enter(0, 0);
//! storage.vcpu(0).request(0x51);
//! let core = &mut rig.machine.cores[0];
//! assert_eq!(core.boundary(true, false), Outcome::Delivered(0x51));
//! ```
//!
//! # Steps
//!
//! A guest operation is a sequence of steps, each with at most one access to memory that others share. A test makes
//! them one at a time ([`Core::begin`], [`Core::step`]) and lets other cores and host software act in between, or has
//! [`Machine::advance`] choose from a seeded schedule what moves next. [`Core::run`] makes all steps at once.
//!
//! Hardware looks at IRR when something tells it to: VMRUN, a doorbell, or the guest itself. A bit that appears there
//! without a doorbell is not noticed. Translations of the APIC page stay in the TLB until they are flushed.
//!
//! Where the manual leaves a choice, [`Knobs`] selects the reading; a driver should be right under all of them. What a
//! doorbell does in host mode is left open too, but makes no difference, because VMRUN looks at IRR.
//!
//! Not modelled: CPL, instruction fetches from the APIC page, encrypted guests beyond the ownership of the backing
//! page, STGI and CLGI of the guest, priorities between physical interrupts, legacy 32-bit remapping entries.

mod access;
mod capability;
mod checks;
mod controls;
mod core;
mod doorbell;
mod events;
mod exit;
mod ga_log;
mod guest;
mod iommu;
mod ipi;
mod knobs;
mod machine;
mod memory_access;
mod msr;
mod nested;
mod operation;
mod page;
mod priority;
mod readings;
pub mod rig;
mod tables;
mod vmcb;

pub use self::capability::{Capability, Feature};
pub use self::checks::Violation;
pub use self::core::{Core, Entered, Injected};
pub use self::doorbell::{DOORBELL_MSR, DoorbellRegister, Doorbells};
pub use self::exit::{Outcome, VmExit, code};
pub use self::ga_log::{GaLog, register};
pub use self::iommu::{Iommu, RemapFault};
pub use self::knobs::{CleanGroup, Knobs, TprAtVmrun};
pub use self::machine::{Event, Machine};
pub use self::nested::{Mapping, NestedPages};
pub use self::operation::GuestOp;
pub use self::readings::{Kind, Reading};
pub use self::vmcb::{Vmcb, control, field, intercept};
pub use crate::schedule::Schedule;
