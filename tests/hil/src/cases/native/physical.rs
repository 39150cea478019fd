//! This CPU's own APIC, as software sees it.
//!
//! Interrupts are off; [`Physical::take`] lets in one, whose handler writes no EOI.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vlapic_core::{IA32_APIC_BASE, IA32_TSC_DEADLINE, Mode};

use crate::machine::interrupts::{self, Frame};
use crate::machine::{msr, smp};

pub(super) const NMI: u8 = 2;
/// Vectors that no interrupt may have here: the NMI's, #UD's, and those whose entry expects an error code on the stack.
pub(super) const UNUSABLE: [u8; 12] = [NMI, 6, 8, 10, 11, 12, 13, 14, 17, 21, 29, 30];

const INTERRUPT_FLAG: u64 = 1 << 9;
const NOBODY: u32 = u32::MAX;
const NOTHING: u32 = u32::MAX;

/// The CPU whose interrupts are kept in service.
static CPU: AtomicU32 = AtomicU32::new(NOBODY);
/// The vector that [`Physical::take`] got.
static TAKEN: AtomicU32 = AtomicU32::new(NOTHING);
static NMIS: AtomicU64 = AtomicU64::new(0);

/// The APIC of the CPU this is made on.
#[derive(Debug)]
pub(super) struct Physical {
    page: u64,
    mode: Mode,
}

impl Physical {
    /// From here on interrupts are off, and every vector has a handler.
    pub(super) fn new() -> Self {
        // SAFETY: turning interrupts off only delays them.
        unsafe { x86::irq::disable() };
        CPU.store(smp::this_cpu() as u32, Ordering::Relaxed);
        interrupts::keep_in_service(smp::this_cpu(), true);
        for vector in handled() {
            interrupts::set_handler(vector, on_interrupt);
        }
        interrupts::set_handler(NMI, on_nmi);
        let mut physical = Self { page: 0, mode: Mode::Disabled };
        physical.look();
        physical
    }

    /// Puts the handlers back; the caller has left the APIC as others expect it.
    pub(super) fn release(self) {
        for vector in handled() {
            interrupts::clear_handler(vector);
        }
        interrupts::clear_handler(NMI);
        interrupts::keep_in_service(smp::this_cpu(), false);
        CPU.store(NOBODY, Ordering::Relaxed);
        interrupts::enable();
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    /// IA32_APIC_BASE.
    pub(super) fn base(&self) -> u64 {
        msr::read(IA32_APIC_BASE)
    }

    /// Whether the write did not fault.
    pub(super) fn set_base(&mut self, value: u64) -> bool {
        // SAFETY: the page stays where it is or the write faults; with no APIC there are no interrupts.
        let written = unsafe { msr::try_write(IA32_APIC_BASE, value) };
        self.look();
        written
    }

    /// The register at an offset of the page; `None` where the read faults.
    pub(super) fn read(&self, offset: u16) -> Option<u64> {
        match self.mode {
            Mode::X2Apic => msr::try_read(0x800 + u32::from(offset >> 4)),
            // SAFETY: the page is mapped, and an aligned 4-byte read is the access an APIC wants (SDM Vol. 3A 10.4.1).
            _ => Some(u64::from(unsafe { self.word(offset).read_volatile() })),
        }
    }

    /// Whether the write did not fault.
    pub(super) fn write(&self, offset: u16, value: u64) -> bool {
        match self.mode {
            // SAFETY: an APIC register changes how interrupts arrive; those that may come have handlers.
            Mode::X2Apic => unsafe { msr::try_write(0x800 + u32::from(offset >> 4), value) },
            _ => {
                // SAFETY: as above, and as in `read`.
                unsafe { self.word(offset).write_volatile(value as u32) };
                true
            }
        }
    }

    /// Sends what ICR says, and waits until it is sent.
    pub(super) fn command(&self, destination: u32, low: u32) -> bool {
        if self.mode == Mode::X2Apic {
            return self.write(0x300, u64::from(destination) << 32 | u64::from(low));
        }
        self.write(0x310, u64::from(destination));
        self.write(0x300, u64::from(low));
        // Some machines keep bit 12 as it was written.
        let patience = if low & 1 << 12 == 0 { 1_000_000 } else { 1_000 };
        let _sent = (0..patience).any(|_| self.read(0x300).unwrap_or(0) & 1 << 12 == 0);
        true
    }

    /// Lets in one interrupt, if one is deliverable.
    pub(super) fn take(&self) -> Option<u8> {
        TAKEN.store(NOTHING, Ordering::Relaxed);
        // SAFETY: every vector that may come has a handler, and the first one turns interrupts off again.
        unsafe {
            core::arch::asm!(
                "sti",
                "nop",
                "nop",
                "nop",
                "nop",
                "nop",
                "nop",
                "nop",
                "nop",
                "cli",
                options(nostack)
            )
        };
        u8::try_from(TAKEN.load(Ordering::Relaxed)).ok()
    }

    pub(super) fn cr8(&self) -> u64 {
        let value: u64;
        // SAFETY: reading CR8 has no side effects.
        unsafe { core::arch::asm!("mov {}, cr8", out(reg) value, options(nomem, nostack)) };
        value
    }

    /// Values above 15 fault, and nothing recovers from that.
    pub(super) fn set_cr8(&self, value: u64) {
        // SAFETY: the value has no reserved bits, and interrupts are off.
        unsafe { core::arch::asm!("mov cr8, {}", in(reg) value & 0xf, options(nomem, nostack)) };
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        msr::try_read(IA32_TSC_DEADLINE)
    }

    /// Whether the write did not fault.
    pub(super) fn set_deadline(&self, value: u64) -> bool {
        // SAFETY: at most this CPU gets its timer's interrupt, for which there is a handler.
        unsafe { msr::try_write(IA32_TSC_DEADLINE, value) }
    }

    /// NMIs that this CPU took.
    pub(super) fn nmis(&self) -> u64 {
        NMIS.load(Ordering::Relaxed)
    }

    fn look(&mut self) {
        let base = self.base();
        self.page = base & 0x000f_ffff_ffff_f000;
        self.mode = vlapic_core::ApicBase::from_bits(base).mode();
    }

    fn word(&self, offset: u16) -> *mut u32 {
        core::ptr::with_exposed_provenance_mut((self.page + u64::from(offset)) as usize)
    }
}

/// The vectors an interrupt may have, those of other CPUs' interrupts among them.
fn handled() -> impl Iterator<Item = u8> {
    (0..=255).filter(|vector| !UNUSABLE.contains(vector))
}

fn on_interrupt(frame: &mut Frame) {
    if smp::this_cpu() as u32 == CPU.load(Ordering::Relaxed) {
        TAKEN.store(frame.vector as u32 & 0xff, Ordering::Relaxed);
        frame.rflags &= !INTERRUPT_FLAG;
    }
}

fn on_nmi(_: &mut Frame) {
    if smp::this_cpu() as u32 == CPU.load(Ordering::Relaxed) {
        NMIS.fetch_add(1, Ordering::Relaxed);
    }
}
