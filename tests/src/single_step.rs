//! Something else happens between two instructions of real code: the processor's single-step trap lets a test choose
//! after which.
//!
//! A race test by threads meets a window of a few nanoseconds by luck. Here every point that matters is tried, one
//! after the other, so that what goes wrong in one of them goes wrong each time. What the processor reorders is not
//! seen; that is what the loom models are for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Once;

/// What is done after each instruction, given their number so far; `false` ends the stepping.
type Each<'a> = &'a dyn Fn(u32) -> bool;

/// Runs `code`, and `each` on the same thread after each of its instructions, until it returns `false`.
///
/// `each` runs in a signal handler: it must not panic, allocate or lock.
pub fn step<R>(each: Each<'_>, code: impl FnOnce() -> R) -> R {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(install);
    // SAFETY: only the lifetime changes, and the handler, the only one to use the reference, does so no longer than
    // PLAN holds it: until `disarm` is dropped, in this function.
    let each: Each<'static> = unsafe { std::mem::transmute(each) };
    let _disarm = Disarm;
    PLAN.set(Some(Plan { count: 0, each }));
    set_trap_flag(true);
    code()
}

/// Runs `code`, and `meanwhile` on the same thread after so many of its instructions. Whether there were so many.
///
/// `meanwhile` runs in a signal handler: it must not panic, allocate or lock.
pub fn interrupt(instructions: u32, meanwhile: &dyn Fn(), code: impl FnOnce()) -> bool {
    let reached = Cell::new(false);
    let each = |count| {
        if count >= instructions {
            meanwhile();
            reached.set(true);
        }
        !reached.get()
    };
    step(&each, code);
    reached.get()
}

/// After how many instructions of `code` somebody else could first see what it changes of `watched`, and after how many
/// not yet; and the first of all.
///
/// For whoever only looks at `watched` and leaves something for `code` to find, these are the points that matter: as
/// long as `watched` stays the same, the later it comes the less of `code` is left to find it.
pub fn points(watched: &dyn Fn() -> u64, code: impl FnOnce()) -> BTreeSet<u32> {
    let changes = RefCell::new(Vec::with_capacity(MOST_CHANGES));
    let last = Cell::new(watched());
    let each = |count| {
        let now = watched();
        let mut changes = changes.borrow_mut();
        if last.replace(now) != now && changes.len() < MOST_CHANGES {
            changes.push(count);
        }
        true
    };
    step(&each, code);
    changes.into_inner().into_iter().flat_map(|count| [count - 1, count]).chain([1]).collect()
}

const MOST_CHANGES: usize = 64;

#[derive(Clone, Copy)]
struct Plan {
    count: u32,
    each: Each<'static>,
}

thread_local! {
    /// What the handler has to do on this thread.
    static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
}

/// Nothing is left of the plan, however the code ended.
struct Disarm;

impl Drop for Disarm {
    fn drop(&mut self) {
        set_trap_flag(false);
        PLAN.set(None);
    }
}

/// RFLAGS.TF.
const TRAP_FLAG: i64 = 1 << 8;

#[inline(never)]
fn set_trap_flag(set: bool) {
    let flag = if set { TRAP_FLAG } else { 0 };
    // SAFETY: pushes RFLAGS, changes TF and no other bit but the status flags, pops it. With TF set each instruction from
    // the second on is followed by SIGTRAP, for which `install` has put a handler in place. The stack is as before.
    unsafe {
        core::arch::asm!(
            "pushfq",
            "and qword ptr [rsp], ~0x100",
            "or [rsp], {flag}",
            "popfq",
            flag = in(reg) flag,
        );
    }
}

fn install() {
    // SAFETY: all zeros is a sigaction: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = trap as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and `trap` has the signature that SA_SIGINFO asks for.
    let result = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0, "SIGTRAP can be handled");
}

/// After one instruction. The kernel has cleared TF for the handler, and restores what the context says.
extern "C" fn trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(Plan { count, each }) = PLAN.get() {
        let count = count + 1;
        PLAN.set(Some(Plan { count, each }));
        if each(count) {
            return;
        }
        PLAN.set(None);
    }
    // SAFETY: the kernel hands a handler with SA_SIGINFO the context of the interrupted thread, which is nobody else's
    // while the handler runs.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP_FLAG;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two stores, which somebody sees before, between and after.
    #[test]
    fn the_points_that_matter_are_before_and_after_each_change() {
        let word = Cell::new(0);
        let code = || {
            std::hint::black_box(&word).set(1);
            std::hint::black_box(&word).set(3);
        };
        code();
        word.set(0);
        let points = points(&|| word.get(), code);
        assert!(matches!(points.len(), 4 | 5), "{points:?}");
        let seen = Cell::new(0);
        let mut all = BTreeSet::new();
        for point in points {
            word.set(0);
            assert!(interrupt(point, &|| seen.set(word.get()), code));
            assert_eq!(word.get(), 3);
            all.insert(seen.get());
        }
        assert_eq!(Vec::from_iter(all), [0, 1, 3]);
        assert!(!interrupt(10_000, &|| seen.set(7), code));
        assert_ne!(seen.get(), 7);
    }
}
