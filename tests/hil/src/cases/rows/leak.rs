//! What of the guest's MSR accesses reaches the physical APIC: with the driver's list nothing, without it whatever the
//! processor does not virtualize (SDM Vol. 3C 29.5: the access "operates normally").

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::access::{self, Fate};
use super::probe::{self, Probe};
use crate::cases::{Case, Failure, Mode, Setting, check, equal, record};
use crate::guest::{apic, hypercall};
use crate::hypervisor::{Config, HypervisorError, Level, vm};
use crate::log;
use crate::machine::apic::{self as physical, Register};
use crate::machine::self_check::Outcome;
use crate::machine::{interrupts as host, smp};
use crate::vmx::VmxError;

pub(super) const CASES: &[Case] = &[
    Case { name: "rows-msr-leak", cpus: 1, applies, run: leak },
    Case { name: "rows-msr-page-reads", cpus: 1, applies: registers, run: page_reads },
    Case { name: "rows-msr-unintercepted", cpus: 1, applies: virtualized, run: unintercepted },
];

fn applies(setting: Setting) -> bool {
    setting.mode == Mode::X2Apic
}

/// Where x2APIC MSRs are virtualized at all.
fn virtualized(setting: Setting) -> bool {
    applies(setting) && setting.level >= Level::ApicAccess
}

fn registers(setting: Setting) -> bool {
    applies(setting) && setting.level >= Level::RegisterVirtualization
}

const VECTOR: u8 = 0x45;
const SVR_MSR: u32 = 0x80f;
const ICR_MSR: u32 = 0x830;
/// What the guest writes to SVR: enabled, focus checking off, vector BB.
const GUEST_SVR: u64 = 0x3bb;

/// Registers of the physical APIC that the guest must not change, less those that its host uses meanwhile.
fn physical_state() -> [u32; 11] {
    [0x020, 0x080, 0x0d0, 0x0f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x3e0]
        .map(physical::read_offset)
}

/// The guest writes every MSR with values that the physical APIC would take, and sends interrupts to every ID around.
fn leak(setting: Setting) -> Result<(), Failure> {
    let state = physical_state();
    let received = host::count(VECTOR);
    probe::run(setting, |probe| {
        for round in 0..2 {
            for register in 0x800..=0x8ff {
                probe.at(register);
                let value = match register {
                    0x80b | 0x828 => 0,
                    0x832..=0x837 => 0x1_00bb + round,
                    0x83e => 0x8 + round,
                    SVR_MSR => GUEST_SVR - 0x200 + round,
                    ICR_MSR => continue,
                    _ => 0x40 + u64::from(VECTOR) * round,
                };
                access::write_msr(register, value);
            }
            for destination in [0, 1, 2, 3, 0xff, 0xffff_ffff] {
                access::write_msr(ICR_MSR, destination << 32 | u64::from(VECTOR));
            }
        }
        Ok(())
    })?;
    equal("physical interrupts received", host::count(VECTOR), received)?;
    check(physical_state() == state, "the physical APIC has changed")
}

/// Hypercall: exchange the driver's list for one that lets everything through.
const LET_THROUGH: u64 = probe::FREE;

/// A VM which has that hypercall.
fn config(setting: Setting) -> Config {
    let mut config = probe::config(setting);
    config.at_exit = |machine, vcpu, exit, current| {
        record::observe(machine, vcpu, exit, current);
        if probe::called(exit, current) == Some(LET_THROUGH) {
            // Four words for reads of MSRs 800 to 8FF, and four for writes (SDM Vol. 3C 24.6.9). The driver writes them anew
            // when the next VM is made.
            let words = vm::msr_bitmap(vcpu).words();
            for word in words[0x800 / 64..][..4].iter().chain(&words[256 + 0x800 / 64..][..4]) {
                word.store(0, Ordering::Relaxed);
            }
        }
    };
    config
}

