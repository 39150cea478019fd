//! A defect of QEMU's VMRUN (7.2), and what the image does instead.

use core::sync::atomic::{AtomicBool, Ordering};

use super::exit::EventInfo;
use super::vmcb::Control;
use crate::machine::identity::{self, Machine};
use crate::println;

/// An external interrupt that the control block held, and that the processor was given as a software interrupt.
///
/// Defect Q4: QEMU delivers an external interrupt of EVENTINJ while it executes VMRUN, and leaves its number where it keeps
/// the exception that is to be delivered next. If another CPU makes it leave its loop just then, it delivers the interrupt
/// once more, with IF clear. A software interrupt takes another path and is delivered once; the guest sees no difference.
#[derive(Clone, Copy, Debug)]
pub(super) struct AsSoftware(u64);

impl AsSoftware {
    const TYPE: u64 = 7 << 8;
    const SOFTWARE: u64 = 4 << 8;

    /// Before an entry. Names the defect when it first does something.
    pub(super) fn begin(control: &mut Control) -> Option<Self> {
        static NAMED: AtomicBool = AtomicBool::new(false);
        let event = control.event_injection;
        let external = event & EventInfo::VALID != 0 && event & Self::TYPE == 0;
        if !external || identity::machine() != Machine::Qemu {
            return None;
        }
        if !NAMED.swap(true, Ordering::Relaxed) {
            println!(
                "HIL-BUG name=Q4 note=EVENTINJ may deliver an external interrupt twice: a software interrupt is injected instead"
            );
        }
        control.event_injection = event | Self::SOFTWARE;
        Some(Self(event))
    }

    /// After the exit: if the delivery was cut short, it is told as that of the external interrupt.
    pub(super) fn end(self, control: &mut Control) {
        let Self(event) = self;
        if control.exit_interrupt_info == event | Self::SOFTWARE {
            control.exit_interrupt_info = event;
        }
    }
}
