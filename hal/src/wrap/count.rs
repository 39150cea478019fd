//! Counts operations.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Clock, Cpuid, Doorbell, FieldKind, MsrError, PhysAddr, ReadMsr, SendError, SendInterrupt,
    Translate, Vmcs, VmcsError, VmcsField, WriteMsr,
};

/// Counts the operations on `T`, whether they succeed or not.
///
/// Any number of CPUs may use it at once. The counts are each exact; taken while others count, they
/// may belong to slightly different moments.
#[derive(Debug, Default)]
pub struct Count<T> {
    inner: T,
    counters: Counters,
}

/// How often each operation was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// MSRs read.
    pub msr_reads: u64,
    /// MSRs written.
    pub msr_writes: u64,
    /// VMCS fields read (VMREAD).
    pub vmcs_reads: ByKind,
    /// VMCS fields written (VMWRITE).
    pub vmcs_writes: ByKind,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Readings of the clock.
    pub clock_reads: u64,
    /// Physical addresses asked for.
    pub addresses: u64,
    /// CPUID leaves read.
    pub cpuids: u64,
    /// Operations among all of these that failed.
    pub failures: u64,
}

/// A count for each [`FieldKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds themselves are documented")]
pub struct ByKind {
    pub control: u64,
    pub exit_information: u64,
    pub guest_state: u64,
    pub host_state: u64,
}

impl ByKind {
    /// All kinds together.
    pub const fn total(&self) -> u64 {
        self.control
            .wrapping_add(self.exit_information)
            .wrapping_add(self.guest_state)
            .wrapping_add(self.host_state)
    }
}

impl<T> Count<T> {
    /// Counts what is done on `inner`, from zero.
    pub const fn new(inner: T) -> Self {
        Self { inner, counters: Counters::new() }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.counters.each(|counter| counter.load(Ordering::Relaxed))
    }

    /// The counts so far, and start again from zero.
    pub fn take(&self) -> Counts {
        self.counters.each(|counter| counter.swap(0, Ordering::Relaxed))
    }

    /// What is counted on. Calls made on it directly are not counted.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// As [`inner`](Self::inner), exclusively.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// What was counted on.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn note<V, E>(&self, counter: &AtomicU64, result: Result<V, E>) -> Result<V, E> {
        add_one(counter);
        if result.is_err() {
            add_one(&self.counters.failures);
        }
        result
    }
}

impl<T: ReadMsr> ReadMsr for Count<T> {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        self.note(&self.counters.msr_reads, self.inner.read_msr(msr))
    }
}

impl<T: WriteMsr> WriteMsr for Count<T> {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        let result = self.inner.write_msr(msr, value);
        self.note(&self.counters.msr_writes, result)
    }
}

impl<T: Vmcs> Vmcs for Count<T> {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        let counter = self.counters.vmcs_reads.of(field.kind());
        self.note(counter, self.inner.read(field))
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        let result = self.inner.write(field, value);
        self.note(self.counters.vmcs_writes.of(field.kind()), result)
    }
}

impl<T: SendInterrupt> SendInterrupt for Count<T> {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        let result = self.inner.send_interrupt(destination, vector);
        self.note(&self.counters.interrupts, result)
    }
}

impl<T: Doorbell> Doorbell for Count<T> {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        self.note(&self.counters.doorbells, self.inner.ring(destination))
    }
}

impl<T: Clock> Clock for Count<T> {
    fn now(&self) -> u64 {
        add_one(&self.counters.clock_reads);
        self.inner.now()
    }
}

impl<T: Translate> Translate for Count<T> {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        let address = self.inner.physical_address(object);
        self.note(&self.counters.addresses, address.ok_or(())).ok()
    }
}

impl<T: Cpuid> Cpuid for Count<T> {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        add_one(&self.counters.cpuids);
        self.inner.cpuid(leaf, subleaf)
    }
}

