//! The guest's accesses to its APIC, each with the place of its instruction and the exits that came of it.

use core::arch::asm;

use crate::cases::record::{self, Record};
use crate::cases::{Failure, check, equal};
use crate::guest::{Fault, apic, cpu};
use crate::vmx::Reason;

/// One access that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Addresses of the instruction and of the one behind it.
    start: u64,
    end: u64,
    /// What was read, or the exception that was taken instead.
    pub(super) result: Result<u64, Fault>,
    /// How many exits came of it, and the first of them.
    pub(super) exits: u64,
    pub(super) exit: Option<Record>,
}

/// What an access must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// No exit.
    Silent,
    /// An exit before the instruction is done: fault-like.
    Refused { reason: Reason, qualification: u64 },
    /// The same for a page that is not there: an EPT violation at this address.
    Missing { address: u64 },
    /// An exit after the instruction: trap-like.
    Trapped { reason: Reason, qualification: u64 },
}

impl Access {
    /// Checks the exits. Which exit follows the first one is not the access's.
    pub(super) fn must(&self, fate: Fate) -> Result<(), Failure> {
        let Some(exit) = self.exit else {
            return check(fate == Fate::Silent, "no exit");
        };
        match fate {
            Fate::Silent => Err(Failure::Differs {
                what: "an exit, of reason",
                expected: 0,
                seen: exit.reason.number().into(),
            }),
            Fate::Refused { reason, qualification } => {
                equal("reason", exit.reason.number(), reason.number())?;
                equal("qualification", exit.qualification, qualification)?;
                equal("RIP, that of the instruction", exit.rip, self.start)
            }
            Fate::Missing { address } => {
                equal("reason", exit.reason.number(), Reason::EptViolation.number())?;
                equal("guest-physical address", exit.guest_physical, address)?;
                equal("RIP, that of the instruction", exit.rip, self.start)
            }
            Fate::Trapped { reason, qualification } => {
                equal("reason", exit.reason.number(), reason.number())?;
                equal("qualification", exit.qualification, qualification)?;
                equal("RIP, behind the instruction", exit.rip, self.end)
            }
        }
    }

    /// What was read.
    pub(super) fn value(&self) -> Result<u64, Failure> {
        self.result.map_err(|_| Failure::Wrong("an exception instead of the access"))
    }

    /// The access must have been refused with #GP(0), at its own instruction.
    pub(super) fn faulted(&self) -> Result<(), Failure> {
        let Err(fault) = self.result else { return Err(Failure::Wrong("no #GP")) };
        equal("exception", fault.vector, 13u64)?;
        equal("error code", fault.error_code, 0u64)?;
        equal("RIP of #GP", fault.rip, self.start)
    }

    /// Makes the access and counts its exits. `make` returns start, end and what was read.
    fn of(make: impl FnOnce() -> (u64, u64, u64)) -> Self {
        record::clear();
        let (start, end, value) = make();
        let result = cpu::settle().map(|()| value);
        Self { start, end, result, exits: record::total(), exit: record::get(0) }
    }
}

/// One MOV from memory into a register, or the reverse.
macro_rules! memory {
    ($name:ident, load, $class:ident, $type:ty, $template:literal) => {
        pub(super) fn $name(offset: u16) -> Access {
            Access::of(|| {
                let (start, end): (u64, u64);
                let value: $type;
                // SAFETY: guest code; the register window is mapped, or its EPT violation is handled. A load from it changes
                // nothing that Rust knows of.
                unsafe {
                    asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "2:", $template, "3:",
                        start = out(reg) start, end = out(reg) end, value = out($class) value,
                        address = in(reg) apic::DEFAULT_BASE + u64::from(offset), options(nostack));
                }
                (start, end, u64::from(value))
            })
        }
    };
    ($name:ident, store, $class:ident, $type:ty, $template:literal) => {
        pub(super) fn $name(offset: u16, value: $type) -> Access {
            Access::of(|| {
                let (start, end): (u64, u64);
                // SAFETY: as for a load. What a store makes the APIC do is interrupts, for which the IDT is ready.
                unsafe {
                    asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "2:", $template, "3:",
                        start = out(reg) start, end = out(reg) end, value = in($class) value,
                        address = in(reg) apic::DEFAULT_BASE + u64::from(offset), options(nostack));
                }
                (start, end, 0)
            })
        }
    };
}

memory!(load, load, reg, u32, "mov {value:e}, [{address}]");
memory!(load_byte, load, reg_byte, u8, "mov {value}, [{address}]");
memory!(load_word, load, reg, u16, "mov {value:x}, [{address}]");
memory!(load_wide, load, reg, u64, "mov {value}, [{address}]");
memory!(store, store, reg, u32, "mov [{address}], {value:e}");
memory!(store_wide, store, reg, u64, "mov [{address}], {value}");

/// RDMSR.
pub(super) fn read_msr(register: u32) -> Access {
    Access::of(|| {
        let (start, end): (u64, u64);
        let (low, high): (u32, u32);
        // SAFETY: guest code at CPL 0; GS:8 is the context's fixup, which makes a #GP go on behind the instruction.
        unsafe {
            asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "mov gs:[8], {end}", "2: rdmsr", "3:",
                start = out(reg) start, end = out(reg) end, in("ecx") register,
                inout("eax") 0_u32 => low, inout("edx") 0_u32 => high, options(nostack));
        }
        (start, end, u64::from(high) << 32 | u64::from(low))
    })
}

/// WRMSR of one of the APIC's registers.
pub(super) fn write_msr(register: u32, value: u64) -> Access {
    Access::of(|| {
        let (start, end): (u64, u64);
        // SAFETY: as in `read_msr`; no state that compiled code relies on changes.
        unsafe {
            asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "mov gs:[8], {end}", "2: wrmsr", "3:",
                start = out(reg) start, end = out(reg) end, in("ecx") register,
                in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
        }
        (start, end, 0)
    })
}

/// MOV from CR8.
pub(super) fn read_cr8() -> Access {
    Access::of(|| {
        let (start, end, value): (u64, u64, u64);
        // SAFETY: guest code at CPL 0; no side effects.
        unsafe {
            asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "2: mov {value}, cr8", "3:",
                start = out(reg) start, end = out(reg) end, value = out(reg) value, options(nostack));
        }
        (start, end, value)
    })
}

/// MOV to CR8.
pub(super) fn write_cr8(value: u64) -> Access {
    Access::of(|| {
        let (start, end): (u64, u64);
        // SAFETY: as in `read_msr`; the task priority only delays interrupts.
        unsafe {
            asm!("lea {start}, [rip + 2f]", "lea {end}, [rip + 3f]", "mov gs:[8], {end}", "2: mov cr8, {value}", "3:",
                start = out(reg) start, end = out(reg) end, value = in(reg) value, options(nostack));
        }
        (start, end, 0)
    })
}

/// For an access whose result is looked at elsewhere: here only its exits count.
pub(super) fn ignore<T>(_: T) {}
