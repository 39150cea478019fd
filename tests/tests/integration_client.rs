//! A monitor that lends its APIC a client for the time of one access: the client tells the time, is told whom to wake,
//! which EOI to broadcast and where the APIC went, and holds CR8, which its processor interface keeps as a register.
//!
//! What stands between the two `glue` lines is all that such a monitor writes for the APIC.

use vlapic_core::{
    ApicPage, DirectInbox, Effect, Fault, LocalApic, Mode, Notify, Profile, Slot, Trigger, Vm,
    Width,
};

/// What the monitor's processor offers during an access.
trait Client {
    fn now(&self) -> u64;
    fn cr8(&self) -> u64;
    fn set_cr8(&mut self, value: u64);
    fn wake(&mut self, vcpu: usize);
    fn eoi(&mut self, vector: u8);
    fn set_apic_base(&mut self, base: u64);
}

// glue
struct Access<'a, 's, C> {
    apic: &'a mut LocalApic<'s, DirectInbox>,
    vm: Vm<'s, DirectInbox>,
    client: &'a mut C,
}

impl<C: Client> Access<'_, '_, C> {
    fn mmio_read(&mut self, offset: u16, width: Width) -> u64 {
        self.take_cr8();
        self.apic.read_mmio(offset, width, self.client.now())
    }

    fn mmio_write(&mut self, offset: u16, width: Width, value: u64) {
        self.take_cr8();
        let effect = self.apic.write_mmio(offset, width, value, self.client.now());
        self.carry_out(effect);
    }

    fn msr_read(&mut self, msr: u32) -> Result<u64, Fault> {
        self.take_cr8();
        self.apic.read_msr(msr, self.client.now())
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), Fault> {
        self.take_cr8();
        let effect = self.apic.write_msr(msr, value, self.client.now())?;
        self.carry_out(effect);
        Ok(())
    }

    fn take_cr8(&mut self) {
        if self.client.cr8() != self.apic.read_cr8() {
            let _ = self.apic.write_cr8(self.client.cr8(), self.client.now());
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        self.client.set_cr8(self.apic.read_cr8());
        match effect {
            Effect::Ipi(message) => {
                let me = self.vm.index_of(self.apic.slot().x2apic_id());
                let told = self.vm.send(&message, me).filter(|to| to.1.notify != Notify::None);
                told.for_each(|(vcpu, _)| self.client.wake(vcpu));
            }
            Effect::EndOfInterrupt(vector) => self.client.eoi(vector.get()),
            Effect::BaseChanged { to, .. } => self.client.set_apic_base(to.bits()),
            _ => {}
        }
    }
}
// end of glue

#[derive(Default)]
struct Processor {
    now: u64,
    cr8: u64,
    woken: Vec<usize>,
    eois: Vec<u8>,
    base: u64,
}

impl Client for Processor {
    fn now(&self) -> u64 {
        self.now
    }

    fn cr8(&self) -> u64 {
        self.cr8
    }

    fn set_cr8(&mut self, value: u64) {
        self.cr8 = value;
    }

    fn wake(&mut self, vcpu: usize) {
        self.woken.push(vcpu);
    }

    fn eoi(&mut self, vector: u8) {
        self.eois.push(vector);
    }

    fn set_apic_base(&mut self, base: u64) {
        self.base = base;
    }
}

#[test]
fn a_client_is_lent_for_each_access() {
    let pages = [const { ApicPage::new() }; 3];
    let slots = [0, 1, 2].map(|id| Slot::new(&pages[id], id as u32, Profile::intel(), DirectInbox));
    let vm = Vm::new(&slots).expect("IDs ascend");
    let [mut apic, mut other, _] = [0, 1, 2].map(|id| LocalApic::new(&slots[id], id == 0));
    let _ = other.write_mmio(0xf0, Width::Dword, 0x1ff, 0);
    let mut processor = Processor::default();
    let mut access = Access { apic: &mut apic, vm, client: &mut processor };

    access.mmio_write(0xf0, Width::Dword, 0x1ff);
    access.client.cr8 = 3;
    assert_eq!(access.mmio_read(0x80, Width::Dword), 0x30, "the processor's CR8 is TPR");
    access.mmio_write(0x80, Width::Dword, 0x25);
    assert_eq!(access.client.cr8, 2, "and TPR is the processor's CR8");
    assert_eq!(access.mmio_read(0x80, Width::Dword), 0x25, "with its low half kept");

    access.mmio_write(0x300, Width::Dword, 0xc_0041);
    assert_eq!(access.client.woken, [1], "vCPU 2 has not enabled its APIC");
    let _ = slots[0].request(0x61, Trigger::Level);
    assert_eq!(access.apic.acknowledge(), 0x61);
    access.mmio_write(0xb0, Width::Dword, 0);
    assert_eq!(access.client.eois, [0x61]);

    assert_eq!(access.msr_read(0x80f), Err(Fault::GeneralProtection), "not in x2APIC mode");
    assert_eq!(access.msr_write(0x1b, 0xfee0_0d00), Ok(()));
    assert_eq!((access.client.base, slots[0].mode()), (0xfee0_0d00, Mode::X2Apic));
    access.client.now = 700;
    for (msr, value) in [(0x832, 0x52), (0x83e, 0xb), (0x838, 1000)] {
        assert_eq!(access.msr_write(msr, value), Ok(()));
    }
    access.client.now = 900;
    assert_eq!(access.msr_read(0x839), Ok(800), "time is the client's");
}