/// [`Counts`] as they grow.
#[derive(Debug, Default)]
struct Counters {
    msr_reads: AtomicU64,
    msr_writes: AtomicU64,
    vmcs_reads: KindCounters,
    vmcs_writes: KindCounters,
    interrupts: AtomicU64,
    doorbells: AtomicU64,
    clock_reads: AtomicU64,
    addresses: AtomicU64,
    cpuids: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct KindCounters {
    control: AtomicU64,
    exit_information: AtomicU64,
    guest_state: AtomicU64,
    host_state: AtomicU64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            msr_reads: AtomicU64::new(0),
            msr_writes: AtomicU64::new(0),
            vmcs_reads: KindCounters::new(),
            vmcs_writes: KindCounters::new(),
            interrupts: AtomicU64::new(0),
            doorbells: AtomicU64::new(0),
            clock_reads: AtomicU64::new(0),
            addresses: AtomicU64::new(0),
            cpuids: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    fn each(&self, take: impl Fn(&AtomicU64) -> u64) -> Counts {
        Counts {
            msr_reads: take(&self.msr_reads),
            msr_writes: take(&self.msr_writes),
            vmcs_reads: self.vmcs_reads.each(&take),
            vmcs_writes: self.vmcs_writes.each(&take),
            interrupts: take(&self.interrupts),
            doorbells: take(&self.doorbells),
            clock_reads: take(&self.clock_reads),
            addresses: take(&self.addresses),
            cpuids: take(&self.cpuids),
            failures: take(&self.failures),
        }
    }
}

impl KindCounters {
    const fn new() -> Self {
        Self {
            control: AtomicU64::new(0),
            exit_information: AtomicU64::new(0),
            guest_state: AtomicU64::new(0),
            host_state: AtomicU64::new(0),
        }
    }

    const fn of(&self, kind: FieldKind) -> &AtomicU64 {
        match kind {
            FieldKind::Control => &self.control,
            FieldKind::ExitInformation => &self.exit_information,
            FieldKind::GuestState => &self.guest_state,
            FieldKind::HostState => &self.host_state,
        }
    }

    fn each(&self, take: &impl Fn(&AtomicU64) -> u64) -> ByKind {
        ByKind {
            control: take(&self.control),
            exit_information: take(&self.exit_information),
            guest_state: take(&self.guest_state),
            host_state: take(&self.host_state),
        }
    }
}

fn add_one(counter: &AtomicU64) {
    // Relaxed: a count orders nothing.
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FixedCpuid, FixedMsrs, ManualClock, MemoryVmcs, Unconnected};

    #[test]
    fn vmcs_accesses_are_counted_by_kind() {
        let mut vmcs = Count::new(MemoryVmcs::<8>::new());
        for encoding in [0x0810, 0x2012, 0x401c, 0x6c16, 0x4402] {
            let _ = vmcs.write(VmcsField::new(encoding), 0);
        }
        for encoding in [0x4402, 0x6400, 0x0810] {
            let _ = vmcs.read(VmcsField::new(encoding));
        }
        let counts = vmcs.take();
        let writes = ByKind { control: 2, exit_information: 1, guest_state: 1, host_state: 1 };
        let reads = ByKind { control: 0, exit_information: 2, guest_state: 1, host_state: 0 };
        assert_eq!(counts.vmcs_writes, writes);
        assert_eq!(counts.vmcs_reads, reads);
        assert_eq!(writes.total(), 5);
        assert_eq!(counts.failures, 1, "0x4402 is read-only");
        assert_eq!(vmcs.counts(), Counts::default());
    }

    #[test]
    fn everything_else_has_its_own_counter() {
        let msrs = Count::new(FixedMsrs(&[]));
        assert!(msrs.read_msr(0x10).is_err());
        assert_eq!(msrs.counts(), Counts { msr_reads: 1, failures: 1, ..Counts::default() });
        let sender = Count::new(Unconnected);
        assert!(sender.send_interrupt(0, 0x20).is_ok());
        assert_eq!(sender.counts().interrupts, 1);
        let clock = Count::new(ManualClock::new(5));
        assert_eq!((clock.now(), clock.now()), (5, 5));
        assert_eq!(clock.counts().clock_reads, 2);
        let cpuid = Count::new(FixedCpuid(&[]));
        assert_eq!(cpuid.cpuid(0, 0), [0; 4]);
        assert_eq!(cpuid.counts().cpuids, 1);
    }
}
