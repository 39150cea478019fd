//! Guest-physical memory: devices by nested page fault, and a page that is there without one.

use super::{Failure, check, until, until_finish, until_phase, with_guest};
use crate::guest::{apic, programs};
use crate::instruction::mov::Direction;
use crate::machine::apic as physical;
use crate::machine::frames::OwnedFrame;
use crate::svm::interrupt::Event;
use crate::svm::npt::{MemoryType, Permissions};
use crate::svm::state::Options;
use crate::svm::{Reason, vcpu};

const BASE: u64 = apic::DEFAULT_BASE;

/// The fault came of translating the guest's own address, not of walking its tables (APM Vol. 2 15.25.6).
const FINAL_TRANSLATION: u64 = 1 << 32;

pub(super) fn device() -> Result<(), Failure> {
    with_guest(Options::default(), programs::touch, 0, |current, _, _| {
        for (offset, width, stored, answer) in programs::TOUCHES {
            let exit = until(current, Reason::NestedPageFault)?;
            check(exit.guest_physical() == BASE + offset, "another address was touched")?;
            check(exit.is_write() == stored.is_some(), "a read is a write, or the reverse")?;
            check(exit.info_1 & FINAL_TRANSLATION != 0, "the guest's tables are at fault")?;
            let Ok(access) = current.decode_access() else {
                return Err(Failure::Wrong("the instruction was not decoded"));
            };
            check(access.width == width, "another width was decoded")?;
            let value = match access.direction {
                Direction::Store { value } => Some(value),
                Direction::Load { .. } => None,
            };
            check(value == stored, "another value was decoded")?;
            current.complete_access(&access, answer);
        }
        until_finish(current, programs::TOUCHED)
    })
}

/// A frame at the APIC's address takes the guest's store with no exit; when it is gone, the next store faults.
pub(super) fn silent_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    with_guest(Options::default(), programs::write_twice, 0, |current, npt, _| {
        let host = page.physical_address();
        npt.map_4k(BASE, host, Permissions::ALL, MemoryType::WriteBack)?;
        until_phase(current, 1)?;
        check(apart_from_interrupts(current) == 1, "the store was not silent")?;
        check(svr(&mut page) == 0x1ff, "the store did not land in the page")?;
        npt.unmap_4k(BASE)?;
        current.flush_translations();
        let exit = until(current, Reason::NestedPageFault)?;
        check(exit.guest_physical() == BASE + 0xf0, "another address was touched")?;
        check(svr(&mut page) == 0x1ff, "a store landed in a page that was gone")?;
        npt.map_4k(BASE, host, Permissions::ALL, MemoryType::WriteBack)?;
        current.flush_translations();
        // The instruction runs again.
        until_finish(current, 0x1fe)?;
        check(svr(&mut page) == 0x1fe, "the second store did not land in the page")
    })
}

/// A page that can be read costs no exit until it is written.
pub(super) fn read_only_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    page.bytes()[usize::from(apic::VERSION)..][..4].copy_from_slice(&0x5_0014_u32.to_le_bytes());
    with_guest(Options::default(), programs::read_and_write, 0, |current, npt, _| {
        let host = page.physical_address();
        npt.map_4k(BASE, host, Permissions::READ, MemoryType::WriteBack)?;
        let exit = until(current, Reason::NestedPageFault)?;
        check(apart_from_interrupts(current) == 1, "the read exited")?;
        let version = BASE + u64::from(apic::VERSION);
        check(exit.guest_physical() == version, "another address was touched")?;
        check(exit.is_write(), "the write is told as a read")?;
        let Ok(access) = current.decode_access() else {
            return Err(Failure::Wrong("the instruction was not decoded"));
        };
        current.complete_access(&access, 0);
        until_finish(current, 0x5_0014)
    })
}

/// The handlers write EOI before their hook, after it, or not at all.
pub(super) fn end_of_interrupt() -> Result<(), Failure> {
    let page = OwnedFrame::new();
    with_guest(Options::default(), programs::end_in_three_ways, 0, |current, npt, _| {
        let host = page.physical_address();
        npt.map_4k(BASE, host, Permissions::ALL, MemoryType::WriteBack)?;
        for vector in [programs::FIRST, programs::LAST, programs::NEVER] {
            until_phase(current, u64::from(vector))?;
            current.inject(Event::ExternalInterrupt(vector));
        }
        until_finish(current, 0b11_01_00)
    })
}

/// The host's own APIC, lent to the guest as it is: what a native oracle does.
pub(super) fn physical_apic() -> Result<(), Failure> {
    if physical::mode() != physical::Mode::XApic {
        return Err(Failure::Skip("the host is not in xAPIC mode"));
    }
    with_guest(Options::default(), programs::read_id, 0, |current, npt, _| {
        npt.map_4k(BASE, BASE, Permissions::ALL, MemoryType::Uncacheable)?;
        until_finish(current, u64::from(physical::id()))?;
        check(apart_from_interrupts(current) == 1, "the access exited")
    })
}

/// The exits that the guest caused.
fn apart_from_interrupts(current: &vcpu::Current<'_>) -> u64 {
    current.exits().total() - current.exits().of(Reason::Interrupt)
}

fn svr(page: &mut OwnedFrame) -> u32 {
    let bytes = page.bytes().as_ptr().wrapping_add(usize::from(apic::SVR)).cast::<u32>();
    // SAFETY: within the frame and aligned; the guest, which also writes it, waits. Volatile, since the compiler knows
    // nothing of that other writer.
    unsafe { bytes.read_volatile() }
}
