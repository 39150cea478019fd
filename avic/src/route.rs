//! Interrupt-remapping entries that follow a vCPU.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use static_assertions::const_assert_eq;
use vlapic_core::{Inbox, Notify};

use crate::backing::Whereabouts;
use crate::irte::GuestIrte;
use crate::shared::Shared;

/// An interrupt-remapping entry of 128 bits where the IOMMU reads it.
///
/// What changes as the vCPU comes and goes (IsRun, GALogIntr, destination bits 23:0) lies in bits
/// 63:0 and is not cached by the IOMMU, so it is changed here with one 64-bit locked operation.
/// All else is the hypervisor's to write, with CMPXCHG16B where the entry is live, and to
/// invalidate.
#[repr(C, align(16))]
pub struct IrteCell {
    halves: [AtomicU64; 2],
}

const_assert_eq!(size_of::<IrteCell>(), 16);
const_assert_eq!(align_of::<IrteCell>(), 16);

const IS_RUN: u64 = 1 << 6;
const GA_LOG_INTR: u64 = 1 << 2;
const DESTINATION: u64 = 0xFFFF_FF00;
/// Enabled, in guest mode.
const GUEST_MODE: u64 = 1 << 7 | 1;

impl IrteCell {
    /// A disabled entry.
    #[must_use]
    pub const fn new() -> Self {
        Self { halves: [const { AtomicU64::new(0) }; 2] }
    }

    /// The entry, by two loads: whole only while nobody writes bits 127:64.
    #[must_use]
    pub fn load(&self) -> GuestIrte {
        let [low, high] = &self.halves;
        GuestIrte::from_halves(low.load(Ordering::SeqCst), high.load(Ordering::SeqCst))
    }

    /// Stores an entry into one that is disabled (bit 0 clear): bits 127:64 first, then those that
    /// enable it. The interrupt table has to be invalidated before its device uses it.
    pub fn store_disabled(&self, entry: GuestIrte) {
        let [low, high] = entry.halves();
        self.halves[1].store(high, Ordering::SeqCst);
        self.halves[0].store(low, Ordering::SeqCst);
    }

    /// Disables the entry: interrupts through it are lost from here on.
    pub fn disable(&self) {
        self.halves[0].fetch_and(!1, Ordering::SeqCst);
    }

    /// Bits 63:0 and 127:64, for models of the IOMMU.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 2] {
        &self.halves
    }

    /// Says where the vCPU is: running on a CPU; away but to be told of interrupts by the log; or
    /// away and soon back. Entries that are disabled or not in guest mode are left alone.
    pub(crate) fn steer(&self, whereabouts: Whereabouts) {
        let set = |word| Some(steered(word, whereabouts)).filter(|&new| new != word);
        let _ = self.halves[0].fetch_update(Ordering::SeqCst, Ordering::SeqCst, set);
    }
}

fn steered(word: u64, whereabouts: Whereabouts) -> u64 {
    if word & GUEST_MODE != GUEST_MODE {
        return word;
    }
    let away = word & !(IS_RUN | GA_LOG_INTR);
    match whereabouts {
        Whereabouts::Doorbell(cpu) => {
            away & !DESTINATION | IS_RUN | u64::from(cpu) << 8 & DESTINATION
        }
        Whereabouts::Kick(_) | Whereabouts::Blocked => away | GA_LOG_INTR,
        Whereabouts::Preempted => away,
    }
}

impl Default for IrteCell {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for IrteCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}

/// An interrupt-remapping entry and the vCPU that it posts to.
///
/// While it is attached, the vCPU's entries and exits keep IsRun, the destination and GALogIntr of
/// the entry as they have to be. The hypervisor must have the guest virtual APIC log
/// ([`GaLog`](crate::GaLog)): a vCPU that sleeps, or runs emulated, learns of posts by it.
#[derive(Debug)]
pub struct Route<'s> {
    irte: &'s IrteCell,
    /// Index of the vCPU plus one, or zero.
    target: AtomicU32,
}

