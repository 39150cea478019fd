//! Our side: slots without hardware help, and their owners.

use vlapic_core::{
    ApicBase, DirectInbox, Effect, Event, Fault, IA32_APIC_BASE, LocalApic, MsiAddress, MsiData,
    MsiDestination, Outcome, Profile, Slot, Vector, Vm,
};

/// A VM whose vCPUs are all in x2APIC mode.
#[derive(Debug)]
pub(super) struct Ours {
    slots: &'static [Slot<'static, DirectInbox>],
    apics: Vec<LocalApic<'static, DirectInbox>>,
}

/// The model that the kernel's APIC is closest to.
const PROFILE: Profile = Profile::intel().with_cmci(false).with_eoi_suppression(false);

/// The timer is never seen to expire: all operations happen at once.
const NOW: u64 = 0;

impl Ours {
    pub(super) fn new(vcpus: usize) -> Self {
        let slots: Vec<_> = (0..vcpus)
            .map(|id| {
                let page = Box::leak(Box::new(vlapic_core::ApicPage::new()));
                Slot::new(page, id as u32, PROFILE, DirectInbox)
            })
            .collect();
        let slots: &'static [_] = Box::leak(slots.into_boxed_slice());
        let apics = slots.iter().map(|slot| LocalApic::new(slot, true)).collect();
        let mut ours = Self { slots, apics };
        ours.reset();
        ours
    }

    /// RESET, then x2APIC mode.
    pub(super) fn reset(&mut self) {
        for apic in &mut self.apics {
            apic.reset(true);
            let base = ApicBase::reset(true).bits() | 1 << 10;
            // From xAPIC mode this is legal.
            let _ = apic.write_msr(IA32_APIC_BASE, base, NOW);
        }
    }

    /// Register `offset` of vCPU `vcpu`, as in its page.
    pub(super) fn register(&self, vcpu: usize, offset: u16) -> u32 {
        self.slots[vcpu].page().load(offset)
    }

    pub(super) fn ppr(&self, vcpu: usize) -> u32 {
        u32::from(self.slots[vcpu].processor_priority())
    }

    pub(super) fn read(&mut self, vcpu: usize, msr: u32) -> Result<u64, Fault> {
        self.apics[vcpu].read_msr(msr, NOW)
    }

    pub(super) fn write(&mut self, vcpu: usize, msr: u32, value: u64) -> Result<(), Fault> {
        let effect = self.apics[vcpu].write_msr(msr, value, NOW)?;
        if let Effect::Ipi(message) = effect
            && let Ok(vm) = Vm::new(self.slots)
        {
            vm.send(&message, Some(vcpu)).for_each(drop);
        }
        Ok(())
    }

    /// How many APICs accepted the message.
    pub(super) fn msi(&mut self, address: u32, data: u32) -> usize {
        let address = MsiAddress::from_bits(address.into());
        let message = vlapic_core::Message::from_msi(
            address,
            MsiData::from_bits(data),
            MsiDestination::Narrow,
        );
        match (message, Vm::new(self.slots)) {
            (Ok(Some(message)), Ok(vm)) => vm
                .send(&message, None)
                .filter(|(_, receipt)| receipt.outcome == Outcome::Accepted)
                .count(),
            _ => 0,
        }
    }

    /// Nominates and commits.
    pub(super) fn take(&mut self, vcpu: usize) -> Option<Vector> {
        let apic = &mut self.apics[vcpu];
        let vector = apic.nominate()?;
        apic.commit(vector).then_some(vector)
    }

    /// Whether an NMI waited; asking takes it, and everything else that waits.
    pub(super) fn take_nmi(&mut self, vcpu: usize) -> bool {
        let mut nmi = false;
        while let Some(event) = self.apics[vcpu].take_event() {
            nmi |= event == Event::Nmi;
        }
        nmi
    }
}
