//! What kind of VM, on what processor.

use apicv::{Feature, HostMode, Wanted};
use vlapic_core::SvrWrites;
use vlapic_core::{Mode, Profile, RefusedUpcall};

use crate::model::{Capability, Knobs};

/// How much help the driver is asked to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// None: every access exits, every interrupt is injected.
    Emulated,
    /// The TPR shadow alone.
    TprShadow,
    /// Virtualized APIC accesses, or x2APIC MSRs.
    ApicAccess,
    /// And register virtualization.
    RegisterVirtualization,
    /// And virtual-interrupt delivery.
    VirtualInterruptDelivery,
    /// And posted interrupts.
    Posted,
    /// And IPI virtualization.
    IpiVirtualization,
}

impl Level {
    /// All, least help first.
    pub const ALL: [Self; 7] = [
        Self::Emulated,
        Self::TprShadow,
        Self::ApicAccess,
        Self::RegisterVirtualization,
        Self::VirtualInterruptDelivery,
        Self::Posted,
        Self::IpiVirtualization,
    ];

    /// What the driver is asked for.
    pub fn wanted(self) -> Wanted {
        match self {
            Self::Emulated => Wanted::NONE,
            Self::TprShadow => Wanted::up_to(Feature::TprShadow),
            Self::ApicAccess => Wanted::up_to(Feature::X2Apic),
            Self::RegisterVirtualization => Wanted::up_to(Feature::RegisterVirtualization),
            Self::VirtualInterruptDelivery => Wanted::up_to(Feature::VirtualInterruptDelivery),
            Self::Posted => Wanted::up_to(Feature::PostedInterrupts),
            Self::IpiVirtualization => Wanted::ALL,
        }
    }

    /// Whether the processor delivers virtual interrupts by itself.
    pub fn delivers(self) -> bool {
        self >= Self::VirtualInterruptDelivery
    }

    /// Whether the processor takes in posts by itself.
    pub fn posts(self) -> bool {
        self >= Self::Posted
    }
}

/// A VM and the processor it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How many vCPUs.
    pub vcpus: usize,
    /// How many physical CPUs; at least as many as vCPUs.
    pub cpus: usize,
    /// What the driver is asked for.
    pub wanted: Wanted,
    /// The mode that the guests put their APICs into at the start.
    pub mode: Mode,
    /// The processor.
    pub processor: Capability,
    /// How the processor does what the manual leaves open.
    pub knobs: Knobs,
    /// How the host addresses its own APICs.
    pub host: HostMode,
    /// The model of the guests' APICs.
    pub profile: Profile,
    /// How the driver is told that SVR writes come to notice.
    pub svr_writes: SvrWrites,
    /// What becomes of refused upcalls.
    pub refused_upcall: RefusedUpcall,
    /// The guest's register window leads to the virtual-APIC page itself, as plain memory: no store to it exits.
    pub silent_window: bool,
    /// The host flushes no translations, whatever the driver says of an entry.
    pub ignores_flush: bool,
    /// One VMREAD or VMWRITE in so many fails, at random, and the driver's call is repeated; 0 is none.
    pub fault_in: u64,
    /// The seed of the schedule.
    pub seed: u64,
}

impl Config {
    /// One vCPU in xAPIC mode, at `level`, on a processor that has everything.
    pub fn new(level: Level) -> Self {
        Self {
            vcpus: 1,
            cpus: 1,
            wanted: level.wanted(),
            mode: Mode::XApic,
            processor: Capability::full(),
            knobs: Knobs::DEFAULT,
            host: HostMode::XApic,
            profile: Profile::intel().with_cmci(false),
            svr_writes: SvrWrites::Exit,
            refused_upcall: RefusedUpcall::Owed,
            silent_window: false,
            ignores_flush: false,
            fault_in: 0,
            seed: 1,
        }
    }

    /// The same with `vcpus` vCPUs, each on a CPU of its own.
    #[must_use]
    pub const fn vcpus(self, vcpus: usize) -> Self {
        Self { vcpus, cpus: vcpus, ..self }
    }

    /// The same with the guests' APICs in `mode`.
    #[must_use]
    pub const fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The same with SVR writes that no exit tells of.
    #[must_use]
    pub const fn silent(self, recheck: u64) -> Self {
        let svr_writes = SvrWrites::Silent { recheck };
        Self { svr_writes, silent_window: true, ..self }
    }

    /// The same with another seed.
    #[must_use]
    pub const fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}
