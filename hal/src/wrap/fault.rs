//! Makes chosen operations fail.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Clock, Cpuid, Doorbell, MsrError, PhysAddr, ReadMsr, SendError, SendInterrupt, Translate, Vmcs,
    VmcsError, VmcsField, WriteMsr,
};

/// Hands operations to `T`, except those that one of its `N` faults befalls: they never reach it.
///
/// Where several faults befall one operation, the first in the list decides. Clock and CPUID never
/// fail and are handed through.
#[derive(Debug)]
pub struct FaultInjector<T, const N: usize> {
    inner: T,
    rules: [Rule; N],
}

/// What goes wrong. `None` means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Reading this MSR fails.
    ReadMsr {
        /// The register's number.
        msr: Option<u32>,
        /// With this error.
        error: MsrError,
    },
    /// Writing this MSR fails; the register keeps its value.
    WriteMsr {
        /// The register's number.
        msr: Option<u32>,
        /// With this error.
        error: MsrError,
    },
    /// VMREAD of this field fails.
    ReadVmcs {
        /// The field.
        field: Option<VmcsField>,
        /// With this error.
        error: VmcsError,
    },
    /// VMWRITE of this field fails; the field keeps its value.
    WriteVmcs {
        /// The field.
        field: Option<VmcsField>,
        /// With this error.
        error: VmcsError,
    },
    /// An interrupt is said to be sent and is not.
    LoseInterrupt {
        /// The physical APIC ID it was for.
        destination: Option<u32>,
    },
    /// An interrupt is refused.
    RefuseInterrupt {
        /// The physical APIC ID it was for.
        destination: Option<u32>,
        /// With this error.
        error: SendError,
    },
    /// A doorbell is said to be rung and is not.
    LoseDoorbell {
        /// The physical APIC ID it was for.
        destination: Option<u32>,
    },
    /// A doorbell is refused.
    RefuseDoorbell {
        /// The physical APIC ID it was for.
        destination: Option<u32>,
        /// With this error.
        error: SendError,
    },
    /// An object has no physical address.
    NoAddress,
}

/// At which of the operations that a [`Fault`] is about it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// At each.
    Always,
    /// At this one only; the first is 1.
    Nth(u64),
    /// At this one and all that follow; the first is 1.
    From(u64),
}

impl When {
    const fn includes(self, number: u64) -> bool {
        match self {
            Self::Always => true,
            Self::Nth(only) => number == only,
            Self::From(first) => number >= first,
        }
    }
}

impl<T, const N: usize> FaultInjector<T, N> {
    /// Injects `faults` into what is done on `inner`.
    pub fn new(inner: T, faults: [(When, Fault); N]) -> Self {
        Self {
            inner,
            rules: faults.map(|(when, fault)| Rule {
                when,
                fault,
                seen: AtomicU64::new(0),
                struck: AtomicU64::new(0),
            }),
        }
    }

    /// How often all faults together have struck. A test that expects a fault checks that it came.
    pub fn struck(&self) -> u64 {
        let struck = self.rules.iter().map(|rule| &rule.struck);
        struck.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How often the fault at `index` of the list has struck.
    pub fn struck_by(&self, index: usize) -> u64 {
        let rule = self.rules.get(index);
        rule.map_or(0, |rule| rule.struck.load(Ordering::Relaxed))
    }

    /// What the operations go to. Calls made on it directly meet no fault.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// As [`inner`](Self::inner), exclusively.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// What the operations went to.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// What befalls an operation. `outcome` says what a fault does to it, `None` if nothing.
    fn strike<R>(&self, outcome: impl Fn(Fault) -> Option<R>) -> Option<R> {
        let mut decided = None;
        for rule in &self.rules {
            let Some(result) = outcome(rule.fault) else {
                continue;
            };
            // Relaxed: the number need only be unique. Every rule counts, also behind one that
            // struck, so that `Nth` means the same whatever else is in the list.
            let number = rule.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if rule.when.includes(number) && decided.is_none() {
                rule.struck.fetch_add(1, Ordering::Relaxed);
                decided = Some(result);
            }
        }
        decided
    }
}

#[derive(Debug)]
struct Rule {
    when: When,
    fault: Fault,
    /// Operations so far that the fault is about.
    seen: AtomicU64,
    /// Those that it befell.
    struck: AtomicU64,
}

fn is_any_or<V: PartialEq>(wanted: Option<V>, actual: V) -> bool {
    wanted.is_none_or(|wanted| wanted == actual)
}

impl<T: ReadMsr, const N: usize> ReadMsr for FaultInjector<T, N> {
    fn read_msr(&self, number: u32) -> Result<u64, MsrError> {
        let struck = self.strike(|fault| match fault {
            Fault::ReadMsr { msr, error } => is_any_or(msr, number).then_some(error),
            _ => None,
        });
        struck.map_or_else(|| self.inner.read_msr(number), Err)
    }
}

impl<T: WriteMsr, const N: usize> WriteMsr for FaultInjector<T, N> {
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), MsrError> {
        let struck = self.strike(|fault| match fault {
            Fault::WriteMsr { msr, error } => is_any_or(msr, number).then_some(error),
            _ => None,
        });
        struck.map_or_else(|| self.inner.write_msr(number, value), Err)
    }
}

