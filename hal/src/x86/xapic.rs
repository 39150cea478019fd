//! Sending interrupts in xAPIC mode.

use core::ptr::NonNull;

use super::icr;
use super::interrupts_off::InterruptsOff;
use crate::{SendError, SendInterrupt};

/// Sends through the ICR of the calling CPU's local APIC, at offsets 300H and 310H of its page.
///
/// Sending takes two stores. Maskable interrupts are off between them, so that a handler which sends
/// an interrupt too cannot change the destination. NMI handlers must not use the ICR.
#[derive(Debug)]
pub struct XApicSender {
    page: NonNull<u32>,
}

const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
/// ICR bit 12, delivery status: the last interrupt has not left yet.
const SEND_PENDING: u32 = 1 << 12;
/// Reads of the delivery status before giving up: some milliseconds, where an interrupt takes less
/// than one microsecond.
const POLLS: u32 = 100_000;

impl XApicSender {
    /// A sender through the local APIC registers mapped at `page`.
    ///
    /// # Safety
    /// For as long as the value is used, on each CPU that uses it:
    /// - the 4 KiB at `page`, 4 KiB-aligned, are mapped writable and uncacheable to the physical
    ///   address in that CPU's IA32_APIC_BASE (SDM vol. 3, "Local APIC Status and Location"), and
    ///   no Rust reference points there;
    /// - the code runs at CPL 0 and the local APIC is in xAPIC mode;
    /// - every CPU that an interrupt is sent to has a handler for its vector.
    pub const unsafe fn new(page: NonNull<u32>) -> Self {
        Self { page }
    }

    fn register(&self, offset: usize) -> *mut u32 {
        self.page.as_ptr().wrapping_byte_add(offset)
    }

    fn is_pending(&self) -> bool {
        let register = self.register(ICR_LOW);
        // SAFETY: the register lies within the mapped page, is 4-byte-aligned and is read as the 32
        // bits that it has (SDM vol. 3, "The Local APIC Block Diagram", register address map).
        // Reading ICR has no side effect.
        let command = unsafe { register.read_volatile() };
        command & SEND_PENDING != 0
    }

    /// Writes the command, once the last one has left.
    fn command(&self, high: u32, low: u32) -> Result<(), SendError> {
        if !(0..POLLS).any(|_| !self.is_pending()) {
            return Err(SendError::Busy);
        }
        let register = self.register(ICR_HIGH);
        // SAFETY: within the mapped page, aligned, 32 bits wide; the caller of `new` vouched for the
        // mapping. Writing the high word only stores the destination (SDM vol. 3, "Interrupt Command
        // Register").
        unsafe { register.write_volatile(high) };
        let register = self.register(ICR_LOW);
        // Stores to uncacheable memory drain the store buffer first, so the receiver sees what was
        // stored before (SDM vol. 3, "Memory Ordering").
        // SAFETY: as above; writing the low word sends the interrupt, which touches no memory of
        // this program. The receiver has a handler.
        unsafe { register.write_volatile(low) };
        Ok(())
    }
}

impl SendInterrupt for XApicSender {
    fn send_interrupt(&self, destination: u32, vector: u8) -> Result<(), SendError> {
        let (high, low) = (icr::xapic_high(destination)?, icr::low(vector)?);
        // SAFETY: the caller of `new` vouched for CPL 0; the guard is dropped on this CPU when the
        // function returns.
        let _interrupts_off = unsafe { InterruptsOff::new() };
        self.command(high, low)
    }
}

// SAFETY: the value is an address. The caller of `new` vouched that it maps the local APIC of each
// CPU that uses the value, and each CPU's registers are its own.
unsafe impl Send for XApicSender {}

// SAFETY: as for `Send`; two CPUs never reach the same register, and on one CPU the two stores are
// kept together by `InterruptsOff`.
unsafe impl Sync for XApicSender {}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(page: &mut [u32; 1024], high: u32, low: u32) -> Result<(), SendError> {
        // SAFETY: the page is memory, borrowed for the one command that is written here; nothing is
        // sent, and `command` needs no privilege.
        let sender = unsafe { XApicSender::new(NonNull::from(page).cast()) };
        sender.command(high, low)
    }

    #[test]
    fn a_command_is_two_registers() {
        let mut page = [0; 1024];
        assert_eq!(send(&mut page, 0x0300_0000, 0x4040), Ok(()));
        let mut expected = [0; 1024];
        expected[0x310 / 4] = 0x0300_0000;
        expected[0x300 / 4] = 0x4040;
        assert_eq!(page, expected);
    }

    #[test]
    fn a_command_that_never_leaves_is_not_overwritten() {
        let mut page = [0; 1024];
        page[0x300 / 4] = 0x5040;
        assert_eq!(send(&mut page, 0x0300_0000, 0x4041), Err(SendError::Busy));
        assert_eq!((page[0x300 / 4], page[0x310 / 4]), (0x5040, 0));
    }
}
