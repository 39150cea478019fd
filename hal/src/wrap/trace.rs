//! Tells of each operation.

use super::Operation;
use crate::{
    Clock, Cpuid, Doorbell, MsrError, PhysAddr, ReadMsr, SendError, SendInterrupt, Translate, Vmcs,
    VmcsError, VmcsField, WriteMsr,
};

/// Is told of operations, in the order in which each CPU does them.
///
/// It is called wherever the traced trait is called: with interrupts off, perhaps, and from several
/// CPUs at once.
pub trait Sink {
    /// `operation` has just been done.
    fn record(&self, operation: Operation);
}

impl<S: Sink + ?Sized> Sink for &S {
    fn record(&self, operation: Operation) {
        (**self).record(operation);
    }
}

/// Hands each operation on `T`, with its result, to the sink `S`.
#[derive(Debug)]
pub struct Trace<T, S> {
    inner: T,
    sink: S,
}

impl<T, S> Trace<T, S> {
    /// Traces `inner` into `sink`, which may be a reference that others share.
    pub const fn new(inner: T, sink: S) -> Self {
        Self { inner, sink }
    }

    /// What is traced. Calls made on it directly leave no trace.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// As [`inner`](Self::inner), exclusively.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Where the operations go.
    pub const fn sink(&self) -> &S {
        &self.sink
    }

    /// What was traced.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T: ReadMsr, S: Sink> ReadMsr for Trace<T, S> {
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        let result = self.inner.read_msr(msr);
        self.sink.record(Operation::ReadMsr { msr, result });
        result
    }
}

impl<T: WriteMsr, S: Sink> WriteMsr for Trace<T, S> {
    fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrError> {
        let result = self.inner.write_msr(msr, value);
        self.sink.record(Operation::WriteMsr { msr, value, result });
        result
    }
}

impl<T: Vmcs, S: Sink> Vmcs for Trace<T, S> {
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        let result = self.inner.read(field);
        self.sink.record(Operation::ReadVmcs { field, result });
        result
    }

    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        let result = self.inner.write(field, value);
        self.sink.record(Operation::WriteVmcs { field, value, result });
        result
    }
}

impl<T: SendInterrupt, S: Sink> SendInterrupt for Trace<T, S> {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        let result = self.inner.send_interrupt(destination, vector);
        self.sink.record(Operation::SendInterrupt { destination, vector, result });
        result
    }
}

impl<T: Doorbell, S: Sink> Doorbell for Trace<T, S> {
    fn ring(&self, destination: u32) -> Result<(), SendError> {
        let result = self.inner.ring(destination);
        self.sink.record(Operation::Ring { destination, result });
        result
    }
}

impl<T: Clock, S: Sink> Clock for Trace<T, S> {
    fn now(&self) -> u64 {
        let ticks = self.inner.now();
        self.sink.record(Operation::Now { ticks });
        ticks
    }
}

impl<T: Translate, S: Sink> Translate for Trace<T, S> {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        let result = self.inner.physical_address(object);
        self.sink.record(Operation::PhysicalAddress { result });
        result
    }
}

impl<T: Cpuid, S: Sink> Cpuid for Trace<T, S> {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let registers = self.inner.cpuid(leaf, subleaf);
        self.sink.record(Operation::Cpuid { leaf, subleaf, registers });
        registers
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;
    use crate::fake::{
        FixedCpuid, FixedMsrs, ManualClock, MemoryVmcs, Unconnected, VirtualIsPhysical,
    };
    use crate::wrap::{Count, Ring};

    const THRESHOLD: VmcsField = VmcsField::new(0x401c);
    const EXIT_REASON: VmcsField = VmcsField::new(0x4402);

    #[test]
    fn a_trace_reads_in_order_with_results() {
        let ring = Ring::<16>::new();
        let mut vmcs = Trace::new(MemoryVmcs::<4>::new(), &ring);
        let msrs = Trace::new(FixedMsrs(&[(0x480, 0x1234)]), &ring);
        assert_eq!(vmcs.write(THRESHOLD, 3), Ok(()));
        assert_eq!(vmcs.read(THRESHOLD), Ok(3));
        assert!(vmcs.write(EXIT_REASON, 0).is_err());
        assert_eq!(msrs.read_msr(0x480), Ok(0x1234));
        assert!(msrs.read_msr(0x481).is_err());
        assert!(Trace::new(Unconnected, &ring).send_interrupt(2, 0xf2).is_ok());
        assert_eq!(Trace::new(ManualClock::new(77), &ring).now(), 77);
        assert_eq!(Trace::new(FixedCpuid(&[]), &ring).cpuid(1, 2), [0; 4]);
        let address = Trace::new(VirtualIsPhysical, &ring).physical_address(&ring);

        let lines: Vec<_> = ring.operations().map(|line| line.to_string()).collect();
        assert_eq!(
            lines[..8],
            [
                "vmwrite 0x401c 0x3: ok",
                "vmread 0x401c: 0x3",
                "vmwrite 0x4402 0x0: VMCS field 0x4402 is read-only",
                "rdmsr 0x480: 0x1234",
                "rdmsr 0x481: MSR 0x481 is not available here",
                "send 0xf2 to 0x2: ok",
                "now: 77",
                "cpuid 0x1 0x2: 0x0 0x0 0x0 0x0",
            ]
        );
        assert_eq!(ring.operations().nth(8), Some(Operation::PhysicalAddress { result: address }));
        assert_eq!(lines.len(), 9);
    }

    #[test]
    fn wrappers_nest_and_lend() {
        let ring = Ring::<4>::new();
        let mut inner = MemoryVmcs::<4>::new();
        let mut vmcs = Count::new(Trace::new(&mut inner, &ring));
        assert_eq!(vmcs.write(THRESHOLD, 9), Ok(()));
        assert_eq!(vmcs.counts().vmcs_writes.control, 1);
        assert_eq!(ring.recorded(), 1);
        assert_eq!(inner.read(THRESHOLD), Ok(9));
    }
}
