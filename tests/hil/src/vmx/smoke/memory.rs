//! Guest-physical memory: devices by EPT violation, and a page that is there without one.

use super::{Failure, check, until, until_finish, until_phase, with_guest};
use crate::guest::{apic, programs};
use crate::instruction::mov::Direction;
use crate::machine::apic as physical;
use crate::machine::frames::OwnedFrame;
use crate::machine::memory::FRAME_SIZE;
use crate::vmx::ept::{MemoryType, Permissions};
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;
use crate::vmx::{Exit, Reason};

const BASE: u64 = apic::DEFAULT_BASE;

pub(super) fn device() -> Result<(), Failure> {
    with_guest(Options::default(), programs::touch, 0, |current, _, _| {
        for (offset, width, stored, answer) in programs::TOUCHES {
            let exit: Exit = until(current, Reason::EptViolation)?;
            check(exit.guest_physical == BASE + offset, "another address was touched")?;
            check(exit.guest_linear == BASE + offset, "linear and physical address differ")?;
            check(exit.is_write() == stored.is_some(), "a read is a write, or the reverse")?;
            let Ok(access) = current.decode_access()? else {
                return Err(Failure::Wrong("the instruction was not decoded"));
            };
            check(access.width == width, "another width was decoded")?;
            let value = match access.direction {
                Direction::Store { value } => Some(value),
                Direction::Load { .. } => None,
            };
            check(value == stored, "another value was decoded")?;
            current.complete_access(&access, answer)?;
        }
        until_finish(current, programs::TOUCHED)
    })
}

/// A frame at the APIC's address takes the guest's store with no exit; when it is gone, the next store is a violation.
pub(super) fn silent_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    with_guest(Options::default(), programs::write_twice, 0, |current, ept, _| {
        let host = page.physical_address();
        ept.map_4k(BASE, host, Permissions::DATA, MemoryType::WriteBack)?;
        until_phase(current, 1)?;
        check(current.exits().total() == 1, "the store was not silent")?;
        check(svr(&mut page) == 0x1ff, "the store did not land in the page")?;
        ept.unmap_4k(BASE)?;
        ept.invalidate();
        let exit = until(current, Reason::EptViolation)?;
        check(exit.guest_physical == BASE + 0xf0, "another address was touched")?;
        check(svr(&mut page) == 0x1ff, "a store landed in a page that was gone")?;
        ept.map_4k(BASE, host, Permissions::DATA, MemoryType::WriteBack)?;
        ept.invalidate();
        // The instruction runs again.
        until_finish(current, 0x1fe)?;
        check(svr(&mut page) == 0x1fe, "the second store did not land in the page")?;
        check(page.bytes().len() == FRAME_SIZE, "a page is a page")
    })
}

/// A page that can be read costs no exit until it is written.
pub(super) fn read_only_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    page.bytes()[usize::from(apic::VERSION)..][..4].copy_from_slice(&0x5_0014_u32.to_le_bytes());
    with_guest(Options::default(), programs::read_and_write, 0, |current, ept, _| {
        let host = page.physical_address();
        ept.map_4k(BASE, host, Permissions::READ, MemoryType::WriteBack)?;
        let exit = until(current, Reason::EptViolation)?;
        check(current.exits().total() == 1, "the read exited")?;
        check(
            exit.guest_physical == BASE + u64::from(apic::VERSION),
            "another address was touched",
        )?;
        check(exit.is_write(), "the write is told as a read")?;
        let Ok(access) = current.decode_access()? else {
            return Err(Failure::Wrong("the instruction was not decoded"));
        };
        current.complete_access(&access, 0)?;
        until_finish(current, 0x5_0014)
    })
}

/// The handlers write EOI before their hook, after it, or not at all.
pub(super) fn end_of_interrupt() -> Result<(), Failure> {
    let page = OwnedFrame::new();
    with_guest(Options::default(), programs::end_in_three_ways, 0, |current, ept, _| {
        let host = page.physical_address();
        ept.map_4k(BASE, host, Permissions::DATA, MemoryType::WriteBack)?;
        for vector in [programs::FIRST, programs::LAST, programs::NEVER] {
            until_phase(current, u64::from(vector))?;
            current.inject(Event::ExternalInterrupt(vector))?;
        }
        until_finish(current, 0b11_01_00)
    })
}

/// The host's own APIC, lent to the guest as it is: what a native oracle does.
pub(super) fn physical_apic() -> Result<(), Failure> {
    if physical::mode() != physical::Mode::XApic {
        return Err(Failure::Skip("the host is not in xAPIC mode"));
    }
    with_guest(Options::default(), programs::read_id, 0, |current, ept, _| {
        ept.map_4k(BASE, BASE, Permissions::DATA, MemoryType::Uncacheable)?;
        until_finish(current, u64::from(physical::id()))?;
        check(current.exits().total() == 1, "the access exited")
    })
}

fn svr(page: &mut OwnedFrame) -> u32 {
    let bytes = page.bytes().as_ptr().wrapping_add(usize::from(apic::SVR)).cast::<u32>();
    // SAFETY: within the frame and aligned; the guest, which also writes it, waits. Volatile, since the compiler knows
    // nothing of that other writer.
    unsafe { bytes.read_volatile() }
}
