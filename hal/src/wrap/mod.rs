//! Wrappers over any implementation: they implement the traits that what they wrap implements.
//!
//! - [`Trace`] tells a [`Sink`] of each operation and its result; [`Ring`] is a sink that keeps the
//!   last few.
//! - [`Count`] counts operations by kind.
//! - [`FaultInjector`] makes chosen operations fail, or loses an interrupt and says nothing.
//!
//! They nest, and the order matters: the outer one sees first. `Trace` around `FaultInjector` shows
//! the driver's view, with the faults; the other way round shows what reached the machine.
//!
//! ```
//! use vlapic_hal::fake::Unconnected;
//! use vlapic_hal::wrap::{Fault, FaultInjector, Operation, Ring, Trace, When};
//! use vlapic_hal::SendInterrupt;
//!
//! let ring = Ring::<8>::new();
//! let faults = [(When::Nth(2), Fault::LoseInterrupt { destination: None })];
//! let sender = FaultInjector::new(Trace::new(Unconnected, &ring), faults);
//! for vector in [0x40, 0x41, 0x42] {
//!     assert_eq!(sender.send_interrupt(1, vector), Ok(()));
//! }
//! let mut sent = ring.operations();
//! assert!(matches!(sent.next(), Some(Operation::SendInterrupt { vector: 0x40, .. })));
//! assert!(matches!(sent.next(), Some(Operation::SendInterrupt { vector: 0x42, .. })));
//! assert_eq!(sent.next(), None);
//! ```

mod count;
mod fault;
mod operation;
mod ring;
mod trace;

pub use count::{ByKind, Count, Counts};
pub use fault::{Fault, FaultInjector, When};
pub use operation::Operation;
pub use ring::Ring;
pub use trace::{Sink, Trace};
