//! The IOMMU's guest virtual APIC log: posts that found their vCPU not running.

use core::error::Error;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use bit_field::BitField;
use static_assertions::const_assert_eq;

/// An entry of the guest virtual APIC log (AMD IOMMU specification, "Guest Virtual APIC Log").
///
/// | bits | field |
/// |---|---|
/// | 31:0 | GATag |
/// | 47:32 | device ID |
/// | 63:60 | event code |
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct GaLogEntry(u64);

const_assert_eq!(size_of::<GaLogEntry>(), 8);

impl GaLogEntry {
    /// The entry `bits`, unchecked.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The entry as it stands in the log.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// GATag of the remapping entry, if this entry reports an interrupt to a vCPU that does not run
    /// (event code 1): look up the vCPU, and tell it as
    /// [`Inbox::announce`](vlapic_core::Inbox::announce) says.
    #[must_use]
    pub fn tag(self) -> Option<u32> {
        (self.code() == 1).then_some(self.0 as u32)
    }

    /// The device that interrupted.
    #[must_use]
    pub fn device(self) -> u16 {
        self.0.get_bits(32..48) as u16
    }

    /// The event code.
    #[must_use]
    pub fn code(self) -> u8 {
        self.0.get_bits(60..64) as u8
    }
}

impl fmt::Debug for GaLogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GaLogEntry({:#018x})", self.0)
    }
}

/// 512 entries, size code 8 in the base register. The memory is the hypervisor's.
#[repr(C, align(4096))]
pub struct GaLogPage {
    entries: [AtomicU64; 512],
}

const_assert_eq!(size_of::<GaLogPage>(), 4096);

impl GaLogPage {
    /// An empty log.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [const { AtomicU64::new(0) }; 512] }
    }

    /// The words, for models of the IOMMU.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; 512] {
        &self.entries
    }
}

impl Default for GaLogPage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for GaLogPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GaLogPage").finish_non_exhaustive()
    }
}

/// The registers of an IOMMU: 64-bit accesses at byte offsets into its MMIO region.
pub trait IommuRegisters {
    /// The register at `offset`.
    fn read(&self, offset: u32) -> u64;

    /// Writes the register at `offset`.
    fn write(&mut self, offset: u32, value: u64);
}

const CONTROL: u32 = 0x18;
const STATUS: u32 = 0x2020;
const HEAD: u32 = 0x2040;
const TAIL: u32 = 0x2048;

const GA_LOG_EN: u64 = 1 << 28;
const GA_LOG_RUN: u64 = 1 << 8;
const GA_LOG_OVERFLOW: u64 = 1 << 9;
const GA_INT: u64 = 1 << 10;
/// Head and tail are byte offsets of entries.
const OFFSET: u64 = 0xFF8;

/// The log of one IOMMU, as its one reader has it. Base, control and interrupt are set up by the
/// hypervisor.
#[derive(Debug)]
pub struct GaLog<'l> {
    page: &'l GaLogPage,
}

impl<'l> GaLog<'l> {
    /// The log in `page`.
    #[must_use]
    pub const fn new(page: &'l GaLogPage) -> Self {
        Self { page }
    }

    /// Takes the entries out, oldest first, 512 at the most; the IOMMU may add more meanwhile. The
    /// handler of the log's interrupt calls this, carries each entry out, and then asks
    /// [`overflowed`](Self::overflowed).
    ///
    /// GAInt is cleared before the first look at the tail, so an entry that comes later interrupts
    /// again.
    pub fn drain<'d, R: IommuRegisters>(&'d mut self, registers: &'d mut R) -> GaLogDrain<'d, R> {
        registers.write(STATUS, GA_INT);
        GaLogDrain { page: self.page, registers, left: 512 }
    }

    /// Whether entries were lost. If so, tell every vCPU that a log entry could have named
    /// ([`Inbox::announce`](vlapic_core::Inbox::announce); IRR has all that was posted), and
    /// [`restart`](Self::restart) the log before that.
    #[must_use]
    pub fn overflowed<R: IommuRegisters>(&self, registers: &R) -> bool {
        registers.read(STATUS) & GA_LOG_OVERFLOW != 0
    }

    /// Starts the log again after it has overflowed: stops it, waits until it has stopped, looking
    /// `polls` times at most, clears the overflow, and enables it.
    ///
    /// # Errors
    /// [`GaLogError::StillRunning`]; the log stays stopped and says it has overflowed, and the call
    /// may be repeated.
    pub fn restart<R: IommuRegisters>(
        &mut self,
        registers: &mut R,
        polls: u32,
    ) -> Result<(), GaLogError> {
        let control = registers.read(CONTROL);
        registers.write(CONTROL, control & !GA_LOG_EN);
        if !(0..polls).any(|_| registers.read(STATUS) & GA_LOG_RUN == 0) {
            return Err(GaLogError::StillRunning);
        }
        registers.write(STATUS, GA_LOG_OVERFLOW);
        registers.write(CONTROL, control | GA_LOG_EN);
        Ok(())
    }
}

