//! What a write asks of the hypervisor.

use static_assertions::const_assert;

use crate::base::ApicBase;
use crate::message::Message;
use crate::vector::Vector;

/// What remains to be done after a register was written. The core calls nobody; it returns this.
///
/// Every payload is a word: what is inlined carries it in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the hypervisor has to carry this out"]
#[non_exhaustive]
pub enum Effect {
    /// Nothing.
    None,
    /// Send the message to its destinations: [`Vm::send`](crate::Vm::send).
    Ipi(Message),
    /// Hardware has sent the message, and set IRR in every target, but could not tell those that do
    /// not run: tell them ([`Vm::announce`](crate::Vm::announce)), and send nothing again.
    Announce(Message),
    /// Broadcast the EOI of this level-triggered vector to the I/O APICs.
    EndOfInterrupt(Vector),
    /// The timer's next expiry may have moved:
    /// [`LocalApic::next_deadline`](crate::LocalApic::next_deadline).
    TimerChanged,
    /// IA32_APIC_BASE changed: remap the register window, reload the x2APIC MSR bitmap, change
    /// CPUID.1:EDX bit 9.
    BaseChanged {
        /// The word now.
        to: ApicBase,
    },
}

impl Effect {
    /// The same, taken apart and put together again: a function that is not inlined returns an
    /// effect in memory, and there all others would meet with it.
    #[inline(always)]
    pub(crate) const fn in_registers(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Ipi(message) => Self::Ipi(message),
            Self::Announce(message) => Self::Announce(message),
            Self::EndOfInterrupt(vector) => Self::EndOfInterrupt(vector),
            Self::TimerChanged => Self::TimerChanged,
            Self::BaseChanged { to } => Self::BaseChanged { to },
        }
    }
}

const_assert!(size_of::<Effect>() <= 16);
