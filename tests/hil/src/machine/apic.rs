//! The physical local APIC of the CPU this runs on, in either mode.
//!
//! The mode is read from IA32_APIC_BASE each time, because CPUs change it one by one (SDM Vol. 3A 10.4.4, 10.12.1).

use x86::msr::IA32_APIC_BASE;

use super::msr;

/// The vector of a spurious interrupt (SVR bits 7:0). Nothing else may use it: it has no EOI.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

/// Registers by their offset in the page; the x2APIC MSR is 0x800 plus a sixteenth of it (SDM Vol. 3A Table 10-1, 10-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Register {
    Id = 0x20,
    Tpr = 0x80,
    Eoi = 0xb0,
    Svr = 0xf0,
    /// The first of eight; see [`in_service`].
    Isr = 0x100,
    /// The first of eight; see [`requested`].
    Irr = 0x200,
    IcrLow = 0x300,
    IcrHigh = 0x310,
    LvtTimer = 0x320,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    InitialCount = 0x380,
    DivideConfiguration = 0x3e0,
}

/// SDM Vol. 3A Table 10-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASK: u32 = 1 << 16;

/// ICR fields (SDM Vol. 3A 10.6.1).
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const LEVEL_ASSERT: u32 = 1 << 14;
const SEND_PENDING: u32 = 1 << 12;
const ALL_BUT_SELF: u32 = 3 << 18;

pub(crate) fn mode() -> Mode {
    let base = msr::read(IA32_APIC_BASE);
    match (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0) {
        (false, _) => Mode::Disabled,
        (true, false) => Mode::XApic,
        (true, true) => Mode::X2Apic,
    }
}

pub(crate) fn id() -> u32 {
    match mode() {
        Mode::X2Apic => read(Register::Id),
        _ => read(Register::Id) >> 24,
    }
}

/// Ends the interrupt of highest priority in service on this CPU.
pub(crate) fn eoi() {
    write(Register::Eoi, 0);
}

/// Sends a fixed interrupt to one CPU by its physical APIC ID.
pub(crate) fn send(apic_id: u32, vector: u8) {
    command(apic_id, LEVEL_ASSERT | u32::from(vector));
}

pub(crate) fn send_nmi(apic_id: u32) {
    command(apic_id, LEVEL_ASSERT | DELIVERY_NMI);
}

/// Resets one CPU to wait for a start-up IPI; `None` means all but this one.
pub(crate) fn send_init(apic_id: Option<u32>) {
    command_or_broadcast(apic_id, LEVEL_ASSERT | DELIVERY_INIT);
}

/// Starts one CPU in real mode at `page` << 12; `None` means all but this one.
pub(crate) fn send_startup(apic_id: Option<u32>, page: u8) {
    command_or_broadcast(apic_id, LEVEL_ASSERT | DELIVERY_STARTUP | u32::from(page));
}

/// Switches this CPU's local APIC on, in the mode the firmware left it in, with LINT0, LINT1 and timer masked.
pub(crate) fn enable() {
    if mode() == Mode::Disabled {
        set_base(msr::read(IA32_APIC_BASE) | BASE_ENABLE);
    }
    write(Register::Svr, SVR_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(Register::Tpr, 0);
    for lvt in [Register::LvtTimer, Register::LvtLint0, Register::LvtLint1] {
        write(lvt, LVT_MASK);
    }
}

/// Puts this CPU's local APIC into x2APIC mode. There is no way back but through disabling it.
pub(crate) fn enter_x2apic() {
    set_base(msr::read(IA32_APIC_BASE) | BASE_ENABLE | BASE_X2APIC);
}

/// Starts this CPU's timer: one interrupt when `count` bus ticks, divided by 16, have passed.
pub(crate) fn start_timer(vector: u8, count: u32) {
    write(Register::DivideConfiguration, 0b0011);
    write(Register::LvtTimer, u32::from(vector));
    write(Register::InitialCount, count);
}

pub(crate) fn stop_timer() {
    write(Register::LvtTimer, LVT_MASK);
    write(Register::InitialCount, 0);
}

/// Whether `vector` is in service on this CPU.
pub(crate) fn in_service(vector: u8) -> bool {
    bit(Register::Isr, vector)
}

/// Whether `vector` is requested on this CPU and not yet taken.
pub(crate) fn requested(vector: u8) -> bool {
    bit(Register::Irr, vector)
}

pub(crate) fn read(register: Register) -> u32 {
    read_offset(register as u16)
}

pub(crate) fn write(register: Register, value: u32) {
    write_offset(register as u16, value);
}

/// Reads the register at an offset from the page, through the page or its MSR as the mode wants.
pub(crate) fn read_offset(offset: u16) -> u32 {
    match mode() {
        Mode::X2Apic => msr::read(x2apic_msr(offset)) as u32,
        // SAFETY: the page is mapped, firmware marks it uncacheable, and an aligned 4-byte read is the access a local APIC
        // wants (SDM Vol. 3A 10.4.1).
        _ => unsafe { page(offset).read_volatile() },
    }
}

/// Writes the register at an offset from the page, through the page or its MSR as the mode wants.
pub(crate) fn write_offset(offset: u16, value: u32) {
    match mode() {
        // SAFETY: an APIC register changes how interrupts arrive, and touches no memory.
        Mode::X2Apic => unsafe { msr::write(x2apic_msr(offset), u64::from(value)) },
        // SAFETY: as in `read_offset`, for a write.
        _ => unsafe { page(offset).write_volatile(value) },
    }
}

fn command_or_broadcast(apic_id: Option<u32>, command_word: u32) {
    match apic_id {
        Some(apic_id) => command(apic_id, command_word),
        None => command(0, command_word | ALL_BUT_SELF),
    }
}

fn command(apic_id: u32, command_word: u32) {
    if mode() == Mode::X2Apic {
        // x2APIC MSR writes are not serialising: what the target is to see must be stored first (SDM Vol. 3A 10.12.3).
        // SAFETY: fences have no preconditions.
        unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) };
        let value = u64::from(apic_id) << 32 | u64::from(command_word);
        // SAFETY: the interrupt is the caller's wish; this CPU's memory is not touched.
        unsafe { msr::write(x2apic_msr(Register::IcrLow as u16), value) };
        return;
    }
    super::interrupts::without(|| {
        write(Register::IcrHigh, apic_id << 24);
        write(Register::IcrLow, command_word);
        let _sent = (0..1_000_000).any(|_| read(Register::IcrLow) & SEND_PENDING == 0);
    });
}

fn bit(first: Register, vector: u8) -> bool {
    let offset = first as u16 + u16::from(vector / 32) * 0x10;
    read_offset(offset) >> (vector % 32) & 1 != 0
}

fn set_base(value: u64) {
    // SAFETY: only the mode bits change, by transitions that are allowed (SDM Vol. 3A 10.12.5).
    unsafe { msr::write(IA32_APIC_BASE, value) };
}

fn page(offset: u16) -> *mut u32 {
    let address = msr::read(IA32_APIC_BASE) & BASE_ADDRESS;
    core::ptr::with_exposed_provenance_mut((address + u64::from(offset)) as usize)
}

fn x2apic_msr(offset: u16) -> u32 {
    0x800 + u32::from(offset >> 4)
}
