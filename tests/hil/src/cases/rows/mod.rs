//! What the processor does with each access and event, and what the driver makes of it.
//!
//! ```text
//! probe         runs a guest program that looks at its own exits
//! access        the guest's accesses, each with the place of its instruction
//! remote        a second CPU that does what the guest asks for
//! capability    what the processor can do
//! window        xAPIC mode: every offset of the register window
//! msr           x2APIC mode: every MSR
//! leak          what of them reaches the physical APIC
//! delivery      which interrupt is taken when
//! priority      TPR, EOI, self-IPIs by ICR
//! posted        posted interrupts
//! exits         VM exits of each operation
//! exits_remote  and of interrupts from elsewhere
//! bugs          what emulators are known to do otherwise
//! ```
//!
//! What is expected is written down here from the SDM's text, not taken from the driver or from `vlapic-core`.

mod access;
mod bugs;
mod capability;
mod delivery;
mod exits;
mod exits_remote;
mod leak;
mod msr;
mod posted;
mod priority;
mod probe;
mod remote;
mod window;

use super::Case;
use crate::machine::self_check as machine;

pub(super) const GROUPS: &[&[Case]] = &[
    bugs::CASES,
    capability::CASES,
    delivery::CASES,
    exits::CASES,
    exits_remote::CASES,
    leak::CASES,
    msr::CASES,
    posted::CASES,
    priority::CASES,
    window::CASES,
];

/// Run at the very end.
pub(crate) const LAST_CASES: &[machine::Case] =
    &[machine::Case { name: "rows-msr-host-x2apic", run: |_| leak::host_x2apic() }];
