//! The in-kernel local APIC of Linux against `vlapic-core`.
//!
//! No guest runs. A VM with the kernel's interrupt controllers gets the same x2APIC register
//! accesses and MSIs as ours, and after each of them the register pages of all vCPUs must be the
//! same, but for the deviations that [`Deviation`] names.
//!
//! ```text
//! operation   what is done to both, made from a seed
//! kernel      one side: ioctls on /dev/kvm
//! ours        the other side: `LocalApic`s and a `Vm`
//! deviation   what may differ, and why
//! compare     the run: operations, comparisons, what differed
//! ```

mod compare;
mod deviation;
mod kernel;
mod operation;
mod ours;

pub use compare::{Mismatch, Report, run};
pub use deviation::{Deviation, Deviations};
pub use kernel::{Kernel, Unavailable};
pub use operation::{Operation, Random};
