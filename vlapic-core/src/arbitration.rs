//! Who of several APICs gets a lowest-priority interrupt (SDM Vol. 3A 10.6.2.4; APM Vol. 2 16.6.2).

use crate::inbox::Inbox;
use crate::profile::Vendor;
use crate::register::Register;
use crate::slot::Slot;
use crate::targets::Targets;
use crate::vector::Vector;
use crate::vm::Vm;

/// What an APIC that accepts bids, in one word: the lowest wins. Bit 40: it is no focus processor; bits
/// 39:32 priority class; 31:16 distance from the one that wins among equals; 15:0 index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bid(u64);

impl Bid {
    /// Above every bid.
    const NONE: Self = Self(u64::MAX);

    /// `distance` and `index` are below 2^16, as [`Vm::MAX_VCPUS`] is.
    const fn new(focus: bool, priority: u8, distance: usize, index: usize) -> Self {
        let class = (priority & 0xF0) as u64;
        Self((!focus as u64) << 40 | class << 32 | (distance as u64) << 16 | index as u64)
    }

    const fn index(self) -> usize {
        self.0 as usize & 0xFFFF
    }
}

/// The winner among `targets`; `None` if nobody accepts. One pass.
pub(crate) fn winner<I: Inbox>(
    vm: &Vm<'_, I>,
    targets: Targets<'_, I>,
    vector: u8,
) -> Option<usize> {
    let vcpus = vm.slots().len();
    let first = usize::from(vector).checked_rem(vcpus)?;
    let best = targets.fold_slots(Bid::NONE, |best, index, slot| {
        if !slot.accepts() {
            return best;
        }
        match slot.profile().vendor() {
            Vendor::Intel => {
                let distance = if index < first { index + vcpus - first } else { index - first };
                let bid = |priority| Bid::new(false, priority, distance, index);
                // PPR is TPR at least, so most need not be asked what they have in service.
                let least = bid(slot.page().read(Register::Tpr) as u8);
                if least > best { best } else { best.min(bid(slot.processor_priority())) }
            }
            Vendor::Amd => {
                let focus = is_focus(slot, vector);
                best.min(Bid::new(focus, slot.arbitration_priority(), vcpus - index, index))
            }
        }
    });
    (best != Bid::NONE).then(|| best.index())
}

/// Whether the APIC already has `vector` requested or in service and lets that count (SVR bit 9
/// clear; APM Vol. 2 16.6.2).
fn is_focus<I: Inbox>(slot: &Slot<'_, I>, vector: u8) -> bool {
    let page = slot.page();
    slot.profile().focus_check()
        && !page.svr().focus_check_disabled()
        && Vector::new(vector)
            .is_some_and(|vector| page.irr().contains(vector) || page.isr().contains(vector))
}

const _: () = assert!(Vm::<()>::MAX_VCPUS < 1 << 16);
