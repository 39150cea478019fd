//! Timers: by what they do, not by when.

use std::time::{Duration, Instant};

use vlapic_core::{ApicBase, IA32_TSC_DEADLINE, LvtEntry, Mode, Register};

use super::deviation::{Deviation, Step, explain};
use super::kernel::Unavailable;
use super::operation::{Operation, Size};
use super::run::Difference;
use super::sides::{Found, Sides};
use super::state::{Answer, View};

impl Sides {
    /// A timer that is started, expires or not, and is stopped.
    pub(super) fn timer(
        &mut self,
        vcpu: usize,
        operation: &Operation,
        bases: &[ApicBase],
        found: &mut Found,
    ) -> Result<Option<Difference>, Unavailable> {
        let Operation::Timer { mode, vector, masked, divide, expires, .. } = *operation else {
            return Ok(None);
        };
        let Some(way) = Way::of(bases[vcpu]) else { return Ok(None) };
        let vector = if vector < 16 { vector + 16 } else { vector };
        let entry = u32::from(vector) | u32::from(masked) << 16 | u32::from(mode) << 17;
        let timer = Register::Lvt(LvtEntry::Timer);
        self.both(vcpu, way, Register::DivideConfiguration, divide.into())?;
        self.both(vcpu, way, timer, entry)?;
        let deadline = mode == 2;
        if deadline {
            let (past, future) = self.ours.deadlines(vcpu);
            let ours = if expires { past } else { future };
            self.ours.write_msr(vcpu, IA32_TSC_DEADLINE, ours);
            let far = self.kernel.tsc(vcpu)? + (1 << 42);
            let its = if expires { 1 } else { far };
            self.kernel.write_msr(vcpu, IA32_TSC_DEADLINE, its, false)?;
        } else {
            let count = if expires { 100 } else { 0xFFFF_FFFF };
            self.both(vcpu, way, Register::InitialCount, count)?;
        }
        if expires {
            self.ours.pass_ages(vcpu);
        }
        let ours = self.ours.view(vcpu);
        let patience = Instant::now() + Duration::from_millis(200);
        let difference = loop {
            if expires && !deadline {
                // The kernel lets no periodic timer expire more often than every 200 us.
                std::thread::sleep(Duration::from_micros(250));
            }
            self.kernel.enter(vcpu)?;
            let kernel = self.kernel.view(vcpu)?;
            let difference = self.compare(vcpu, operation, bases, ours, kernel);
            if difference.is_none() || !expires || Instant::now() > patience {
                break difference;
            }
        };
        found.comparisons += 65;
        if difference.is_some() {
            return Ok(difference);
        }
        if deadline {
            let ours = self.ours.read_msr(vcpu, IA32_TSC_DEADLINE);
            let its = self.kernel.read_msr(vcpu, IA32_TSC_DEADLINE, false)?;
            found.comparisons += 1;
            let entry = self.ours.view(vcpu).word(timer);
            let armed = |answer: Answer| answer.value.is_some_and(|value| value != 0);
            if armed(ours) != armed(its) {
                if expires && entry & 0x1_0000 != 0 && ours.value == Some(0) && its.value == Some(1)
                {
                    found.deviations.count(Deviation::MaskedDeadline);
                } else {
                    return Ok(Some(Difference::Answer { ours, kernel: its }));
                }
            }
            self.ours.write_msr(vcpu, IA32_TSC_DEADLINE, 0);
            self.kernel.write_msr(vcpu, IA32_TSC_DEADLINE, 0, false)?;
        } else {
            self.both(vcpu, way, Register::InitialCount, 0)?;
        }
        self.both(vcpu, way, timer, 0x1_0000)?;
        Ok(None)
    }

    /// Writes a register of both sides.
    fn both(
        &mut self,
        vcpu: usize,
        way: Way,
        register: Register,
        value: u32,
    ) -> Result<(), Unavailable> {
        let operation = match way {
            Way::Memory(base) => Operation::Store {
                vcpu,
                address: base + u32::from(register.offset()),
                size: Size::Dword,
                value,
            },
            Way::Msr => Operation::WriteMsr {
                vcpu,
                msr: register.msr(),
                value: value.into(),
                in_guest: false,
            },
        };
        let _ = self.do_ours(&operation);
        self.do_kernel(&operation).map(drop)
    }

    /// One vCPU in the middle of an operation.
    fn compare(
        &self,
        vcpu: usize,
        operation: &Operation,
        bases: &[ApicBase],
        ours: View,
        kernel: View,
    ) -> Option<Difference> {
        let mut step = Step {
            operation: *operation,
            setup: &self.setup,
            smm: self.kernel.smm,
            before: &self.views[vcpu..=vcpu],
            bases: &bases[vcpu..=vcpu],
            ours: vec![ours],
            kernel: vec![kernel],
            our_answer: Answer::default(),
            kernel_answer: Answer::default(),
            unseen: false,
            several: None,
            rows: Vec::new(),
        };
        explain(&mut step)
    }
}

/// How registers are written in a mode.
#[derive(Clone, Copy)]
enum Way {
    Memory(u32),
    Msr,
}

impl Way {
    /// Where the window is now; none above 4 GiB, where the guest does not reach.
    fn of(base: ApicBase) -> Option<Self> {
        match base.mode() {
            Mode::XApic => u32::try_from(base.address()).ok().map(Self::Memory),
            Mode::X2Apic => Some(Self::Msr),
            Mode::Disabled => None,
        }
    }
}
