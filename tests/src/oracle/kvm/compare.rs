//! The run.

use vlapic_core::{Bank, LvtEntry, Register};

use super::deviation::{Deviation, Deviations};
use super::kernel::{Kernel, Unavailable};
use super::operation::{Operation, Random};
use super::ours::Ours;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations done to both sides.
    pub operations: u64,
    /// Values compared.
    pub comparisons: u64,
    /// Known deviations and how often they were met.
    pub deviations: Deviations,
    /// Everything else that differed; the run ends at the first.
    pub mismatch: Option<Mismatch>,
}

/// A difference that no row explains.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The operations since the last reset, shrunk to those that are needed.
    pub operations: Vec<Operation>,
    /// What differed after the last of them.
    pub difference: Difference,
}

/// Something that is not the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// One side raised #GP.
    Fault {
        /// Whether ours did.
        ours: bool,
    },
    /// An MSR read as two values.
    Value {
        /// Ours.
        ours: u64,
        /// The kernel's.
        kernel: u64,
    },
    /// Different numbers of APICs accepted an MSI.
    Accepted {
        /// Ours.
        ours: usize,
        /// The kernel's.
        kernel: usize,
    },
    /// A register of a vCPU.
    Register {
        /// The vCPU.
        vcpu: usize,
        /// Its page offset.
        offset: u16,
        /// Ours.
        ours: u32,
        /// The kernel's.
        kernel: u32,
    },
    /// An NMI waits at one side only.
    Nmi {
        /// The vCPU.
        vcpu: usize,
        /// Whether at ours.
        ours: bool,
    },
}

/// Operations from one reset to the next.
const ROUND: u64 = 200;

