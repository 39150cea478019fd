//! The same APIC in `vlapic-core`, in plain emulation, and those of the other CPUs for messages to go to.

use core::array;
use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::{
    ApicPage, DirectInbox, Effect, Event, Fault, IA32_APIC_BASE, IA32_TSC_DEADLINE, LocalApic,
    Mode, Outcome, Profile, Slot, Vm, Width,
};

use super::operation::{DFR, ICR, ICR_HIGH, LDR, SVR};
use crate::machine::memory::place;
use crate::machine::smp::{self, MAX_CPUS};

type Apic = LocalApic<'static, DirectInbox>;

/// The machine's APICs as `vlapic-core` has them.
pub(super) struct Ours {
    vm: Vm<'static, DirectInbox>,
    apics: [Option<Apic>; MAX_CPUS],
    /// The CPU of each slot.
    cpus: [usize; MAX_CPUS],
    /// Our own slot.
    own: usize,
    /// Guest time, in ticks of the TSC.
    pub(super) now: u64,
}

/// How an APIC of another CPU is set up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Remote {
    pub(super) base: u64,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
}

impl Ours {
    /// One slot for each CPU, `profile` for all; `None` if two CPUs have one ID.
    pub(super) fn new(profile: Profile) -> Option<&'static mut Self> {
        let count = smp::cpu_count();
        let mut cpus: [usize; MAX_CPUS] = array::from_fn(|index| index);
        cpus[..count].sort_unstable_by_key(|&cpu| smp::apic_id(cpu));
        let slots = place(array::from_fn::<_, MAX_CPUS, _>(|index| {
            let id = if index < count { smp::apic_id(cpus[index]) } else { u32::MAX };
            let page: &'static ApicPage =
                if index < count { place(ApicPage::new()) } else { &SPARE };
            Slot::new(page, id, profile, DirectInbox)
        }));
        let slots: &'static [_] = &slots[..count];
        let own = cpus[..count].iter().position(|&cpu| cpu == smp::this_cpu()).unwrap_or(0);
        let vm = Vm::new(slots).ok()?;
        let apics = array::from_fn(|index| Some(LocalApic::new(slots.get(index)?, true)));
        Some(place(Self { vm, apics, cpus, own, now: 1 }))
    }

    /// RESET of our own APIC, then `base` by the way that leads there.
    pub(super) fn reset(&mut self, base: u64) {
        self.apic().reset(true);
        self.enter(self.own, base);
    }

    /// Sets up another CPU's APIC as its own is.
    pub(super) fn set_remote(&mut self, cpu: usize, remote: Remote) {
        let Some(index) = self.cpus.iter().position(|&candidate| candidate == cpu) else { return };
        if let Some(apic) = &mut self.apics[index] {
            apic.reset(true);
        }
        self.enter(index, remote.base);
        let page = self.vm.slots()[index].page();
        page.store(SVR, 0x1ff);
        page.store(LDR, remote.ldr);
        page.store(DFR, remote.dfr);
    }

    fn enter(&mut self, index: usize, base: u64) {
        let now = self.now;
        let Some(apic) = &mut self.apics[index] else { return };
        let xapic = base & !(1 << 10);
        for step in [xapic, base] {
            // Both are legal from where the APIC is then.
            let _ = apic.write_msr(IA32_APIC_BASE, step, now);
        }
    }

    fn apic(&mut self) -> &mut Apic {
        match &mut self.apics[self.own] {
            Some(apic) => apic,
            None => unreachable!("this CPU has a slot"),
        }
    }

    fn slot(&self) -> &'static Slot<'static, DirectInbox> {
        &self.vm.slots()[self.own]
    }

    pub(super) fn mode(&self) -> Mode {
        self.slot().mode()
    }

    pub(super) fn base(&self) -> u64 {
        self.slot().base().bits()
    }

    /// Puts a word into the page: what the machine says from here on.
    pub(super) fn adopt(&self, offset: u16, value: u32) {
        self.slot().page().store(offset, value);
    }

    /// The word as it stands in the page.
    pub(super) fn word(&self, offset: u16) -> u32 {
        self.slot().page().load(offset)
    }

    pub(super) fn read(&mut self, offset: u16) -> Option<u64> {
        let now = self.now;
        match self.mode() {
            Mode::X2Apic => self.apic().read_msr(0x800 + u32::from(offset >> 4), now).ok(),
            _ => Some(self.apic().read_mmio(offset, Width::Dword, now)),
        }
    }

    /// Whether the write did not fault.
    pub(super) fn write(&mut self, offset: u16, value: u64) -> bool {
        let now = self.now;
        let effect = match self.mode() {
            Mode::X2Apic => self.apic().write_msr(0x800 + u32::from(offset >> 4), value, now),
            _ => Ok(self.apic().write_mmio(offset, Width::Dword, value, now)),
        };
        self.carry_out(effect)
    }

    pub(super) fn command(&mut self, destination: u32, low: u32) -> bool {
        if self.mode() == Mode::X2Apic {
            return self.write(ICR, u64::from(destination) << 32 | u64::from(low));
        }
        self.write(ICR_HIGH, u64::from(destination)) && self.write(ICR, u64::from(low))
    }

    pub(super) fn set_base(&mut self, value: u64) -> bool {
        let now = self.now;
        let effect = self.apic().write_msr(IA32_APIC_BASE, value, now);
        self.carry_out(effect)
    }

    pub(super) fn set_deadline(&mut self, value: u64) -> bool {
        let now = self.now;
        let effect = self.apic().write_msr(IA32_TSC_DEADLINE, value, now);
        self.carry_out(effect)
    }

    pub(super) fn deadline(&mut self) -> Option<u64> {
        let now = self.now;
        self.apic().read_msr(IA32_TSC_DEADLINE, now).ok()
    }

    pub(super) fn set_cr8(&mut self, value: u64) {
        let now = self.now;
        let effect = self.apic().write_cr8(value, now);
        self.carry_out(effect);
    }

    pub(super) fn cr8(&mut self) -> u64 {
        self.apic().read_cr8()
    }

    /// The interrupt that would be taken now.
    pub(super) fn nominate(&mut self) -> Option<u8> {
        let now = self.now;
        let _ = self.apic().prepare(now);
        self.apic().nominate().map(vlapic_core::Vector::get)
    }

    /// The processor takes it.
    pub(super) fn commit(&mut self, vector: u8) {
        if let Some(vector) = vlapic_core::Vector::new(vector) {
            self.apic().commit(vector);
        }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, ticks: u64) {
        self.now += ticks;
        let now = self.now;
        let _ = self.apic().prepare(now);
    }

    /// NMIs that arrived; other events are dropped, as this CPU's state makes them be.
    pub(super) fn take_nmis(&mut self) -> u64 {
        let mut nmis = 0;
        while let Some(event) = self.apic().take_event() {
            nmis += u64::from(event == Event::Nmi);
        }
        nmis
    }

    fn carry_out(&mut self, effect: Result<Effect, Fault>) -> bool {
        let Ok(effect) = effect else { return false };
        if let Effect::Ipi(message) = effect {
            let vm = self.vm;
            for (index, receipt) in vm.send(&message, Some(self.own)) {
                if index != self.own && receipt.outcome == Outcome::Accepted {
                    self.take_elsewhere(index);
                }
            }
        }
        true
    }

    /// Another CPU takes what it got at once.
    fn take_elsewhere(&mut self, index: usize) {
        let cpu = self.cpus[index];
        let count = |vector: u8, more: u64| set_taken(cpu, vector, taken(cpu, vector) + more);
        let irr = self.vm.slots()[index].page().irr();
        for vector in irr.iter() {
            count(vector.get(), 1);
        }
        irr.clear();
        if let Some(apic) = &mut self.apics[index] {
            while let Some(event) = apic.take_event() {
                count(super::physical::NMI, u64::from(event == Event::Nmi));
            }
        }
    }
}

/// How often each CPU should have taken each vector by now. Too much for a stack.
static TAKEN: [[AtomicU64; 256]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; 256] }; MAX_CPUS];

/// How often another CPU should have taken `vector` by now.
pub(super) fn taken(cpu: usize, vector: u8) -> u64 {
    // Relaxed: only this CPU counts here.
    TAKEN[cpu][usize::from(vector)].load(Ordering::Relaxed)
}

pub(super) fn set_taken(cpu: usize, vector: u8, count: u64) {
    TAKEN[cpu][usize::from(vector)].store(count, Ordering::Relaxed);
}

/// For slots that no CPU has.
static SPARE: ApicPage = ApicPage::new();
