//! From the APIC into an image, and back.

use core::sync::atomic::{Ordering, fence};

use super::image::{Image, Registers};
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::register::{LvtEntry, Register};
use crate::svr::Svr;
use crate::timer::Timer;
use crate::vector::Vector;

/// ICR bit 12, delivery status: what is sent is sent.
const BUSY: u32 = 1 << 12;

impl<I: Inbox> LocalApic<'_, I> {
    /// The state at `now`, everything posted so far in IRR.
    pub(super) fn capture(&mut self, now: u64) -> Image {
        self.pass_time(now);
        let slot = self.slot;
        slot.inbox().drain(slot.page());
        let mut registers = Registers::new();
        for register in Register::all() {
            registers.set(register, self.captured(register));
        }
        let (upcall, upcall_owed) = slot.upcall.parts();
        Image {
            base: slot.base(),
            registers,
            phase: self.timer.phase(),
            deadline: self.timer.deadline(),
            latches: slot.latches.bits(),
            errors: slot.pending_errors.load(Ordering::Acquire),
            upcall: Vector::new(upcall),
            upcall_owed,
        }
    }

    fn captured(&self, register: Register) -> u32 {
        let page = self.slot.page();
        let profile = self.slot.profile();
        match register {
            Register::Version => profile.version(),
            Register::Ppr => u32::from(self.processor_priority()),
            Register::Apr | Register::RemoteRead | Register::Eoi | Register::CurrentCount => 0,
            Register::Isr(bank) => page.isr().bank(usize::from(bank.index())),
            Register::Tmr(bank) => page.tmr().bank(usize::from(bank.index())),
            Register::Irr(bank) => page.irr().bank(usize::from(bank.index())),
            Register::Lvt(LvtEntry::Cmci) if !profile.cmci() => 0,
            Register::Lvt(entry) => self.slot.lvt(entry).bits(),
            Register::IcrLow => page.read(register) & !BUSY,
            Register::IcrHigh => self.slot.icr().high(),
            Register::SelfIpi => page.read(register) & 0xFF,
            Register::ExtendedFeature
            | Register::ExtendedControl
            | Register::SpecificEoi
            | Register::Ier(_)
            | Register::ExtendedLvt(_)
                if !profile.extended_space() =>
            {
                0
            }
            _ => page.read(register),
        }
    }

    /// Becomes what `image` says, which has been checked and corrected. As RESET does, the APIC first
    /// refuses and begins a new life, so that a post that races is wiped or belongs to it.
    pub(super) fn install(&mut self, image: &Image) {
        let slot = self.slot;
        let page = slot.page();
        page.write(Register::Svr, Svr::RESET.bits());
        slot.set_base(image.base.without_mode());
        slot.latches.restore(image.latches);
        self.clear();
        slot.upcall.restore(image.upcall, image.upcall_owed);
        slot.pending_errors.store(image.errors, Ordering::Relaxed);
        self.timer = Timer::from_parts(image.phase, image.deadline, slot.profile().timer_clock());
        slot.set_base(image.base);
        for register in Register::all() {
            let word = image.registers.get(register);
            match register {
                Register::Svr => {}
                Register::Irr(bank) => page.irr().insert_bank(usize::from(bank.index()), word),
                Register::IcrHigh => page.store(slot.icr_high_offset(slot.mode()), word),
                _ => page.write(register, word),
            }
        }
        self.update_ppr();
        self.list();
        // Who sees the APIC accept sees the trigger modes that were restored.
        fence(Ordering::SeqCst);
        page.write(Register::Svr, image.registers.get(Register::Svr));
    }
}