impl<T: Vmcs, const N: usize> Vmcs for FaultInjector<T, N> {
    fn read(&self, actual: VmcsField) -> Result<u64, VmcsError> {
        let struck = self.strike(|fault| match fault {
            Fault::ReadVmcs { field, error } => is_any_or(field, actual).then_some(error),
            _ => None,
        });
        struck.map_or_else(|| self.inner.read(actual), Err)
    }

    fn write(&mut self, actual: VmcsField, value: u64) -> Result<(), VmcsError> {
        let struck = self.strike(|fault| match fault {
            Fault::WriteVmcs { field, error } => is_any_or(field, actual).then_some(error),
            _ => None,
        });
        struck.map_or_else(|| self.inner.write(actual, value), Err)
    }
}

impl<T: SendInterrupt, const N: usize> SendInterrupt for FaultInjector<T, N> {
    fn send_interrupt(&self, to: u32, vector: u8) -> Result<(), SendError> {
        let struck = self.strike(|fault| match fault {
            Fault::LoseInterrupt { destination } => is_any_or(destination, to).then_some(Ok(())),
            Fault::RefuseInterrupt { destination, error } => {
                is_any_or(destination, to).then_some(Err(error))
            }
            _ => None,
        });
        struck.unwrap_or_else(|| self.inner.send_interrupt(to, vector))
    }
}

impl<T: Doorbell, const N: usize> Doorbell for FaultInjector<T, N> {
    fn ring(&self, to: u32) -> Result<(), SendError> {
        let struck = self.strike(|fault| match fault {
            Fault::LoseDoorbell { destination } => is_any_or(destination, to).then_some(Ok(())),
            Fault::RefuseDoorbell { destination, error } => {
                is_any_or(destination, to).then_some(Err(error))
            }
            _ => None,
        });
        struck.unwrap_or_else(|| self.inner.ring(to))
    }
}

impl<T: Translate, const N: usize> Translate for FaultInjector<T, N> {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        let struck = self.strike(|fault| (fault == Fault::NoAddress).then_some(()));
        match struck {
            Some(()) => None,
            None => self.inner.physical_address(object),
        }
    }
}

impl<T: Clock, const N: usize> Clock for FaultInjector<T, N> {
    fn now(&self) -> u64 {
        self.inner.now()
    }
}

impl<T: Cpuid, const N: usize> Cpuid for FaultInjector<T, N> {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.inner.cpuid(leaf, subleaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FixedMsrs, MemoryVmcs, Unconnected, VirtualIsPhysical};
    use crate::wrap::Count;

    const THRESHOLD: VmcsField = VmcsField::new(0x401c);
    const STATUS: VmcsField = VmcsField::new(0x0810);
    const ERROR: VmcsError = VmcsError::NoCurrentVmcs;

    #[test]
    fn the_nth_write_fails_and_changes_nothing() {
        let fault = Fault::WriteVmcs { field: None, error: ERROR };
        let mut vmcs = FaultInjector::new(MemoryVmcs::<4>::new(), [(When::Nth(2), fault)]);
        assert_eq!(vmcs.write(THRESHOLD, 1), Ok(()));
        assert_eq!(vmcs.write(THRESHOLD, 2), Err(ERROR));
        assert_eq!(vmcs.read(THRESHOLD), Ok(1));
        assert_eq!(vmcs.write(THRESHOLD, 3), Ok(()));
        assert_eq!(vmcs.struck(), 1);
    }

