//! Our side: slots without hardware help, and their owners.

use vlapic_core::{
    ApicBase, ApicPage, DirectInbox, Effect, Event, IA32_APIC_BASE, LocalApic, Message, Mode,
    MsiAddress, MsiData, MsiDestination, Outcome, Profile, Register, Slot, Vector, Vm, Width,
};

use super::operation::Size;
use super::state::{Answer, Events, View};

/// A VM of ours.
#[derive(Debug)]
pub(super) struct Ours {
    slots: &'static [Slot<'static, DirectInbox>],
    vm: Vm<'static, DirectInbox>,
    vcpus: Vec<Vcpu>,
}

#[derive(Debug)]
struct Vcpu {
    apic: LocalApic<'static, DirectInbox>,
    /// Guest TSC: stands still but for timers that are to expire.
    now: u64,
}

/// Longer than any count and divider can last.
const AGES: u64 = 1 << 42;

impl Ours {
    /// vCPUs with these IDs, the first the bootstrap processor.
    pub(super) fn new(ids: &[u32], profile: Profile) -> Self {
        let slots: Vec<_> = ids
            .iter()
            .map(|&id| {
                let page = Box::leak(Box::new(ApicPage::new()));
                Slot::new(page, id, profile, DirectInbox)
            })
            .collect();
        let slots: &'static [_] = Box::leak(slots.into_boxed_slice());
        let vm = Vm::new(slots).unwrap_or_else(|_| unreachable!("IDs ascend"));
        let vcpu = |(index, slot)| Vcpu { apic: LocalApic::new(slot, index == 0), now: 0 };
        let vcpus = slots.iter().enumerate().map(vcpu).collect();
        Self { slots, vm, vcpus }
    }

    /// RESET, started, in `mode`.
    pub(super) fn reset(&mut self, vcpu: usize, mode: Mode) {
        let this = &mut self.vcpus[vcpu];
        this.now = AGES;
        this.apic.reset(vcpu == 0);
        let _ = self.slots[vcpu].receive(vlapic_core::Delivery::Startup { page: 1 });
        while this.apic.take_event().is_some() {}
        if mode == Mode::X2Apic {
            let base = self.slots[vcpu].base().bits() | 1 << 10;
            // From xAPIC mode this is legal.
            let _ = this.apic.write_msr(IA32_APIC_BASE, base, this.now);
        }
    }

    pub(super) fn base(&self, vcpu: usize) -> ApicBase {
        self.slots[vcpu].base()
    }

    pub(super) fn waiting(&self, vcpu: usize) -> bool {
        !self.slots[vcpu].online()
    }

    pub(super) fn write_msr(&mut self, vcpu: usize, msr: u32, value: u64) -> Answer {
        let this = &mut self.vcpus[vcpu];
        let result = this.apic.write_msr(msr, value, this.now);
        let mut answer = match result {
            Ok(effect) => self.carry_out(vcpu, effect),
            Err(_) => Answer { fault: true, ..Answer::default() },
        };
        if msr == IA32_APIC_BASE {
            answer.value = Some(self.base(vcpu).bits());
        }
        answer
    }

    pub(super) fn read_msr(&mut self, vcpu: usize, msr: u32) -> Answer {
        let this = &mut self.vcpus[vcpu];
        let value = this.apic.read_msr(msr, this.now).ok();
        Answer { fault: value.is_none(), value, ..Answer::default() }
    }

    pub(super) fn store_memory(
        &mut self,
        vcpu: usize,
        address: u32,
        size: Size,
        value: u32,
    ) -> Answer {
        let this = &mut self.vcpus[vcpu];
        let Some(offset) = window(&self.slots[vcpu], address) else {
            return Answer { outside: true, ..Answer::default() };
        };
        let effect = this.apic.write_mmio(offset, width(size), value.into(), this.now);
        self.carry_out(vcpu, effect)
    }

    pub(super) fn load_memory(&mut self, vcpu: usize, address: u32, size: Size) -> Answer {
        let this = &mut self.vcpus[vcpu];
        let Some(offset) = window(&self.slots[vcpu], address) else {
            let value = Some(width(size).mask());
            return Answer { outside: true, value, ..Answer::default() };
        };
        let value = this.apic.read_mmio(offset, width(size), this.now);
        Answer { value: Some(value), ..Answer::default() }
    }

    pub(super) fn write_cr8(&mut self, vcpu: usize, value: u8) -> Answer {
        let this = &mut self.vcpus[vcpu];
        let fault = this.apic.write_cr8(value.into(), this.now).is_err();
        Answer { fault, value: Some(this.apic.read_cr8()), ..Answer::default() }
    }

