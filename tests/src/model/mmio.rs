//! Memory-mapped accesses to the guest's APIC window.

use super::controls::Controls;
use super::exit::{ExitReason, Outcome, VmExit};
use super::guest::{Guest, Window};
use super::knobs::Knobs;
use super::page::{Page, offset};
use super::physical::PhysicalApic;
use super::translation::Translations;

/// One linear access of an instruction or event delivery to the APIC window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub direction: Direction,
    /// Byte offset in the 4-KByte window.
    pub offset: u32,
    /// Width in bytes.
    pub width: u32,
    /// What made the access.
    pub cause: AccessCause,
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Direction {
    Read,
    Write(u64),
    Fetch,
}

/// What made an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum AccessCause {
    Instruction,
    EventDelivery,
}

impl Access {
    /// A data read by an instruction.
    pub fn read(offset: u32, width: u32) -> Self {
        Access { direction: Direction::Read, offset, width, cause: AccessCause::Instruction }
    }

    /// A data write by an instruction.
    pub fn write(offset: u32, width: u32, value: u64) -> Self {
        Access {
            direction: Direction::Write(value),
            offset,
            width,
            cause: AccessCause::Instruction,
        }
    }

    /// An instruction fetch.
    pub fn fetch(offset: u32) -> Self {
        Access { direction: Direction::Fetch, offset, width: 1, cause: AccessCause::Instruction }
    }

    /// The same access, made while an event is delivered through the IDT.
    #[must_use]
    pub fn during_event_delivery(self) -> Self {
        Access { cause: AccessCause::EventDelivery, ..self }
    }

    /// Offset in the low half of the exit qualification, access type in bits 15:12.
    fn apic_access_exit(self) -> VmExit {
        let kind = match (self.cause, self.direction) {
            (AccessCause::EventDelivery, _) => 3,
            (_, Direction::Read) => 0,
            (_, Direction::Write(_)) => 1,
            (_, Direction::Fetch) => 2,
        };
        VmExit::fault(ExitReason::ApicAccess, kind << 12 | u64::from(self.offset))
    }

    /// Qualification of an EPT violation: bit 0 read, bit 1 write, bit 2 fetch, 8:7 a translated linear address.
    fn ept_violation(self) -> VmExit {
        let kind = match self.direction {
            Direction::Read => 1,
            Direction::Write(_) => 2,
            Direction::Fetch => 4,
        };
        VmExit::fault(ExitReason::EptViolation, 0x180 | kind)
    }

    /// Whether the processor would look at the access at all: at most 4 bytes, inside the low 4 bytes of a 16-byte
    /// slot.
    fn has_a_shape_to_virtualize(self) -> bool {
        matches!(self.width, 1 | 2 | 4) && self.offset & 0xf <= 4 - self.width
    }

    fn slot(self) -> u32 {
        self.offset & !0xf
    }
}

/// Whether a read is virtualized: the data come from the virtual-APIC page. Otherwise it exits.
pub(super) fn virtualizes_read(controls: &Controls, knobs: &Knobs, access: Access) -> bool {
    if !controls.tpr_shadow || !access.has_a_shape_to_virtualize() {
        return false;
    }
    if controls.apic_register_virtualization {
        return matches!(
            access.slot(),
            0x020 | 0x030 | 0x080 | 0x0b0 | 0x0d0..=0x280 | 0x300..=0x380 | 0x3e0
        );
    }
    match access.offset {
        offset::VTPR => true,
        offset::VEOI => controls.virtual_interrupt_delivery && knobs.vid_virtualizes_reads,
        offset::VICR_LO => {
            controls.virtual_interrupt_delivery && knobs.vid_virtualizes_reads
                || controls.ipi_virtualization && knobs.ipiv_virtualizes_icr_reads
        }
        _ => false,
    }
}

/// Whether a write is virtualized: it goes to the virtual-APIC page. Otherwise it exits.
pub(super) fn virtualizes_write(controls: &Controls, knobs: &Knobs, access: Access) -> bool {
    if !controls.tpr_shadow || !access.has_a_shape_to_virtualize() {
        return false;
    }
    if controls.apic_register_virtualization {
        return matches!(
            access.slot(),
            0x020 | 0x080 | 0x0b0 | 0x0d0 | 0x0e0 | 0x0f0 | 0x280 | 0x300..=0x380 | 0x3e0
        );
    }
    match if knobs.writes_by_slot { access.slot() } else { access.offset } {
        offset::VTPR => access.offset == offset::VTPR,
        offset::VEOI => controls.virtual_interrupt_delivery,
        offset::VICR_LO => controls.virtual_interrupt_delivery || controls.ipi_virtualization,
        _ => false,
    }
}