/// The entries of a log as they are taken out.
#[derive(Debug)]
pub struct GaLogDrain<'d, R> {
    page: &'d GaLogPage,
    registers: &'d mut R,
    left: u32,
}

impl<R: IommuRegisters> Iterator for GaLogDrain<'_, R> {
    type Item = GaLogEntry;

    fn next(&mut self) -> Option<GaLogEntry> {
        let head = self.registers.read(HEAD) & OFFSET;
        if self.left == 0 || head == self.registers.read(TAIL) & OFFSET {
            return None;
        }
        self.left -= 1;
        let entry = self.page.entries.get((head / 8) as usize)?.swap(0, Ordering::SeqCst);
        self.registers.write(HEAD, (head + 8) & OFFSET);
        Some(GaLogEntry(entry))
    }
}

/// Why a log was not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GaLogError {
    /// GALogRun stays set.
    StillRunning,
}

impl fmt::Display for GaLogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guest virtual APIC log does not stop")
    }
}

impl Error for GaLogError {}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;

    #[derive(Debug, Default)]
    struct Registers {
        control: u64,
        status: u64,
        head: u64,
        tail: u64,
        stuck: bool,
        writes: Vec<(u32, u64)>,
    }

    impl IommuRegisters for Registers {
        fn read(&self, offset: u32) -> u64 {
            match offset {
                CONTROL => self.control,
                STATUS => self.status,
                HEAD => self.head,
                TAIL => self.tail,
                _ => panic!("{offset:#x}"),
            }
        }

        fn write(&mut self, offset: u32, value: u64) {
            self.writes.push((offset, value));
            match offset {
                CONTROL => {
                    self.control = value;
                    self.status &= !GA_LOG_RUN;
                    if value & GA_LOG_EN != 0 || self.stuck {
                        self.status |= GA_LOG_RUN;
                    }
                }
                STATUS => self.status &= !(value & (GA_LOG_OVERFLOW | GA_INT)),
                HEAD => self.head = value,
                _ => panic!("{offset:#x}"),
            }
        }
    }

    fn entry(tag: u32) -> u64 {
        1 << 60 | 0x00A8 << 32 | u64::from(tag)
    }

    #[test]
    fn fields() {
        let entry = GaLogEntry::from_bits(0x1000_00A8_0000_ABCD);
        assert_eq!((entry.tag(), entry.device(), entry.code()), (Some(0xABCD), 0xA8, 1));
        assert_eq!(GaLogEntry::from_bits(0x2000_0000_0000_ABCD).tag(), None);
    }

    #[test]
    fn entries_come_out_in_order_and_round_the_end() {
        let page = Box::new(GaLogPage::new());
        for (place, tag) in [(510, 1), (511, 2), (0, 3), (1, 4)] {
            page.words()[place].store(entry(tag), Ordering::SeqCst);
        }
        let mut registers =
            Registers { head: 510 * 8, tail: 8, status: GA_INT, ..Registers::default() };
        let mut log = GaLog::new(&page);
        let tags: Vec<_> = log.drain(&mut registers).map(|entry| entry.tag()).collect();
        assert_eq!(tags, [Some(1), Some(2), Some(3)]);
        assert_eq!((registers.head, registers.status), (8, 0));
        assert_eq!(page.words()[510].load(Ordering::SeqCst), 0);
        registers.tail = 16;
        assert_eq!(log.drain(&mut registers).count(), 1);
        assert_eq!(log.drain(&mut registers).count(), 0);
    }

    #[test]
    fn a_tail_that_never_comes_ends_after_one_round() {
        let page = Box::new(GaLogPage::new());
        let mut registers = Registers { tail: 0xFFF & !7, ..Registers::default() };
        registers.tail = 8;
        registers.head = 16;
        let mut log = GaLog::new(&page);
        assert_eq!(log.drain(&mut registers).count(), 511);
    }

    #[test]
    fn an_overflow_restarts_the_log() {
        let page = Box::new(GaLogPage::new());
        let mut log = GaLog::new(&page);
        let running = GA_LOG_RUN | GA_LOG_OVERFLOW;
        let mut registers =
            Registers { control: GA_LOG_EN | 1, status: running, ..Registers::default() };
        assert!(log.overflowed(&registers));
        assert_eq!(log.restart(&mut registers, 3), Ok(()));
        assert!(!log.overflowed(&registers));
        assert_eq!(
            registers.writes,
            [(CONTROL, 1), (STATUS, GA_LOG_OVERFLOW), (CONTROL, GA_LOG_EN | 1)]
        );

        registers =
            Registers { stuck: true, control: GA_LOG_EN, status: running, ..Registers::default() };
        assert_eq!(log.restart(&mut registers, 3), Err(GaLogError::StillRunning));
        assert!(log.overflowed(&registers));
        assert_eq!(registers.control & GA_LOG_EN, 0);
    }
}
