//! More than one CPU: startup IPIs, guests side by side, a guest that moves.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use super::{Failure, check, turn, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::{self, Start, programs, startup};
use crate::log;
use crate::machine::frames::OwnedFrame;
use crate::machine::{apic, pit, smp};
use crate::vmx::ept::{Ept, MemoryType, Permissions};
use crate::vmx::interrupt::Activity;
use crate::vmx::state::Options;
use crate::vmx::{Reason, Vcpu, capability};

/// Guest-physical page of the trampoline. The host's own memory at that address is not touched: the EPT leads elsewhere.
const VECTOR: u8 = 0x9a;

/// What a startup IPI does: real mode at the vector's page, and from there to the same Rust code.
pub(super) fn sipi() -> Result<(), Failure> {
    let capability = capability::enable()?;
    if !capability.unrestricted_guest() {
        return Err(Failure::Skip("no unrestricted guest"));
    }
    let options = Options { unrestricted: true, ..Options::default() };
    let mut page = OwnedFrame::new();
    with_guest(options, programs::add, 0, |current, ept, context| {
        let address = u32::from(VECTOR) << 12;
        // SAFETY: CPL 0; reading CR3 has no side effects.
        let cr3 = unsafe { x86::controlregs::cr3() };
        let start = Start::new(context, programs::add, 40);
        startup::write_trampoline(page.bytes(), address, cr3, &start);
        let host = page.physical_address();
        ept.map_4k(u64::from(address), host, Permissions::ALL, MemoryType::WriteBack)?;
        ept.invalidate();
        current.start_at_sipi(VECTOR)?;
        match until_call(current)? {
            Hypercall::Log(text) => log!("guest: {text}"),
            other => {
                log!("{other:x?}");
                return Err(Failure::Wrong("real mode led elsewhere"));
            }
        }
        check(context.word(1).load(Ordering::Relaxed) == 40, "the context is another")?;
        until_finish(current, 60)?;
        check(current.exits().total() == 2, "the way there exited")
    })
}

/// A guest that waits for a startup IPI exits with the vector when a physical one comes.
pub(super) fn wait_for_sipi() -> Result<(), Failure> {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    const FAILED: u64 = 1 << 32;
    if smp::cpu_count() == 1 {
        return Err(Failure::Skip("one CPU"));
    }
    capability::enable()?;
    SEEN.store(0, Ordering::Relaxed);
    smp::run_on(1, |_| {
        let result = with_guest(Options::default(), programs::add, 0, |current, _, _| {
            current.set_activity(Activity::WaitForSipi)?;
            let exit = turn(current)?;
            let seen = u64::from(exit.reason.number()) << 8 | exit.qualification & 0xff;
            SEEN.store(seen, Ordering::Release);
            Ok(())
        });
        if result.is_err() {
            SEEN.store(FAILED, Ordering::Release);
        }
    });
    // A startup IPI before the guest waits is lost, as in life, so it is sent until one arrives.
    for _ in 0..1000 {
        apic::send_startup(Some(smp::apic_id(1)), VECTOR);
        pit::delay(100);
        if SEEN.load(Ordering::Acquire) != 0 {
            break;
        }
    }
    smp::wait_idle(1);
    let startup_ipi = u64::from(Reason::StartupIpi.number()) << 8 | u64::from(VECTOR);
    check(SEEN.load(Ordering::Acquire) == startup_ipi, "another exit came, or none")
}

const ROUNDS: u64 = 1000;

pub(super) fn all_cpus() -> Result<(), Failure> {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    capability::enable()?;
    PASSED.store(0, Ordering::Relaxed);
    let work = |cpu: usize| {
        let result = with_guest(Options::default(), programs::count_up, ROUNDS, |current, _, _| {
            (0..ROUNDS).try_for_each(|round| until_phase(current, round))?;
            until_finish(current, ROUNDS * (ROUNDS - 1) / 2)
        });
        match result {
            Ok(()) => drop(PASSED.fetch_add(1, Ordering::Relaxed)),
            Err(failure) => log!("cpu {cpu}: {failure:?}"),
        }
    };
    let cpus = smp::cpu_count().min(guest::MAX_VCPUS);
    (1..cpus).for_each(|cpu| smp::run_on(cpu, work));
    work(0);
    (1..cpus).for_each(smp::wait_idle);
    check(PASSED.load(Ordering::Relaxed) as usize == cpus, "not all guests passed")
}

/// The one vCPU of [`migrate`], and how many of its phases are done.
static MOVING: Mutex<Option<(Vcpu, u64)>> = Mutex::new(None);

/// One vCPU runs its program in parts, turn about on two CPUs.
pub(super) fn migrate() -> Result<(), Failure> {
    const PART: u64 = ROUNDS / 10;
    if smp::cpu_count() == 1 {
        return Err(Failure::Skip("one CPU"));
    }
    let part = |cpu: usize| {
        if let Err(failure) = run_part(PART) {
            log!("cpu {cpu}: {failure:?}");
        }
    };
    let capability = capability::enable()?;
    let ept = Ept::identity(&capability)?;
    let context = guest::context(0);
    context.reset();
    let mut vcpu = Vcpu::new(capability, ept.pointer(), Options::default())?;
    vcpu.load()?.start(&Start::new(context, programs::count_up, ROUNDS))?;
    *MOVING.lock() = Some((vcpu, 0));
    for _ in 0..ROUNDS / PART / 2 {
        part(0);
        smp::run_on(1, part);
        smp::wait_idle(1);
    }
    let Some((mut vcpu, done)) = MOVING.lock().take() else {
        return Err(Failure::Wrong("the vCPU got lost"));
    };
    check(done == ROUNDS, "a part was not finished")?;
    until_finish(&mut vcpu.load()?, ROUNDS * (ROUNDS - 1) / 2)?;
    check(vcpu.exits().of(Reason::Vmcall) == ROUNDS + 1, "exits were miscounted on the way")
}

/// The next `phases` of the moving vCPU, on the calling CPU.
fn run_part(phases: u64) -> Result<(), Failure> {
    capability::enable()?;
    let mut moving = MOVING.lock();
    let (vcpu, done) = moving.as_mut().ok_or(Failure::Wrong("there is no vCPU"))?;
    let mut current = vcpu.load()?;
    for _ in 0..phases {
        until_phase(&mut current, *done)?;
        *done += 1;
    }
    Ok(())
}