    #[test]
    fn all_accesses_to_one_field_fail_and_others_do_not_count() {
        let error = VmcsError::Unsupported(STATUS);
        let field = Some(STATUS);
        let faults = [
            (When::Always, Fault::WriteVmcs { field, error }),
            (When::From(2), Fault::ReadVmcs { field, error }),
        ];
        let mut vmcs = FaultInjector::new(MemoryVmcs::<4>::new(), faults);
        assert_eq!(vmcs.write(THRESHOLD, 1), Ok(()));
        assert_eq!(vmcs.write(STATUS, 1), Err(error));
        assert_eq!(vmcs.write(STATUS, 1), Err(error));
        assert_eq!(vmcs.read(THRESHOLD), Ok(1));
        assert_eq!(vmcs.read(STATUS), Ok(0));
        assert_eq!(vmcs.read(STATUS), Err(error));
        assert_eq!(vmcs.read(STATUS), Err(error));
        assert_eq!((vmcs.struck_by(0), vmcs.struck_by(1)), (2, 2));
        assert_eq!(vmcs.struck_by(2), 0);
    }

    #[test]
    fn the_first_fault_decides_and_those_behind_it_still_count() {
        let write = |error| Fault::WriteVmcs { field: None, error };
        let faults = [
            (When::Nth(1), write(ERROR)),
            (When::Nth(2), write(VmcsError::Instruction(26))),
            (When::From(2), write(VmcsError::Instruction(7))),
        ];
        let mut vmcs = FaultInjector::new(MemoryVmcs::<4>::new(), faults);
        assert_eq!(vmcs.write(THRESHOLD, 1), Err(ERROR));
        assert_eq!(vmcs.write(THRESHOLD, 1), Err(VmcsError::Instruction(26)));
        assert_eq!(vmcs.write(THRESHOLD, 1), Err(VmcsError::Instruction(7)));
        assert_eq!([0, 1, 2].map(|index| vmcs.struck_by(index)), [1, 1, 1]);
    }

    #[test]
    fn a_lost_interrupt_looks_sent() {
        let faults = [
            (When::Nth(2), Fault::LoseInterrupt { destination: Some(1) }),
            (When::Always, Fault::RefuseInterrupt { destination: Some(3), error: SendError::Busy }),
        ];
        let sender = FaultInjector::new(Count::new(Unconnected), faults);
        let arrived = || sender.inner().counts().interrupts;
        assert_eq!(sender.send_interrupt(1, 0x20), Ok(()));
        assert_eq!(sender.send_interrupt(2, 0x20), Ok(()));
        assert_eq!(arrived(), 2);
        assert_eq!(sender.send_interrupt(1, 0x20), Ok(()));
        assert_eq!(arrived(), 2, "lost");
        assert_eq!(sender.send_interrupt(3, 0x20), Err(SendError::Busy));
        assert_eq!(arrived(), 2, "refused");
        assert_eq!(sender.send_interrupt(1, 0x20), Ok(()));
        assert_eq!(arrived(), 3);
    }

    #[test]
    fn msrs_and_addresses_fail_too() {
        let error = MsrError::GeneralProtection(0x48b);
        let msr = Some(0x48b);
        let faults =
            [(When::Always, Fault::ReadMsr { msr, error }), (When::Nth(1), Fault::NoAddress)];
        let msrs = FaultInjector::new(FixedMsrs(&[(0x48b, 1), (0x480, 2)]), faults);
        assert_eq!(msrs.read_msr(0x480), Ok(2));
        assert_eq!(msrs.read_msr(0x48b), Err(error));
        let map = FaultInjector::new(VirtualIsPhysical, faults);
        assert_eq!(map.physical_address(&msrs), None);
        assert!(map.physical_address(&msrs).is_some());
    }

    #[test]
    fn doorbells_are_lost_and_refused() {
        use crate::fake::Unconnected;
        use crate::wrap::Count;

        let faults = [
            (When::Nth(1), Fault::LoseDoorbell { destination: Some(2) }),
            (When::Always, Fault::RefuseDoorbell { destination: Some(3), error: SendError::Busy }),
        ];
        let doorbell = FaultInjector::new(Count::new(Unconnected), faults);
        assert_eq!(doorbell.ring(2), Ok(()));
        assert_eq!(doorbell.inner().counts().doorbells, 0);
        assert_eq!(doorbell.ring(3), Err(SendError::Busy));
        assert_eq!(doorbell.ring(2), Ok(()));
        assert_eq!(doorbell.inner().counts().doorbells, 1);
    }
}
