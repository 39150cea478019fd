//! More than one CPU: a start in real mode, guests side by side, a guest that moves.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

use super::{Failure, check, until_call, until_finish, until_phase, with_guest};
use crate::guest::hypercall::Hypercall;
use crate::guest::{self, Start, programs, startup};
use crate::log;
use crate::machine::frames::OwnedFrame;
use crate::machine::smp;
use crate::svm::npt::{MemoryType, Npt, Permissions};
use crate::svm::state::Options;
use crate::svm::{Reason, Vcpu, capability};

/// Guest-physical page of the trampoline. The host's own memory at that address is not touched: the tables lead elsewhere.
const VECTOR: u8 = 0x9a;

/// What a startup IPI does: real mode at the vector's page, and from there to the same Rust code.
pub(super) fn sipi() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    with_guest(Options::default(), programs::add, 0, |current, npt, context| {
        let address = u32::from(VECTOR) << 12;
        // SAFETY: CPL 0; reading CR3 has no side effects.
        let cr3 = unsafe { x86::controlregs::cr3() };
        let start = Start::new(context, programs::add, 40);
        startup::write_trampoline(page.bytes(), address, cr3, &start);
        let host = page.physical_address();
        npt.map_4k(u64::from(address), host, Permissions::ALL, MemoryType::WriteBack)?;
        current.flush_translations();
        current.start_at_sipi(VECTOR);
        match until_call(current)? {
            Hypercall::Log(text) => log!("guest: {text}"),
            other => {
                log!("{other:x?}");
                return Err(Failure::Wrong("real mode led elsewhere"));
            }
        }
        check(context.word(1).load(Ordering::Relaxed) == 40, "the context is another")?;
        until_finish(current, 60)?;
        let interrupts = current.exits().of(Reason::Interrupt);
        check(current.exits().total() - interrupts == 2, "the way there exited")
    })
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
    let capability = capability::enable()?;
    if smp::cpu_count() == 1 {
        return Err(Failure::Skip("one CPU"));
    }
    let part = |cpu: usize| {
        if let Err(failure) = run_part(PART) {
            log!("cpu {cpu}: {failure:?}");
        }
    };
    let npt = Npt::identity()?;
    let context = guest::context(0);
    context.reset();
    let mut vcpu = Vcpu::new(capability, npt.root(), Options::default());
    vcpu.load().start(&Start::new(context, programs::count_up, ROUNDS));
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
    until_finish(&mut vcpu.load(), ROUNDS * (ROUNDS - 1) / 2)?;
    let calls = vcpu.exits().of(Reason::Vmmcall);
    check(calls == ROUNDS + 1, "exits were miscounted on the way")
}

/// The next `phases` of the moving vCPU, on the calling CPU.
fn run_part(phases: u64) -> Result<(), Failure> {
    capability::enable()?;
    let mut moving = MOVING.lock();
    let (vcpu, done) = moving.as_mut().ok_or(Failure::Wrong("there is no vCPU"))?;
    let mut current = vcpu.load();
    for _ in 0..phases {
        until_phase(&mut current, *done)?;
        *done += 1;
    }
    Ok(())
}
