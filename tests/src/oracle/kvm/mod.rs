//! The in-kernel local APIC of Linux against `vlapic-core`.
//!
//! VMs with the kernel's interrupt controllers get the same operations as ours: register accesses in
//! both modes, MSIs, INIT and SIPI, changes of mode, timers, imports. After each of them everything
//! that can be seen of every vCPU must be the same, but for what [`Deviation`] names. x2APIC
//! registers are reached by ioctl and by the instructions of a guest, memory by the guest only.
//!
//! ```text
//! operation   what is done to both
//! generate    operations made from a seed
//! setup       the kinds of VM
//! state       what can be seen, in one shape for both
//! kernel      one side: ioctls on /dev/kvm, and a tiny guest
//! ours        the other side: `LocalApic`s and a `Vm`
//! deviation   what may differ, and why
//! sides       rounds and steps, what differed
//! timer       timers, by what they do and not by when
//! run         the rounds, dealt out to threads
//! ```
//!
//! No vCPU takes interrupts here: not every kernel leaves them in service until EOI. Who takes one
//! gets it by an import, on both sides.

mod deviation;
mod generate;
mod kernel;
mod operation;
mod ours;
mod run;
mod setup;
mod sides;
mod state;
mod timer;

pub use deviation::{Deviation, Deviations};
pub use generate::Random;
pub use kernel::Unavailable;
pub use operation::{Operation, Size};
pub use run::{Difference, Mismatch, Report, run};
pub use state::{Answer, Events, View};
