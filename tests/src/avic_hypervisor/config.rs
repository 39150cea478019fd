//! What kind of VM, on what processor.

use avic::{Host, Wanted};
use vlapic_core::{Mode, Profile, RefusedUpcall, SvrWrites};

use crate::avic_model::{Capability, Knobs};

/// A VM and the processor it runs on.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How many vCPUs.
    pub vcpus: usize,
    /// How many CPUs.
    pub cpus: usize,
    /// The physical APIC ID of the first CPU; the others follow.
    pub first_cpu_id: u32,
    /// What the driver is asked for.
    pub wanted: Wanted,
    /// The mode that the guests put their APICs into at the start.
    pub mode: Mode,
    /// The processor.
    pub processor: Capability,
    /// How the processor does what the manual leaves open.
    pub knobs: Knobs,
    /// What the host is like, and what it trusts.
    pub host: Host,
    /// The model of the guests' APICs.
    pub profile: Profile,
    /// How the driver is told that SVR writes come to notice.
    pub svr_writes: SvrWrites,
    /// What becomes of refused upcalls.
    pub refused_upcall: RefusedUpcall,
    /// Each vCPU has an ASID of its own. Otherwise they share one.
    pub private_asid: bool,
    /// What the host forgets to do.
    pub broken: Broken,
    /// The seed of the schedule.
    pub seed: u64,
}

/// A step of the protocol that the host leaves out, to see what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Nothing.
    Nothing,
    /// A vCPU goes to sleep whatever the last look at its APIC says.
    SleepsAnyway,
    /// A vCPU sleeps without the driver being told.
    SleepsInSilence,
    /// Nobody is told of an IPI whose target does not run (exit 401).
    IgnoresAnnouncements,
    /// The IOMMU's log is not read.
    IgnoresLog,
    /// After an overflow the log is started again, and nobody told.
    IgnoresOverflow,
    /// Posts ring no doorbell.
    RingsNoDoorbell,
    /// Kicks are not carried out.
    IgnoresKicks,
    /// A wake-up before the vCPU is asleep for good does nothing.
    ForgetsEarlyWakes,
    /// The window stays mapped when a vCPU objects.
    KeepsWindow,
    /// The window is unmapped, but the TLBs keep it.
    KeepsTranslations,
    /// vCPUs share an ASID, and the driver is told that they do not.
    DeniesSharedAsid,
    /// An injected interrupt whose entry did not happen is thrown away.
    DropsInjections,
    /// TLB_CONTROL is cleared before each VMRUN.
    NeverFlushes,
    /// Whoever has to wait until the others have exited does not.
    IgnoresPeers,
}

impl Config {
    /// `vcpus` vCPUs in xAPIC mode, each on a CPU of its own, on a processor that has everything.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            vcpus,
            cpus: vcpus,
            first_cpu_id: 0,
            wanted: Wanted::ALL,
            mode: Mode::XApic,
            processor: Capability::full(),
            knobs: Knobs::default(),
            host: Host::new(),
            profile: Profile::amd(),
            svr_writes: SvrWrites::Exit,
            refused_upcall: RefusedUpcall::Owed,
            private_asid: false,
            broken: Broken::Nothing,
            seed: 1,
        }
    }
}
