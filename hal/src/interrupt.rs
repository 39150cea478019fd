//! Physical interrupts between CPUs.

use core::error::Error;
use core::fmt;

/// Sends a physical interrupt to another CPU: how a posted interrupt or a wake-up is announced.
pub trait SendInterrupt {
    /// Sends a fixed, edge-triggered interrupt with `vector` to the CPU whose physical APIC ID is
    /// `destination`. It does not wait until the CPU takes it.
    ///
    /// `destination` names one CPU; the broadcast IDs are refused. The calling CPU may name itself.
    ///
    /// Ordering: stores that the calling CPU made before the call are visible to the destination
    /// when it takes the interrupt. The caller needs no fence of its own for that.
    ///
    /// # Errors
    /// [`SendError`] if nothing was sent. `Ok` means that the interrupt left this CPU, not that
    /// anyone accepted it.
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError>;
}

/// Rings another CPU's AVIC doorbell: how a vCPU in guest mode is told, without an exit, to look at
/// its IRR again.
pub trait Doorbell {
    /// Rings the doorbell of the CPU whose physical APIC ID is `destination`.
    ///
    /// Ordering: stores that the calling CPU made before the call, locked or not, are visible to
    /// the destination when it looks at IRR.
    ///
    /// # Errors
    /// [`SendError::Destination`] if the register cannot hold this ID; nothing was rung.
    fn ring(&self, destination: u32) -> Result<(), SendError>;
}

impl<T: Doorbell + ?Sized> Doorbell for &T {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        (**self).ring(destination)
    }
}

impl<T: Doorbell + ?Sized> Doorbell for &mut T {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        (**self).ring(destination)
    }
}

/// Why an interrupt was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendError {
    /// This APIC ID does not name one CPU that can be reached in the APIC's present mode.
    Destination(u32),
    /// Vectors 0 to 15 cannot be sent (SDM vol. 3, "Valid Interrupt Vectors").
    Vector(u8),
    /// The last interrupt sent from this CPU has not left it for far longer than any interrupt
    /// takes.
    Busy,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(id) => write!(f, "APIC ID {id:#x} cannot be addressed"),
            Self::Vector(vector) => write!(f, "vector {vector} cannot be sent"),
            Self::Busy => f.write_str("the interrupt command register stays busy"),
        }
    }
}

impl Error for SendError {}

impl<T: SendInterrupt + ?Sized> SendInterrupt for &T {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        (**self).send_interrupt(destination, vector)
    }
}

impl<T: SendInterrupt + ?Sized> SendInterrupt for &mut T {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        (**self).send_interrupt(destination, vector)
    }
}
