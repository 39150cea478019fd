//! Where a vCPU's accepted vectors wait on AMD: the IRR of its backing page.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vlapic_core::{ApicPage, Inbox, Notify, Trigger, Vector};

use crate::inhibit::{Inhibit, Inhibits};

/// The inbox of a vCPU under AVIC: vectors go straight into the page's IRR, whoever posts them.
///
/// What it adds to the page is where the vCPU is, so that a poster knows whom to tell, and the
/// reasons for which the hypervisor wants this one vCPU emulated.
///
/// Whether the APIC accepts is asked before a vector comes here. Hardware that posts by itself,
/// other vCPUs' IPIs and the IOMMU, does not ask: what it posts to a software-disabled APIC goes
/// into IRR and is delivered; what it posts to an APIC that is not there (IA32_APIC_BASE.EN clear)
/// is dropped. It leaves TMR as it is, so the EOI of a vector that was level-triggered before is
/// broadcast.
#[derive(Debug, Default)]
pub struct Backing {
    whereabouts: AtomicU64,
    inhibits: AtomicU32,
}

/// Where a vCPU is, as posters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// Waiting for a CPU, or never run: its next entry finds what is posted.
    Preempted,
    /// Assigned to the CPU with this physical APIC ID, where the doorbell reaches it.
    Doorbell(u32),
    /// Assigned to the CPU with this physical APIC ID, where only an exit makes it look.
    Kick(u32),
    /// Asleep.
    Blocked,
}

impl Whereabouts {
    const fn bits(self) -> u64 {
        match self {
            Self::Preempted => 0,
            Self::Doorbell(cpu) => 1 << 32 | cpu as u64,
            Self::Kick(cpu) => 2 << 32 | cpu as u64,
            Self::Blocked => 3 << 32,
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits >> 32 {
            1 => Self::Doorbell(bits as u32),
            2 => Self::Kick(bits as u32),
            3 => Self::Blocked,
            _ => Self::Preempted,
        }
    }

    /// The CPU that the vCPU is assigned to.
    #[must_use]
    pub const fn cpu(self) -> Option<u32> {
        match self {
            Self::Doorbell(cpu) | Self::Kick(cpu) => Some(cpu),
            Self::Preempted | Self::Blocked => None,
        }
    }
}

impl Backing {
    /// For a vCPU that does not run yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { whereabouts: AtomicU64::new(0), inhibits: AtomicU32::new(0) }
    }

    /// Where the vCPU is.
    #[inline]
    #[must_use]
    pub fn whereabouts(&self) -> Whereabouts {
        Whereabouts::from_bits(self.whereabouts.load(Ordering::SeqCst))
    }

    /// Whether the vCPU is assigned to the CPU with this physical APIC ID.
    #[inline(always)]
    pub(crate) fn is_assigned_to(&self, cpu: u32) -> bool {
        self.whereabouts().cpu() == Some(cpu)
    }

    /// Has this vCPU emulated for `inhibit`, from the entry on that follows the returned kick; any
    /// CPU may call. Nothing posted meanwhile is lost: IRR is the same.
    pub fn inhibit(&self, inhibit: Inhibit) -> Notify {
        let before = self.inhibits.fetch_or(inhibit.bit(), Ordering::SeqCst);
        if before & inhibit.bit() == 0 { Notify::Kick } else { Notify::None }
    }

    /// Takes `inhibit` back, from the vCPU's next entry on; any CPU may call.
    pub fn allow(&self, inhibit: Inhibit) {
        self.inhibits.fetch_and(!inhibit.bit(), Ordering::SeqCst);
    }

    /// The reasons set by [`inhibit`](Self::inhibit).
    #[inline]
    #[must_use]
    pub fn inhibits(&self) -> Inhibits {
        Inhibits::from_bits(self.inhibits.load(Ordering::SeqCst))
    }

    /// Owner: from here on posters tell it in this way. A SeqCst fence has to follow before IRR is
    /// looked at (VMRUN, or the re-check before sleep); it orders this store as well.
    #[inline]
    pub(crate) fn move_to(&self, whereabouts: Whereabouts) {
        self.whereabouts.store(whereabouts.bits(), Ordering::Release);
    }

    /// After IRR was set: by a locked operation that is in the single order of SeqCst operations, as the
    /// load here is, or with a full fence between.
    fn tell(&self, fresh: bool) -> Notify {
        match self.whereabouts() {
            Whereabouts::Doorbell(destination) if fresh => Notify::Doorbell { destination },
            Whereabouts::Kick(_) if fresh => Notify::Kick,
            // Even if somebody else has set the bit: it may be hardware, which could not tell.
            Whereabouts::Blocked => Notify::Wake,
            _ => Notify::None,
        }
    }
}

impl Inbox for Backing {
    /// Locked OR into IRR, then the look at where the vCPU is. The owner changes its whereabouts, then
    /// has a SeqCst fence, then looks at IRR: by VMRUN, which evaluates it, or before it sleeps. So
    /// either the poster sees the change or the owner the bit.
    ///
    /// Ordering: OR and look are SeqCst both, so the look comes second for everybody. On x86 no load
    /// passes an earlier locked operation (APM Vol. 2 7.2), so it takes no fence.
    #[inline]
    fn post(&self, page: &ApicPage, vector: Vector, _: Trigger) -> Notify {
        let fresh = page.irr().insert(vector);
        self.tell(fresh)
    }

    #[inline]
    fn attention(&self) -> Notify {
        Notify::Kick
    }

    #[inline]
    fn announce(&self) -> Notify {
        fence(Ordering::SeqCst);
        self.tell(true)
    }

    fn retract(&self, page: &ApicPage, vector: Vector) -> bool {
        page.irr().remove(vector)
    }

    #[inline]
    fn collect(&self, _: &ApicPage) {}

    #[inline]
    fn discard(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_and_how() {
        let page = ApicPage::new();
        let vector = Vector::new(0x41).unwrap();
        let backing = Backing::new();
        let doorbell = Notify::Doorbell { destination: 0x1A5 };
        for (whereabouts, first, again) in [
            (Whereabouts::Preempted, Notify::None, Notify::None),
            (Whereabouts::Doorbell(0x1A5), doorbell, Notify::None),
            (Whereabouts::Kick(0x1A5), Notify::Kick, Notify::None),
            (Whereabouts::Blocked, Notify::Wake, Notify::Wake),
        ] {
            backing.move_to(whereabouts);
            assert_eq!(backing.whereabouts(), whereabouts);
            assert_eq!(backing.post(&page, vector, Trigger::Edge), first, "{whereabouts:?}");
            assert!(page.irr().contains(vector));
            assert_eq!(backing.post(&page, vector, Trigger::Edge), again, "{whereabouts:?}");
            assert_eq!(backing.announce(), first, "hardware has set IRR");
            assert_eq!(backing.attention(), Notify::Kick);
            assert!(backing.retract(&page, vector));
        }
    }

    #[test]
    fn an_inhibit_kicks_once() {
        let backing = Backing::new();
        assert_eq!(backing.inhibit(Inhibit::Nested), Notify::Kick);
        assert_eq!(backing.inhibit(Inhibit::Nested), Notify::None);
        assert!(backing.inhibits().contains(Inhibit::Nested));
        backing.allow(Inhibit::Nested);
        assert_eq!(backing.inhibits(), Inhibits::NONE);
    }
}
