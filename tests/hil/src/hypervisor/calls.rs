//! What hypercalls do, on whatever processor.

use super::{HypervisorError, VirtualMachine};
use crate::guest::hypercall::Hypercall;

/// What comes of a hypercall.
pub(super) enum Answer {
    /// The program is done, with this result.
    Finish(u64),
    /// It goes on with this answer.
    Value(u64),
}

/// Does what vCPU `index` asked for.
pub(super) fn answer(
    machine: &VirtualMachine,
    index: usize,
    call: Hypercall,
) -> Result<Answer, HypervisorError> {
    Ok(match call {
        Hypercall::Finish(value) => Answer::Finish(value),
        Hypercall::Phase(_) => Answer::Value(0),
        Hypercall::Log(text) => {
            crate::log!("guest {index}: {text}");
            Answer::Value(0)
        }
        Hypercall::Fault { vector, error_code, rip } => {
            return Err(HypervisorError::GuestFault { vector, error_code, rip });
        }
        Hypercall::Other { operation, first, second } => {
            Answer::Value((machine.config.on_call)(machine, index, operation, first, second))
        }
    })
}