/// Does `operations` operations from `seed` to VMs of one to eight vCPUs. `progress` is told of
/// every round.
///
/// # Errors
/// [`Unavailable`] if the kernel cannot be asked.
pub fn run(
    operations: u64,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> Result<Report, Unavailable> {
    let mut sides = (1..=8).map(Sides::new).collect::<Result<Vec<_>, _>>()?;
    let mut report = Report::default();
    let mut round = 0;
    while report.operations < operations && report.mismatch.is_none() {
        let index = (round % sides.len() as u64) as usize;
        let mut random = Random::new(seed ^ round.wrapping_mul(0xD129_0B26_53C2_77C5));
        let sides = &mut sides[index];
        let list: Vec<_> = (0..ROUND).map(|_| Operation::next(&mut random, sides.vcpus)).collect();
        if let Some((length, difference)) = sides.round(&list, &mut report)? {
            let operations = sides.shrink(&list[..length], difference)?;
            report.mismatch = Some(Mismatch { operations, difference });
        }
        round += 1;
        progress(report.operations);
    }
    Ok(report)
}

/// Both sides with the same number of vCPUs.
struct Sides {
    vcpus: usize,
    kernel: Kernel,
    ours: Ours,
}

impl Sides {
    fn new(vcpus: usize) -> Result<Self, Unavailable> {
        Ok(Self { vcpus, kernel: Kernel::new(vcpus)?, ours: Ours::new(vcpus) })
    }

    /// From RESET through `list`. The number of operations up to the first unexplained difference,
    /// and that difference.
    fn round(
        &mut self,
        list: &[Operation],
        report: &mut Report,
    ) -> Result<Option<(usize, Difference)>, Unavailable> {
        self.ours.reset();
        self.synchronise()?;
        for (index, operation) in list.iter().enumerate() {
            let differences = self.step(operation, &mut report.comparisons)?;
            report.operations += 1;
            let mut explained = false;
            for difference in differences {
                match Deviation::explaining(operation, &difference) {
                    Some(row) => report.deviations.count(row),
                    None => return Ok(Some((index + 1, difference))),
                }
                explained = true;
            }
            if explained {
                self.synchronise()?;
            }
        }
        Ok(None)
    }

    /// Leaves out operations one by one as long as the same kind of difference remains.
    fn shrink(
        &mut self,
        list: &[Operation],
        difference: Difference,
    ) -> Result<Vec<Operation>, Unavailable> {
        let mut list = list.to_vec();
        let mut index = list.len();
        while index > 0 {
            index -= 1;
            let mut shorter = list.clone();
            shorter.remove(index);
            let found = self.round(&shorter, &mut Report::default())?;
            if let Some((length, _)) = found.filter(|(_, found)| same_kind(found, &difference)) {
                shorter.truncate(length);
                list = shorter;
                index = index.min(list.len());
            }
        }
        Ok(list)
    }

    /// Does `operation` to both sides and compares everything.
    fn step(
        &mut self,
        operation: &Operation,
        comparisons: &mut u64,
    ) -> Result<Vec<Difference>, Unavailable> {
        let mut differences = Vec::new();
        let mut nmis = false;
        match *operation {
            Operation::Write { vcpu, msr, value } => {
                let ours = self.ours.write(vcpu, msr, value).is_err();
                let kernel = !self.kernel.write(vcpu, msr, value)?;
                if ours != kernel {
                    differences.push(Difference::Fault { ours });
                }
                nmis = msr == Register::IcrLow.msr() && value >> 8 & 7 == 4;
            }
            Operation::Read { vcpu, msr } => {
                let ours = self.ours.read(vcpu, msr).ok();
                match (ours, self.kernel.read(vcpu, msr)?) {
                    (Some(ours), Some(kernel)) if ours != kernel => {
                        differences.push(Difference::Value { ours, kernel });
                    }
                    (ours, kernel) if ours.is_some() != kernel.is_some() => {
                        differences.push(Difference::Fault { ours: ours.is_none() });
                    }
                    _ => {}
                }
            }
            Operation::Msi { address, data } => {
                let ours = self.ours.msi(address, data);
                let kernel = self.kernel.msi(address, data)?;
                if ours != kernel {
                    differences.push(Difference::Accepted { ours, kernel });
                }
            }
            Operation::Take { vcpu } => self.take(vcpu)?,
        }
        *comparisons += 1;
        for vcpu in 0..self.vcpus {
            self.compare_page(vcpu, comparisons, &mut differences)?;
            if nmis {
                *comparisons += 1;
                let ours = self.ours.take_nmi(vcpu);
                if ours != self.kernel.take_nmi(vcpu)? {
                    differences.push(Difference::Nmi { vcpu, ours });
                }
            }
        }
        Ok(differences)
    }

    /// Moves the vector that ours takes from IRR to ISR at the kernel's side as well; no guest runs
    /// that would take it there. Which one it has to be follows from registers already compared.
    fn take(&mut self, vcpu: usize) -> Result<(), Unavailable> {
        let Some(vector) = self.ours.take(vcpu) else { return Ok(()) };
        let mut registers = self.kernel.registers(vcpu)?;
        let bank = Bank::new(vector.get() >> 5);
        let bit = 1 << (vector.get() & 31);
        for (register, set) in [(Register::Irr(bank), false), (Register::Isr(bank), true)] {
            let word = registers.load(register.offset());
            registers.store(register.offset(), if set { word | bit } else { word & !bit });
        }
        self.kernel.set_registers(vcpu, &registers)
    }

    fn compare_page(
        &self,
        vcpu: usize,
        comparisons: &mut u64,
        differences: &mut Vec<Difference>,
    ) -> Result<(), Unavailable> {
        let kernel = self.kernel.registers(vcpu)?;
        for register in compared() {
            let offset = register.offset();
            let (ours, kernel) = (self.value(vcpu, register), kernel.load(offset));
            *comparisons += 1;
            // The kernel's version register stands there from the beginning.
            if ours != kernel && register != Register::Version {
                differences.push(Difference::Register { vcpu, offset, ours, kernel });
            }
        }
        Ok(())
    }

    /// Gives the kernel's vCPUs the registers that ours have.
    fn synchronise(&mut self) -> Result<(), Unavailable> {
        for vcpu in 0..self.vcpus {
            let mut registers = self.kernel.registers(vcpu)?;
            for register in compared().filter(|&register| register != Register::Version) {
                registers.store(register.offset(), self.value(vcpu, register));
            }
            self.kernel.set_registers(vcpu, &registers)?;
            let _ = (self.kernel.take_nmi(vcpu)?, self.ours.take_nmi(vcpu));
        }
        Ok(())
    }

    /// Ours, as the kernel lays it out: ICR in two halves, whatever the mode.
    fn value(&self, vcpu: usize, register: Register) -> u32 {
        match register {
            Register::Ppr => self.ours.ppr(vcpu),
            Register::IcrHigh => self.ours.register(vcpu, 0x304),
            _ => self.ours.register(vcpu, register.offset()),
        }
    }
}

fn same_kind(one: &Difference, other: &Difference) -> bool {
    core::mem::discriminant(one) == core::mem::discriminant(other)
}

/// The registers that are compared after every operation.
fn compared() -> impl Iterator<Item = Register> {
    let banks = (0..8).map(Bank::new);
    let fixed = [
        Register::Id,
        Register::Version,
        Register::Tpr,
        Register::Ppr,
        Register::Ldr,
        Register::Svr,
        Register::Esr,
        Register::IcrLow,
        Register::IcrHigh,
        Register::InitialCount,
        Register::DivideConfiguration,
    ];
    let entries = LvtEntry::ALL.into_iter().filter(|&entry| entry != LvtEntry::Cmci);
    fixed
        .into_iter()
        .chain(entries.map(Register::Lvt))
        .chain(banks.clone().map(Register::Isr))
        .chain(banks.clone().map(Register::Tmr))
        .chain(banks.map(Register::Irr))
}
