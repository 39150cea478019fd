//! How much help a VM asks for, and the driver that goes with it.

use core::sync::atomic::AtomicU8;

use avic::{
    Capabilities, Face, Feature, Features, Grant, Host, Reason, Resources, Shared, Vcpu, Vmcb,
    Wanted, negotiate,
};
use vlapic_core::SvrWrites;

/// How much help the AVIC driver is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// None: the driver emulates.
    Off,
    /// What there is, but AVIC, for the register window, at least.
    Avic,
    /// What there is, but x2AVIC, for the MSRs, at least.
    X2Avic,
}

impl Level {
    /// What the driver is asked for. Virtual NMIs are left out: they have nothing to do with the APIC.
    #[must_use]
    pub fn wanted(self) -> Wanted {
        match self {
            Self::Off => Wanted::NONE,
            Self::Avic | Self::X2Avic => Wanted::ALL.without(Feature::VirtualNmi),
        }
    }

    /// What must be granted; of the rest what there is.
    fn needed(self) -> Features {
        match self {
            Self::Off => Features::NONE,
            Self::Avic => Features::NONE.with(Feature::Avic),
            Self::X2Avic => Features::NONE.with(Feature::Avic).with(Feature::X2Avic),
        }
    }

    /// Whether a processor with `capabilities` has what the level needs.
    ///
    /// # Errors
    /// What it lacks, and why.
    pub fn check(self, capabilities: &Capabilities) -> Result<(), NotGranted> {
        self.check_grant(&negotiate(self.wanted(), capabilities, &Host::new()))
    }

    fn check_grant(self, grant: &Grant) -> Result<(), NotGranted> {
        let lacking = grant.refused().find(|(feature, _)| self.needed().contains(*feature));
        lacking.map_or(Ok(()), |(feature, reason)| Err(NotGranted { feature, reason }))
    }
}

/// The processor does not grant what the level is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotGranted {
    /// What it does not grant.
    pub feature: Feature,
    /// Why.
    pub reason: Reason,
}

/// What the hypervisor has and wants for one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'s> {
    /// How much help.
    pub level: Level,
    /// How SVR writes come to notice.
    pub svr_writes: SvrWrites,
    /// The pending byte of its upcall.
    pub pending: &'s AtomicU8,
    /// What the driver has to know of the VMCB's surroundings.
    pub resources: Resources<'s>,
}

/// Once per vCPU: its APIC after RESET, and a VMCB prepared for as much help as the level wants.
///
/// `None` if the VM has no such vCPU.
pub fn driver<'s, V: Vmcb>(
    shared: &'s Shared<'s>,
    index: usize,
    vmcb: &mut V,
    capabilities: &Capabilities,
    setup: Setup<'s>,
) -> Option<Result<Vcpu<'s>, NotGranted>> {
    let Setup { level, svr_writes, pending, resources } = setup;
    let mut driver = Vcpu::new(shared, index, index == 0)?;
    driver.set_svr_writes(svr_writes);
    driver.apic_mut().bind_upcall(pending);
    let grant = driver.configure(vmcb, capabilities, level.wanted(), resources);
    debug_assert!(Face::of(vmcb) == Face::Emulated, "AVIC begins with an entry");
    Some(level.check_grant(&grant).map(|()| driver))
}
