//! `avic` over a VMCB in memory.

use core::convert::Infallible;
use core::sync::atomic::AtomicU8;

use avic::{Backing, Exit, Inhibit, Inhibits, Shared, Vcpu, VmcbPage};
use vlapic_core::{
    Delivery, Destination, Effect, Entry, EntryInput, Event, ExitOutcome, Fault, Inbox, Message,
    Notify, Receipt, Slot, Trigger, Vm, Width,
};

use crate::entries;

type ItsSlot = Slot<'static, Backing>;
type ItsVcpu = Vcpu<'static>;

entries! {
    fn avic_before_entry(
        vcpu: &mut ItsVcpu,
        vmcb: &mut VmcbPage,
        input: EntryInput,
    ) -> Result<Entry, Infallible> {
        vcpu.before_entry(vmcb, input)
    }

    fn avic_after_exit(vcpu: &mut ItsVcpu, vmcb: &mut VmcbPage, now: u64) -> ExitOutcome {
        let exit = Exit::of(vmcb);
        vcpu.after_exit(vmcb, exit, now)
    }

    fn avic_block(vcpu: &mut ItsVcpu, input: EntryInput) -> bool {
        vcpu.block(input)
    }

    fn avic_preempt(vcpu: &mut ItsVcpu) {
        vcpu.preempt();
    }

    fn avic_pend_nmi(vcpu: &mut ItsVcpu, vmcb: &mut VmcbPage) -> bool {
        vcpu.pend_nmi(vmcb)
    }

    fn avic_state_replaced(vcpu: &mut ItsVcpu) {
        vcpu.state_replaced();
    }

    fn avic_inhibits(vcpu: &ItsVcpu) -> Inhibits {
        vcpu.inhibits()
    }

    fn avic_inhibit_all(shared: &Shared<'static>, inhibit: Inhibit, last: &mut (usize, Notify)) {
        for item in shared.inhibit(inhibit) {
            *last = item;
        }
    }

    fn avic_take_event(vcpu: &mut ItsVcpu) -> Option<Event> {
        vcpu.apic_mut().take_event()
    }

    fn avic_request(slot: &ItsSlot, vector: u8, trigger: Trigger) -> Receipt {
        slot.request(vector, trigger)
    }

    fn avic_receive(slot: &ItsSlot, delivery: Delivery) -> Receipt {
        slot.receive(delivery)
    }

    fn avic_notify_upcall(slot: &ItsSlot, pending: &AtomicU8) -> Notify {
        slot.notify_upcall(pending)
    }

    fn avic_announce_one(backing: &Backing) -> Notify {
        backing.announce()
    }

    fn avic_send(
        vm: &Vm<'static, Backing>,
        message: &Message,
        sender: Option<usize>,
        last: &mut (usize, Receipt),
    ) {
        // By a step, and from inside.
        let mut deliveries = vm.send(message, sender);
        if let Some(item) = deliveries.next() {
            *last = item;
        }
        deliveries.for_each(|item| *last = item);
    }

    fn avic_announce(
        vm: &Vm<'static, Backing>,
        destination: Destination,
        sender: Option<usize>,
        last: &mut (usize, Notify),
    ) {
        for item in vm.announce(destination, sender) {
            *last = item;
        }
    }

    fn avic_read_mmio(vcpu: &mut ItsVcpu, offset: u16, width: Width, now: u64) -> u64 {
        vcpu.apic_mut().read_mmio(offset, width, now)
    }

    fn avic_write_mmio(
        vcpu: &mut ItsVcpu,
        offset: u16,
        width: Width,
        value: u64,
        now: u64,
    ) -> Effect {
        vcpu.apic_mut().write_mmio(offset, width, value, now)
    }

    fn avic_read_msr(vcpu: &mut ItsVcpu, msr: u32, now: u64) -> Result<u64, Fault> {
        vcpu.apic_mut().read_msr(msr, now)
    }

    fn avic_write_msr(
        vcpu: &mut ItsVcpu,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, Fault> {
        vcpu.apic_mut().write_msr(msr, value, now)
    }
}