    pub(super) fn msi(&mut self, address: u32, data: u32) -> Answer {
        let address = MsiAddress::from_bits(address.into());
        let data = MsiData::from_bits(data);
        let accepted = match Message::from_msi(address, data, MsiDestination::Narrow) {
            Ok(Some(message)) => self
                .vm
                .send(&message, None)
                .filter(|(_, receipt)| receipt.outcome == Outcome::Accepted)
                .count(),
            _ => 0,
        };
        Answer { accepted: Some(accepted as u32), ..Answer::default() }
    }

    /// Nominates and commits.
    pub(super) fn take(&mut self, vcpu: usize) -> Option<Vector> {
        let apic = &mut self.vcpus[vcpu].apic;
        let vector = apic.nominate()?;
        apic.commit(vector).then_some(vector)
    }

    /// Gives the vCPU the words of `view`, as an import does.
    pub(super) fn store(&mut self, vcpu: usize, view: &View) {
        let page = self.slots[vcpu].page();
        for (slot, word) in (0u16..).zip(view.words) {
            match Register::at(slot << 4) {
                None | Some(Register::CurrentCount | Register::Eoi | Register::SelfIpi) => {}
                Some(_) => page.store(slot << 4, word),
            }
        }
        page.store(Register::Ppr.offset(), self.slots[vcpu].processor_priority().into());
    }

    /// Lets the vCPU's time pass until every timer must have expired.
    pub(super) fn pass_ages(&mut self, vcpu: usize) {
        let this = &mut self.vcpus[vcpu];
        this.now += AGES;
        let _ = this.apic.prepare(this.now);
    }

    /// A time that is long over, and one that is far away.
    pub(super) fn deadlines(&self, vcpu: usize) -> (u64, u64) {
        let now = self.vcpus[vcpu].now;
        (now / 2, now + AGES)
    }

    /// The words of the page; what is not in it is left out.
    pub(super) fn view(&mut self, vcpu: usize) -> View {
        let slot = &self.slots[vcpu];
        let page = slot.page();
        let mut words = [0; 64];
        for (number, word) in (0u16..).zip(&mut words) {
            *word = match Register::at(number << 4) {
                None | Some(Register::Eoi | Register::SelfIpi | Register::CurrentCount) => 0,
                Some(Register::IcrHigh) => slot.icr().high(),
                Some(register) => page.read(register),
            };
        }
        let this = &mut self.vcpus[vcpu];
        let count = match slot.mode() {
            Mode::Disabled => 0,
            Mode::XApic => {
                this.apic.read_mmio(Register::CurrentCount.offset(), Width::Dword, this.now)
            }
            Mode::X2Apic => {
                this.apic.read_msr(Register::CurrentCount.msr(), this.now).unwrap_or(u64::MAX)
            }
        };
        words[usize::from(Register::CurrentCount.offset() >> 4)] = u32::from(count != 0);
        View { words, events: Events { waiting: !slot.online(), ..Events::default() } }
    }

    /// What came beside the page since the last time, taken.
    pub(super) fn events(&mut self, vcpu: usize) -> Events {
        let mut events = Events::default();
        while let Some(event) = self.vcpus[vcpu].apic.take_event() {
            match event {
                Event::Nmi => events.nmi = true,
                Event::Smi => events.smi = true,
                Event::Startup { page } => events.startup = Some(page),
                // ExtINT is the 8259's, which the kernel delivers by a way of its own.
                _ => {}
            }
        }
        events.waiting = !self.slots[vcpu].online();
        events
    }

    fn carry_out(&mut self, vcpu: usize, effect: Effect) -> Answer {
        let mut answer = Answer::default();
        match effect {
            Effect::Ipi(message) => self.vm.send(&message, Some(vcpu)).for_each(drop),
            Effect::EndOfInterrupt(vector) => answer.eoi = Some(vector.get()),
            _ => {}
        }
        answer
    }
}

/// The offset of an access that concerns the APIC at all: in x2APIC mode and without an APIC the
/// window is still there, and nothing in it.
fn window(slot: &Slot<'_, DirectInbox>, address: u32) -> Option<u16> {
    let inside = u64::from(address) & !0xFFF == slot.base().address();
    inside.then_some(address as u16 & 0xFFF)
}

const fn width(size: Size) -> Width {
    match size {
        Size::Byte => Width::Byte,
        Size::Word => Width::Word,
        Size::Dword => Width::Dword,
    }
}
