//! What follows the store to each register: one function a register.
//!
//! A guest's write is: check the access, store the value, [`LocalApic::after_write`]. Where the
//! processor has stored the value itself (APIC-write exit, AVIC trap) the hypervisor enters at
//! `after_write`, so both ways change the same state in the same way. Nothing here depends on
//! what the register held before: the page may have been stored to with nobody told.

use core::sync::atomic::{Ordering, fence};

use crate::access::stored_bits;
use crate::base::Mode;
use crate::effect::Effect;
use crate::esr::Errors;
use crate::icr::{Icr, IcrCommand};
use crate::inbox::Inbox;
use crate::local::{LocalApic, PINS};
use crate::lvt::{Lvt, TimerMode};
use crate::register::{LvtEntry, Register};
use crate::vector::{Trigger, Vector};

impl<I: Inbox> LocalApic<'_, I> {
    /// Carries out what a write to `register` means, its value standing in the page already.
    ///
    /// Bits the guest cannot write are put right first. A register that software cannot write at
    /// all is put back where the core can tell its value, and nothing else happens: a trap-like
    /// exit never faults. `now` is the guest's TSC.
    pub fn after_write(&mut self, register: Register, now: u64) -> Effect {
        self.pass_time(now);
        match register {
            Register::Id => self.after_id(),
            Register::Tpr => self.after_tpr(),
            Register::Eoi => self.after_eoi(),
            Register::SpecificEoi => self.after_specific_eoi(),
            Register::Ldr => self.after_ldr(),
            Register::Dfr => self.after_dfr(),
            Register::Svr => self.after_svr(),
            Register::Esr => self.after_esr(),
            Register::IcrLow => self.after_icr_low(),
            Register::IcrHigh => self.keep_stored_bits(register),
            Register::SelfIpi => self.after_self_ipi(),
            Register::Lvt(entry) => self.after_lvt(entry),
            Register::InitialCount => self.after_initial_count(now),
            Register::DivideConfiguration => self.after_divide(now),
            Register::ExtendedControl | Register::Ier(_) => self.keep_stored_bits(register),
            Register::ExtendedLvt(_) => self.after_extended_lvt(register),
            Register::Version => self.restore(register, self.slot.profile().version()),
            Register::Ppr => self.restore(register, u32::from(self.processor_priority())),
            Register::Apr
            | Register::RemoteRead
            | Register::Isr(_)
            | Register::Tmr(_)
            | Register::Irr(_)
            | Register::CurrentCount
            | Register::ExtendedFeature => Effect::None,
        }
    }

    fn after_id(&mut self) -> Effect {
        if self.slot.mode() == Mode::X2Apic {
            return self.restore(Register::Id, self.slot.x2apic_id());
        }
        if self.slot.profile().xapic_id_writable() {
            let effect = self.keep_stored_bits(Register::Id);
            self.list();
            return effect;
        }
        self.restore(Register::Id, self.slot.x2apic_id() << 24)
    }

    /// The guest's store of `value` to TPR, and what follows it.
    #[inline]
    pub(crate) fn write_tpr(&mut self, value: u32) -> Effect {
        let tpr = value as u8;
        self.slot.page().write(Register::Tpr, u32::from(tpr));
        self.update_ppr_for(tpr);
        Effect::None
    }

    fn after_tpr(&mut self) -> Effect {
        let effect = self.keep_stored_bits(Register::Tpr);
        self.update_ppr();
        effect
    }

    #[inline]
    pub(crate) fn after_eoi(&mut self) -> Effect {
        self.slot.page().write(Register::Eoi, 0);
        self.end_of_interrupt()
    }

    /// AMD: ends the interrupt of the vector written, if it is in service (APM Vol. 2 16.7).
    fn after_specific_eoi(&mut self) -> Effect {
        let page = self.slot.page();
        let _ = self.keep_stored_bits(Register::SpecificEoi);
        let enabled =
            self.slot.profile().extended_space() && page.read(Register::ExtendedControl) & 2 != 0;
        match Vector::new(page.read(Register::SpecificEoi) as u8) {
            Some(vector) if enabled && page.isr().contains(vector) => self.end_of(vector),
            _ => Effect::None,
        }
    }

    fn after_ldr(&mut self) -> Effect {
        if self.slot.mode() == Mode::X2Apic {
            let ldr = crate::lifecycle::x2apic_ldr(self.slot.x2apic_id());
            return self.restore(Register::Ldr, ldr);
        }
        let effect = self.keep_stored_bits(Register::Ldr);
        self.list();
        effect
    }

    fn after_dfr(&mut self) -> Effect {
        let page = self.slot.page();
        page.write(Register::Dfr, page.read(Register::Dfr) | 0x0FFF_FFFF);
        self.list();
        Effect::None
    }

    /// Software-disabled: every LVT entry is masked (SDM Vol. 3A 10.4.7.2). Software-enabled:
    /// nothing; masks stay until software clears them, and an owed upcall is for
    /// [`prepare`](LocalApic::prepare) to pay.
    fn after_svr(&mut self) -> Effect {
        let effect = self.keep_stored_bits(Register::Svr);
        if !self.slot.page().svr().software_enabled() {
            self.mask_entries();
        }
        // The store to SVR comes before the next look at what is owed; pairs with the fence in
        // `Slot::notify_upcall`.
        fence(Ordering::SeqCst);
        effect
    }

    /// ESR takes what was pending; the value written is never stored (SDM Vol. 3A 10.5.3).
    fn after_esr(&mut self) -> Effect {
        let pending = self.slot.pending_errors.swap(0, Ordering::AcqRel);
        self.restore(Register::Esr, pending & 0xFF)
    }

    /// The guest's store of `value`, whose reserved bits are zero, to ICR where it is one register, and
    /// what follows it.
    #[inline(always)]
    pub(crate) fn write_icr(&mut self, value: u64) -> Effect {
        let low = value as u32 & stored_bits(Register::IcrLow, self.slot.profile());
        let icr = Icr::from_halves(low, (value >> 32) as u32);
        self.slot.store_icr(icr, Mode::X2Apic);
        self.send(icr, Mode::X2Apic)
    }

    /// The guest's store of `value` to SELF IPI, and what follows it.
    #[inline(always)]
    pub(crate) fn write_self_ipi(&mut self, value: u32) -> Effect {
        self.store_guest(Register::SelfIpi, value);
        self.after_self_ipi()
    }

    #[inline(always)]
    fn after_icr_low(&mut self) -> Effect {
        let _ = self.keep_stored_bits(Register::IcrLow);
        self.send(self.slot.icr(), self.slot.mode())
    }

    /// Carries out what the page's ICR commands in `mode`.
    #[inline(always)]
    pub(crate) fn send(&mut self, icr: Icr, mode: Mode) -> Effect {
        match icr.command(mode, self.slot.profile()) {
            IcrCommand::Send(message) if icr.shorthand() == 1 => {
                // The owner is here and will look: nobody has to be told.
                let _ = self.slot.request(message.vector(), message.trigger());
                Effect::None
            }
            IcrCommand::Send(message) => Effect::Ipi(message),
            IcrCommand::IllegalVector => {
                let _ = self.slot.record_error(Errors::SEND_ILLEGAL_VECTOR);
                Effect::None
            }
            IcrCommand::Invalid => Effect::None,
        }
    }

    /// As ICR with shorthand self, fixed, edge (SDM Vol. 3A 10.12.11).
    #[inline(always)]
    pub(crate) fn after_self_ipi(&mut self) -> Effect {
        let vector = self.slot.page().read(Register::SelfIpi) as u8;
        if Vector::new(vector).is_none() {
            let _ = self.slot.record_error(Errors::SEND_ILLEGAL_VECTOR);
        } else {
            let _ = self.slot.request(vector, Trigger::Edge);
        }
        Effect::None
    }

    fn after_lvt(&mut self, entry: LvtEntry) -> Effect {
        let register = Register::Lvt(entry);
        if entry == LvtEntry::Cmci && !self.slot.profile().cmci() {
            return self.restore(register, 0);
        }
        let page = self.slot.page();
        let mut value = page.read(register) & stored_bits(register, self.slot.profile());
        if !page.svr().software_enabled() {
            value |= Lvt::MASK;
        }
        for (pin, its_entry) in PINS {
            if its_entry == entry && self.slot.latches.remote_irr(pin) {
                // Remote IRR means nothing for an edge (SDM Vol. 3A 10.5.1). Dropping it there
                // lets a guest free a pin whose EOI it never sent.
                if Lvt::from_bits(value).trigger() == Trigger::Level {
                    value |= Lvt::REMOTE_IRR;
                } else {
                    self.slot.latches.set_remote_irr(pin, false);
                }
            }
        }
        page.write(register, value);
        if entry != LvtEntry::Timer {
            return Effect::None;
        }
        let mode = Lvt::from_bits(value).timer_mode();
        if mode == TimerMode::TscDeadline {
            page.write(Register::InitialCount, 0);
        }
        self.timer.mode_written(mode);
        Effect::TimerChanged
    }

    fn after_extended_lvt(&mut self, register: Register) -> Effect {
        let _ = self.keep_stored_bits(register);
        if !self.slot.page().svr().software_enabled() {
            self.mask(register);
        }
        Effect::None
    }

    /// Sets the mask of every LVT entry there is, AMD's extended ones included.
    #[cold]
    pub(crate) fn mask_entries(&self) {
        let profile = self.slot.profile();
        for entry in LvtEntry::ALL {
            if entry != LvtEntry::Cmci || profile.cmci() {
                self.mask(Register::Lvt(entry));
            }
        }
        if profile.extended_space() {
            for index in 0..4 {
                self.mask(Register::ExtendedLvt(index));
            }
        }
    }

    fn mask(&self, lvt: Register) {
        let page = self.slot.page();
        let bits = page.read(lvt);
        if bits & Lvt::MASK == 0 {
            page.write(lvt, bits | Lvt::MASK);
        }
    }

    fn after_initial_count(&mut self, now: u64) -> Effect {
        let settings = self.timer_settings();
        if settings.mode == TimerMode::TscDeadline {
            return self.restore(Register::InitialCount, 0);
        }
        self.timer.start(now, settings);
        Effect::TimerChanged
    }

    fn after_divide(&mut self, now: u64) -> Effect {
        let _ = self.keep_stored_bits(Register::DivideConfiguration);
        self.timer.divider_written(now, self.timer_settings());
        Effect::TimerChanged
    }

    /// Drops the bits of `register` that do not keep what is written to them.
    #[inline(always)]
    pub(crate) fn keep_stored_bits(&self, register: Register) -> Effect {
        let page = self.slot.page();
        let (bits, kept) = (page.read(register), stored_bits(register, self.slot.profile()));
        if bits & !kept != 0 {
            page.write(register, bits & kept);
        }
        Effect::None
    }

    fn restore(&self, register: Register, value: u32) -> Effect {
        self.slot.page().write(register, value);
        Effect::None
    }
}