impl Guest<'_> {
    /// Makes the accesses of one instruction (or iteration, or event delivery), then emulates the virtualized write
    /// among them, if any. The value is that of the last read.
    pub(super) fn mmio(
        &mut self,
        (space, window): (u64, Window),
        translations: &mut Translations,
        physical: &PhysicalApic,
        accesses: &[Access],
    ) -> Outcome {
        let Some(translation) = translations.look_up(space, window, &self.controls) else {
            return accesses
                .first()
                .map_or(Outcome::Done, |access| Outcome::Exit(access.ept_violation()));
        };
        if !translation.apic_access {
            let page = Page::new(self.memory.clone(), translation.base);
            return ordinary_memory(&page, accesses);
        }
        self.virtualized(physical, accesses)
    }

    fn virtualized(&mut self, physical: &PhysicalApic, accesses: &[Access]) -> Outcome {
        let mut written: Option<Access> = None;
        let mut outcome = Outcome::Done;
        for &access in accesses {
            let same_place =
                |first: Access| (first.offset, first.width) == (access.offset, access.width);
            match access.direction {
                Direction::Read
                    if written.is_none()
                        && virtualizes_read(&self.controls, &self.knobs, access) =>
                {
                    outcome =
                        Outcome::Value(self.page.load_bytes(access.offset, access.width).into());
                }
                Direction::Write(value)
                    if written.is_none_or(same_place)
                        && virtualizes_write(&self.controls, &self.knobs, access) =>
                {
                    self.page.store_bytes(access.offset, access.width, value as u32);
                    written = Some(access);
                }
                _ => {
                    let instruction_length = self.knobs.apic_access_length;
                    return Outcome::Exit(VmExit {
                        instruction_length,
                        ..access.apic_access_exit()
                    });
                }
            }
        }
        match written.and_then(|write| self.emulate_write(physical, write.offset)) {
            Some(exit) => Outcome::Exit(exit),
            None => outcome,
        }
    }

    /// What follows a write that is already in the page.
    fn emulate_write(&mut self, physical: &PhysicalApic, written: u32) -> Option<VmExit> {
        match written {
            offset::VTPR => {
                let kept = if self.knobs.tpr_keeps_low_bits { 0xff } else { 0xf0 };
                self.page.store(offset::VTPR, u32::from(self.page.vtpr() & kept));
                self.tpr_virtualization()
            }
            offset::VEOI if self.controls.virtual_interrupt_delivery => {
                self.page.store(offset::VEOI, 0);
                self.eoi_virtualization()
            }
            offset::VICR_LO => self.emulate_icr_write(physical),
            _ if written == offset::VICR_HI
                || self.knobs.writes_by_slot && written & !0xf == offset::VICR_HI =>
            {
                self.page.store(offset::VICR_HI, self.page.load(offset::VICR_HI) & 0xff00_0000);
                None
            }
            _ if self.knobs.svr_writes_never_exit && written & !0xf == offset::SVR => None,
            _ => Some(VmExit::apic_write(written)),
        }
    }

    /// A write to the low half of the ICR: a self-IPI, an IPI, or an exit.
    fn emulate_icr_write(&mut self, physical: &PhysicalApic) -> Option<VmExit> {
        let command = self.page.load(offset::VICR_LO);
        let vector = command as u8;
        if self.controls.virtual_interrupt_delivery && is_self_ipi(command) {
            self.self_ipi_virtualization(vector);
            return None;
        }
        if self.controls.ipi_virtualization
            && is_simple_ipi(command, self.knobs.xapic_ipiv_checks_reserved)
        {
            let target = self.page.load(offset::VICR_HI) >> 24;
            return self.ipi_virtualization(physical, vector, target);
        }
        Some(VmExit::apic_write(offset::VICR_LO))
    }
}

/// Shorthand "self", fixed, edge, no reserved bit, idle, and a legal vector. Level and destination mode do not matter.
pub(super) fn is_self_ipi(command: u32) -> bool {
    let reserved = command & 0xfff3_3000 != 0;
    let shorthand = command >> 18 & 3;
    let level_triggered = command >> 15 & 1 != 0;
    let delivery_mode = command >> 8 & 7;
    !reserved && shorthand == 1 && !level_triggered && delivery_mode == 0 && command & 0xf0 != 0
}

/// No shorthand, fixed, edge, physical destination, idle.
pub(super) fn is_simple_ipi(command: u32, check_reserved: bool) -> bool {
    let reserved = command & 0xfff3_2000 != 0;
    let disqualifying = 0x000c_0000 | 1 << 15 | 1 << 12 | 1 << 11 | 7 << 8;
    command & disqualifying == 0 && !(check_reserved && reserved)
}

/// The window is mapped to a page that nothing virtualizes.
fn ordinary_memory(page: &Page<'_>, accesses: &[Access]) -> Outcome {
    let mut outcome = Outcome::Done;
    for access in accesses {
        match access.direction {
            Direction::Read if access.width == 8 => {
                outcome = Outcome::Value(page.load_msr(access.offset))
            }
            Direction::Read => {
                outcome = Outcome::Value(page.load_bytes(access.offset, access.width).into())
            }
            Direction::Write(value) if access.width == 8 => page.store_msr(access.offset, value),
            Direction::Write(value) => page.store_bytes(access.offset, access.width, value as u32),
            Direction::Fetch => {}
        }
    }
    outcome
}