/// With APIC-register virtualization every RDMSR reads 8 bytes of the page, be there a register or not: the machine's part,
/// for which the driver has its list.
fn page_reads(setting: Setting) -> Result<(), Failure> {
    probe::run_with(
        config(setting),
        setting,
        |probe| {
            hypercall::call(LET_THROUGH, 0, 0);
            for register in 0x800..=0x8ff {
                probe.at(register);
                let offset = ((register & 0xff) << 4) as u16;
                // Registers that are not there hold nothing, so something is put there.
                let own = matches!(register, 0x80b | 0x831 | 0x839 | 0x83f | 0x840..);
                let (low, high) = (probe.page().load(offset), probe.page().load(offset + 4));
                if own {
                    probe.page().store(offset, 0xa000_0000 | register);
                    probe.page().store(offset + 4, 0xb000_0000 | register);
                }
                let expected = probe.word(offset + 4) << 32 | probe.word(offset);
                let read = access::read_msr(register);
                probe.page().store(offset, low);
                probe.page().store(offset + 4, high);
                read.must(Fate::Silent)?;
                equal("value, that of the page", read.value()?, expected)?;
            }
            Ok(())
        },
        |_| Ok(()),
    )
}

/// Whether the CPU that runs the guest has its own APIC in x2APIC mode.
static HOST_X2APIC: AtomicU64 = AtomicU64::new(0);

/// Without the driver's list a WRMSR of SVR is no APIC write. It goes to the physical APIC: a #GP where that is in xAPIC
/// mode, else it takes the guest's value; and ICR sends a physical interrupt.
fn unintercepted(setting: Setting) -> Result<(), Failure> {
    let x2apic = physical::mode() == physical::Mode::X2Apic;
    HOST_X2APIC.store(x2apic.into(), Ordering::Relaxed);
    let before = physical::read(Register::Svr);
    let received = host::count_on(smp::this_cpu(), VECTOR);
    let own = u64::from(physical::id());
    let result = probe::run_with(config(setting), setting, write_through, |machine| {
        machine.context(0).word(0).store(own, Ordering::Relaxed);
        Ok(())
    });
    let after = physical::read(Register::Svr);
    physical::write(Register::Svr, before);
    result?;
    let expected = if x2apic { GUEST_SVR as u32 & 0x1ff } else { before };
    equal("physical SVR", after & 0x1ff, expected & 0x1ff)?;
    let sent = host::count_on(smp::this_cpu(), VECTOR) - received;
    equal("physical interrupts from the guest", sent, u64::from(x2apic))
}

/// [`leak`] and [`unintercepted`] where the host's APIC is in x2APIC mode: on the last CPU, which `machine-x2apic` has left so.
pub(super) fn host_x2apic() -> Outcome {
    static RESULT: Mutex<Option<Result<(), Failure>>> = Mutex::new(None);
    let cpu = smp::cpu_count() - 1;
    if cpu == 0 {
        return Outcome::Skip("one CPU");
    }
    smp::run_on(cpu, |_| {
        let at = |level| Setting { level, mode: Mode::X2Apic };
        *RESULT.lock() = Some(match physical::mode() {
            physical::Mode::X2Apic => Level::VT_X
                .into_iter()
                .try_for_each(|level| leak(at(level)))
                .and_then(|()| unintercepted(at(Level::RegisterVirtualization))),
            _ => Err(Failure::Skip("no CPU with its APIC in x2APIC mode")),
        });
    });
    smp::wait_idle(cpu);
    match RESULT.lock().take() {
        Some(Ok(())) => Outcome::Pass,
        Some(Err(Failure::Skip(reason))) => Outcome::Skip(reason),
        Some(Err(Failure::Hypervisor(HypervisorError::Vmx(VmxError::NoVmx)))) => {
            Outcome::Skip("no VMX")
        }
        Some(Err(failure)) => {
            log!("{failure}");
            Outcome::Fail("see the log")
        }
        None => Outcome::Fail("not run"),
    }
}

fn write_through(probe: &Probe) -> Result<(), Failure> {
    hypercall::call(LET_THROUGH, 0, 0);
    let own = probe.context.word(0).load(Ordering::Relaxed);
    // Bit 9 is reserved on processors without focus checking, so it is left out.
    let writes = [(SVR_MSR, GUEST_SVR & 0x1ff), (ICR_MSR, own << 32 | u64::from(VECTOR))];
    for (register, value) in writes {
        probe.at(register);
        let offset = ((register & 0xff) << 4) as u16;
        let before = probe.word(offset);
        let write = access::write_msr(register, value);
        write.must(Fate::Silent)?;
        if HOST_X2APIC.load(Ordering::Relaxed) == 0 {
            write.faulted()?;
        } else {
            write.value()?;
        }
        equal("page after the write", probe.word(offset), before)?;
    }
    equal("SVR in the page", probe.word(apic::SVR), 0x1ffu64)
}
