//! Guest-physical memory: devices by EPT violation, and a page that is there without one.

use core::sync::atomic::Ordering;

use super::{Failure, check, until, until_finish, until_phase, with_guest};
use crate::guest::{Context, Eoi, apic, cpu, hypercall};
use crate::machine::apic as physical;
use crate::machine::memory::FRAME_SIZE;
use crate::instruction::mov::{Direction, Width};
use crate::vmx::ept::{MemoryType, Permissions};
use crate::machine::frames::OwnedFrame;
use crate::vmx::interrupt::Event;
use crate::vmx::state::Options;
use crate::vmx::{Exit, Reason};

const BASE: u64 = apic::DEFAULT_BASE;
const VERSION: u16 = 0x30;

/// What the guest does to the page, and what its host must see: offset, width, value written or answered.
extern "C" fn touch(_: &'static Context, _: u64) -> u64 {
    apic::write_memory(BASE, apic::SVR, 0x1ff);
    let version = apic::read_memory(BASE, VERSION);
    apic::write_memory_wide(BASE, 0x100, 0x1234_5678_9abc_def0);
    let page = core::ptr::with_exposed_provenance_mut::<u8>(BASE as usize);
    // SAFETY: the guest's tables map the page, and its host answers; no Rust object is there.
    unsafe { page.wrapping_add(0x83).write_volatile(0x5a) };
    // SAFETY: as above.
    let byte = unsafe { page.wrapping_add(0x91).read_volatile() };
    // SAFETY: as above.
    let word = unsafe { page.wrapping_add(0xa2).cast::<u16>().read_volatile() };
    u64::from(version) << 32 | u64::from(word) << 16 | u64::from(byte)
}

pub(super) fn device() -> Result<(), Failure> {
    const EXPECTED: [(u64, Width, Option<u64>, u64); 6] = [
        (0x0f0, Width::Dword, Some(0x1ff), 0),
        (0x030, Width::Dword, None, 0x8105_0014),
        (0x100, Width::Qword, Some(0x1234_5678_9abc_def0), 0),
        (0x083, Width::Byte, Some(0x5a), 0),
        (0x091, Width::Byte, None, 0xff_77),
        (0x0a2, Width::Word, None, 0xff_8899),
    ];
    with_guest(Options::default(), touch, 0, |current, _, _| {
        for (offset, width, stored, answer) in EXPECTED {
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
        until_finish(current, 0x8105_0014_8899_0077)
    })
}

extern "C" fn write_twice(_: &'static Context, _: u64) -> u64 {
    apic::write_memory(BASE, apic::SVR, 0x1ff);
    hypercall::phase(1);
    apic::write_memory(BASE, apic::SVR, 0x1fe);
    u64::from(apic::read_memory(BASE, apic::SVR))
}

/// A frame at the APIC's address takes the guest's store with no exit; when it is gone, the next store is a violation.
pub(super) fn silent_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    with_guest(Options::default(), write_twice, 0, |current, ept, _| {
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

extern "C" fn read_and_write(_: &'static Context, _: u64) -> u64 {
    let version = apic::read_memory(BASE, VERSION);
    apic::write_memory(BASE, VERSION, 1);
    u64::from(version)
}

/// A page that can be read costs no exit until it is written.
pub(super) fn read_only_page() -> Result<(), Failure> {
    let mut page = OwnedFrame::new();
    page.bytes()[usize::from(VERSION)..][..4].copy_from_slice(&0x5_0014_u32.to_le_bytes());
    with_guest(Options::default(), read_and_write, 0, |current, ept, _| {
        let host = page.physical_address();
        ept.map_4k(BASE, host, Permissions::READ, MemoryType::WriteBack)?;
        let exit = until(current, Reason::EptViolation)?;
        check(current.exits().total() == 1, "the read exited")?;
        check(exit.guest_physical == BASE + u64::from(VERSION), "another address was touched")?;
        check(exit.is_write(), "the write is told as a read")?;
        let Ok(access) = current.decode_access()? else {
            return Err(Failure::Wrong("the instruction was not decoded"));
        };
        current.complete_access(&access, 0)?;
        until_finish(current, 0x5_0014)
    })
}

const FIRST: u8 = 0x61;
const LAST: u8 = 0x62;
const NEVER: u8 = 0x63;
/// What the EOI register holds until the guest writes it.
const UNTOUCHED: u32 = 0xffff_ffff;

/// Notes what the EOI register holds while the handler's hook runs: the page is memory here.
fn note_eoi(context: &'static Context, vector: u8) {
    let eoi = apic::read_memory(BASE, apic::EOI);
    context.word(usize::from(vector & 0xf)).store(u64::from(eoi), Ordering::Relaxed);
}

extern "C" fn end_in_three_ways(context: &'static Context, _: u64) -> u64 {
    cpu::interrupts_on();
    let mut seen = 0;
    for (vector, eoi) in [(FIRST, Eoi::First), (LAST, Eoi::Last), (NEVER, Eoi::Never)] {
        context.set_handling(vector, eoi, Some(note_eoi));
        apic::write_memory(BASE, apic::EOI, UNTOUCHED);
        hypercall::phase(u64::from(vector));
        let after = apic::read_memory(BASE, apic::EOI);
        let during = context.word(usize::from(vector & 0xf)).load(Ordering::Relaxed);
        seen = seen << 2 | u64::from(during == 0) << 1 | u64::from(after == 0);
    }
    seen
}

/// The handlers write EOI before their hook, after it, or not at all.
pub(super) fn end_of_interrupt() -> Result<(), Failure> {
    let page = OwnedFrame::new();
    with_guest(Options::default(), end_in_three_ways, 0, |current, ept, _| {
        let host = page.physical_address();
        ept.map_4k(BASE, host, Permissions::DATA, MemoryType::WriteBack)?;
        for vector in [FIRST, LAST, NEVER] {
            until_phase(current, u64::from(vector))?;
            current.inject(Event::ExternalInterrupt(vector))?;
        }
        until_finish(current, 0b11_01_00)
    })
}

extern "C" fn read_id(context: &'static Context, _: u64) -> u64 {
    match apic::read(context, ID) {
        Ok(id) => id >> 24,
        Err(_) => u64::MAX,
    }
}

const ID: u16 = 0x20;

/// The host's own APIC, lent to the guest as it is: what a native oracle does.
pub(super) fn physical_apic() -> Result<(), Failure> {
    if physical::mode() != physical::Mode::XApic {
        return Err(Failure::Skip("the host is not in xAPIC mode"));
    }
    with_guest(Options::default(), read_id, 0, |current, ept, _| {
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
