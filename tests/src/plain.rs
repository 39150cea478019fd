//! A local APIC without any hardware help, for tests: page, slot and owner in one.
#![expect(clippy::unwrap_used, reason = "a test that gets here has failed")]

use std::sync::atomic::AtomicU8;

use vlapic_core::{
    ApicPage, DirectInbox, Effect, Fault, IA32_APIC_BASE, LocalApic, LvtEntry, Profile,
    RefusedUpcall, Register, Slot, Vm, Width,
};

/// A slot that lives as long as the test program.
pub type PlainSlot = Slot<'static, DirectInbox>;

/// One vCPU's local APIC. Time is `now`, which accesses use and tests set.
pub struct Plain {
    /// The shared part.
    pub slot: &'static PlainSlot,
    /// The owner's part.
    pub apic: LocalApic<'static, DirectInbox>,
    /// The pending byte of the vCPU's upcalls, which it is bound to.
    pub pending: &'static AtomicU8,
    /// Guest TSC.
    pub now: u64,
}

/// How a guest's store to SVR comes to the driver.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// The driver carries it out.
    Emulated,
    /// The processor has stored it and exits.
    ApicWrite,
    /// The processor has stored it and says nothing.
    Silent,
}

/// Every [`Way`].
pub const WAYS: [Way; 3] = [Way::Emulated, Way::ApicWrite, Way::Silent];

impl core::fmt::Debug for Plain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.apic.fmt(f)
    }
}

impl Plain {
    /// A bootstrap processor after RESET.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self::with(profile, 0, true, RefusedUpcall::Owed)
    }

    /// Any processor after RESET.
    #[must_use]
    pub fn with(profile: Profile, id: u32, bootstrap: bool, policy: RefusedUpcall) -> Self {
        let page = Box::leak(Box::new(ApicPage::new()));
        let slot = Slot::new(page, id, profile, DirectInbox).with_refused_upcall(policy);
        Self::own(Box::leak(Box::new(slot)), bootstrap)
    }

    fn own(slot: &'static PlainSlot, bootstrap: bool) -> Self {
        let pending = Box::leak(Box::new(AtomicU8::new(0)));
        let mut apic = LocalApic::new(slot, bootstrap);
        apic.bind_upcall(pending);
        Self { slot, apic, pending, now: 0 }
    }

    /// In xAPIC mode with SVR 1FF.
    #[must_use]
    pub fn enabled(profile: Profile) -> Self {
        let mut plain = Self::new(profile);
        plain.enable();
        plain
    }

    /// In x2APIC mode, SVR as after RESET.
    #[must_use]
    pub fn x2apic(profile: Profile, id: u32) -> Self {
        let mut plain = Self::with(profile, id, true, RefusedUpcall::Owed);
        plain.enter_x2apic();
        plain
    }

    /// Sets EXTD in IA32_APIC_BASE.
    pub fn enter_x2apic(&mut self) {
        let base = self.slot.base().bits() | 0xC00;
        self.set_msr(IA32_APIC_BASE, base);
    }

    /// Writes SVR by whatever way the mode has.
    pub fn enable(&mut self) {
        self.set(Register::Svr, 0x1FF);
    }

    /// As [`write`](Self::write), whatever comes of it.
    pub fn set(&mut self, register: Register, value: u32) {
        let _ = self.write(register, value);
    }

    /// As [`wrmsr`](Self::wrmsr), which has to succeed.
    pub fn set_msr(&mut self, msr: u32, value: u64) {
        let _ = self.wrmsr(msr, value).unwrap();
    }

    /// A guest's store to SVR.
    pub fn write_svr(&mut self, way: Way, value: u32) {
        match way {
            Way::Emulated => self.set(Register::Svr, value),
            Way::ApicWrite => {
                self.slot.page().write(Register::Svr, value);
                let _ = self.apic.after_write(Register::Svr, self.now);
            }
            Way::Silent => self.slot.page().write(Register::Svr, value),
        }
    }

    /// A guest's access to a register, by MMIO or MSR as the mode has it.
    pub fn write(&mut self, register: Register, value: u32) -> Effect {
        if self.slot.mode() == vlapic_core::Mode::X2Apic {
            self.wrmsr(register.msr(), u64::from(value)).unwrap()
        } else {
            self.store(register.offset(), value)
        }
    }

    /// As [`write`](Self::write).
    pub fn read(&mut self, register: Register) -> u32 {
        if self.slot.mode() == vlapic_core::Mode::X2Apic {
            self.rdmsr(register.msr()).unwrap() as u32
        } else {
            self.load(register.offset())
        }
    }

    /// As [`write`](Self::write), of an LVT entry.
    pub fn write_lvt(&mut self, entry: LvtEntry, value: u32) -> Effect {
        self.write(Register::Lvt(entry), value)
    }

    /// A 4-byte MMIO write.
    pub fn store(&mut self, offset: u16, value: u32) -> Effect {
        self.apic.write_mmio(offset, Width::Dword, u64::from(value), self.now)
    }

    /// A 4-byte MMIO read.
    pub fn load(&mut self, offset: u16) -> u32 {
        self.apic.read_mmio(offset, Width::Dword, self.now) as u32
    }

    /// A guest's WRMSR.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Result<Effect, Fault> {
        self.apic.write_msr(msr, value, self.now)
    }

    /// A guest's RDMSR.
    pub fn rdmsr(&mut self, msr: u32) -> Result<u64, Fault> {
        self.apic.read_msr(msr, self.now)
    }

    /// ESR as software reads it: write, then read.
    pub fn errors(&mut self) -> u32 {
        self.set(Register::Esr, 0);
        self.read(Register::Esr)
    }

    /// The vectors in IRR, highest first.
    #[must_use]
    pub fn irr(&self) -> Vec<u8> {
        self.slot.page().irr().iter().map(vlapic_core::Vector::get).collect()
    }

    /// The vectors in ISR, highest first.
    #[must_use]
    pub fn isr(&self) -> Vec<u8> {
        self.slot.page().isr().iter().map(vlapic_core::Vector::get).collect()
    }
}

/// A VM of vCPUs with these x2APIC IDs; the first is the BSP.
#[must_use]
pub fn vm(profile: Profile, ids: &[u32]) -> (Vm<'static, DirectInbox>, Vec<Plain>) {
    let slots: Vec<PlainSlot> = ids
        .iter()
        .map(|&id| Slot::new(Box::leak(Box::new(ApicPage::new())), id, profile, DirectInbox))
        .collect();
    let slots: &'static [PlainSlot] = Vec::leak(slots);
    let owners = slots.iter().enumerate().map(|(index, slot)| Plain::own(slot, index == 0));
    (Vm::new(slots).unwrap(), owners.collect())
}