impl<'s> Route<'s> {
    /// The route of `irte`, leading nowhere.
    #[must_use]
    pub const fn new(irte: &'s IrteCell) -> Self {
        Self { irte, target: AtomicU32::new(0) }
    }

    /// The entry.
    #[must_use]
    pub const fn irte(&self) -> &'s IrteCell {
        self.irte
    }

    /// Attaches the route, which is one of those given to `shared`, to vCPU `index`, whose backing
    /// page the entry names; any one CPU may call. `None` if there is no such vCPU. Otherwise carry
    /// the notification out: until now the entry may have told nobody, or a CPU that the vCPU has
    /// just left, of what it has posted.
    ///
    /// Ordering: the target is stored and the entry set by the vCPU's whereabouts, then a SeqCst fence,
    /// then the whereabouts are read again, until they have not changed; the vCPU stores its
    /// whereabouts, then has a SeqCst fence, then reads the targets and sets their entries. So at least
    /// one of them sees the other, and who comes last has the entry right.
    #[must_use = "the vCPU has to be told"]
    pub fn attach(&self, shared: &Shared<'_>, index: usize) -> Option<Notify> {
        let slot = shared.vm().slot(index)?;
        let target = u32::try_from(index + 1).ok()?;
        self.target.store(target, Ordering::SeqCst);
        let mut whereabouts = slot.inbox().whereabouts();
        loop {
            self.irte.steer(whereabouts);
            fence(Ordering::SeqCst);
            let now = slot.inbox().whereabouts();
            if now == whereabouts {
                return Some(slot.inbox().announce());
            }
            whereabouts = now;
        }
    }

    /// Detaches the route. Disable or rewrite the entry first: nobody keeps IsRun right any more.
    pub fn detach(&self) {
        self.target.store(0, Ordering::SeqCst);
    }

    /// The vCPU that the route is attached to.
    #[inline]
    #[must_use]
    pub fn target(&self) -> Option<usize> {
        (self.target.load(Ordering::SeqCst) as usize).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use vlapic_hal::PhysAddr;

    use super::*;
    use crate::irte::GuestTarget;

    const TARGET: GuestTarget = GuestTarget {
        vector: 0x55,
        backing_page: PhysAddr::new(0x12_3456_7000),
        destination: 0,
        running: false,
        log: false,
        tag: 0xABCD,
        suppress_page_faults: true,
    };

    #[test]
    fn an_entry_follows_its_vcpu() {
        let cell = IrteCell::new();
        cell.store_disabled(TARGET.encode().unwrap());
        let high = cell.load().halves()[1];
        for (whereabouts, expected) in [
            (
                Whereabouts::Doorbell(0x1A5),
                GuestTarget { running: true, destination: 0x1A5, ..TARGET },
            ),
            (Whereabouts::Blocked, GuestTarget { log: true, destination: 0x1A5, ..TARGET }),
            (Whereabouts::Kick(7), GuestTarget { log: true, destination: 0x1A5, ..TARGET }),
            (Whereabouts::Doorbell(7), GuestTarget { running: true, destination: 7, ..TARGET }),
            (Whereabouts::Preempted, GuestTarget { destination: 7, ..TARGET }),
        ] {
            cell.steer(whereabouts);
            assert_eq!(cell.load().decode(), Some(expected), "{whereabouts:?}");
            assert_eq!(cell.load().halves()[1], high);
        }
    }

    #[test]
    fn entries_that_are_not_ours_are_left_alone() {
        let entry = TARGET.encode().unwrap().bits();
        for other in [entry & !1, entry & !(1 << 7), 0] {
            let cell = IrteCell::new();
            cell.store_disabled(GuestIrte::from_bits(other));
            cell.steer(Whereabouts::Doorbell(3));
            assert_eq!(cell.load().bits(), other);
        }
    }
}
