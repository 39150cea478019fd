//! RESET, INIT, and what a change of mode does to the registers.

use crate::base::{ApicBase, Mode};
use crate::effect::Effect;
use crate::fault::Fault;
use crate::inbox::Inbox;
use crate::local::LocalApic;
use crate::lvt::Lvt;
use crate::profile::Profile;
use crate::register::{LvtEntry, Register};
use crate::slot::Slot;
use crate::svr::Svr;
use crate::timer::Timer;

use core::sync::atomic::Ordering;

impl<I: Inbox> LocalApic<'_, I> {
    /// RESET: IA32_APIC_BASE, every register, and everything the page does not hold: latches,
    /// pending errors, timer, posted vectors, the upcall's debt and its vector.
    pub fn reset(&mut self, bootstrap: bool) {
        self.slot.page().write(Register::Svr, Svr::RESET.bits());
        self.slot.latches.reset(!bootstrap);
        self.slot.set_base(ApicBase::reset(bootstrap));
        self.clear();
        self.slot.write_id();
        self.list();
        self.slot.upcall.reset();
    }

    /// INIT: as RESET, but the APIC ID and IA32_APIC_BASE stay (SDM Vol. 3A 10.4.7.3, 10.12.5.1).
    ///
    /// The upcall's vector stays and its debt starts anew: the pending byte decides when the APIC
    /// next accepts. The deadline in IA32_TSC_DEADLINE is dropped, a choice where the SDM is
    /// silent. NMI and SMI that were latched stay held (APM Vol. 2 16.10).
    pub fn init(&mut self) {
        let page = self.slot.page();
        let id = page.read(Register::Id) & 0xFF00_0000;
        page.write(Register::Svr, Svr::RESET.bits());
        self.slot.latches.init(!self.slot.base().bootstrap());
        self.clear();
        self.slot.write_id();
        if self.slot.mode() == Mode::XApic && self.slot.profile().xapic_id_writable() {
            page.write(Register::Id, id);
        }
        self.list();
        // After IRR is empty: whoever pays the debt from here on pays in the new life.
        self.slot.upcall.init(self.slot.refused_upcall);
    }

    /// A guest's WRMSR to IA32_APIC_BASE.
    ///
    /// To x2APIC mode the registers stay, but for ID, LDR and the high half of ICR. Turning the
    /// APIC off puts its registers into their reset state, which SDM Vol. 3A 10.4.3 allows; with
    /// them goes all that was posted.
    ///
    /// # Errors
    /// #GP as [`ApicBase::write`] says.
    pub fn write_apic_base(&mut self, value: u64) -> Result<Effect, Fault> {
        let from = self.slot.base();
        let to = from.write(value, self.slot.profile())?;
        if to == from {
            return Ok(Effect::None);
        }
        match (from.mode(), to.mode()) {
            (_, Mode::Disabled) if from.present() => {
                self.slot.set_base(to);
                self.slot.latches.begin_life();
                self.clear();
                self.slot.write_id();
                self.slot.upcall.init(self.slot.refused_upcall);
            }
            (Mode::XApic, Mode::X2Apic) => {
                self.slot.set_base(to);
                self.slot.write_id();
                self.slot.page().write(Register::IcrHigh, 0);
                self.slot.page().store(0x304, 0);
            }
            (Mode::Disabled, Mode::XApic) => {
                // Hardware may have posted meanwhile, to an APIC that was not there. TPR stays: it
                // is CR8, which works without an APIC.
                let cr8 = self.read_cr8();
                self.clear();
                self.slot.page().write(Register::Tpr, (cr8 as u32) << 4);
                self.update_ppr();
                self.slot.set_base(to);
                self.slot.write_id();
            }
            _ => self.slot.set_base(to),
        }
        self.list();
        Ok(Effect::BaseChanged { to })
    }

    /// Puts every register into its reset state, and drops the timer with everything else that the page
    /// does not hold. The caller has done what [`Slot::clear`] asks.
    pub(crate) fn clear(&mut self) {
        self.timer = Timer::default();
        self.slot.clear();
    }
}

impl<I: Inbox> Slot<'_, I> {
    /// Puts every register into its reset state (SDM Vol. 3A 10.4.7.1), ID and LDR of x2APIC mode
    /// aside, and drops what is posted and the errors not yet shown.
    ///
    /// The caller has made the APIC refuse and has begun a new life, in this order, so that
    /// `Slot::accept` tells a post from before the clearing from one after it: taking the banks of
    /// IRR releases the new life to a post that finds them empty.
    pub(crate) fn clear(&self) {
        let page = self.page();
        let profile = self.profile();
        self.pending_errors.store(0, Ordering::Relaxed);
        self.inbox().discard();
        for index in 0..8 {
            page.irr().take_bank(index);
        }
        for word in page.words() {
            word.store(0, Ordering::Relaxed);
        }
        for register in Register::all() {
            page.write(register, reset_value(register, profile));
        }
    }

    /// Writes ID, and LDR as the mode has it.
    pub(crate) fn write_id(&self) {
        let id = self.x2apic_id();
        let page = self.page();
        if self.mode() == Mode::X2Apic {
            page.write(Register::Id, id);
            page.write(Register::Ldr, x2apic_ldr(id));
        } else {
            page.write(Register::Id, id << 24);
            page.write(Register::Ldr, 0);
        }
    }
}

/// What `register` holds after RESET and INIT (SDM Vol. 3A 10.4.7.1; APM Vol. 2 16.3.2); zero for ID
/// and LDR, which follow from elsewhere.
pub(crate) const fn reset_value(register: Register, profile: &Profile) -> u32 {
    match register {
        Register::Version => profile.version(),
        Register::Dfr => 0xFFFF_FFFF,
        Register::Svr => Svr::RESET.bits(),
        Register::Lvt(LvtEntry::Cmci) if !profile.cmci() => 0,
        Register::Lvt(_) => Lvt::RESET.bits(),
        Register::ExtendedFeature if profile.extended_space() => 0x0004_0007,
        Register::Ier(_) if profile.extended_space() => 0xFFFF_FFFF,
        // The manual prints zero; masked is what the parts' own manuals say and what is safe.
        Register::ExtendedLvt(_) if profile.extended_space() => Lvt::RESET.bits(),
        _ => 0,
    }
}

/// LDR in x2APIC mode: cluster in bits 31:16, one bit of 15:0 (SDM Vol. 3A 10.12.10.2).
#[inline]
#[must_use]
pub(crate) const fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xF)
}
