//! `apicv` over the VMCS that is current.

use core::sync::atomic::AtomicU8;

use apicv::{Exit, Posting, Vcpu};
use vlapic_core::{
    Backend, Delivery, Destination, Effect, Entry, EntryInput, Event, ExitOutcome, Fault, Message,
    Notify, Receipt, Slot, Trigger, Vector, Vm, Width,
};
use vlapic_hal::VmcsError;
use vlapic_hal::x86::CurrentVmcs;

use crate::entries;

type ItsSlot = Slot<'static, Posting<'static>>;
type ItsVcpu = Vcpu<'static>;

entries! {
    fn apicv_before_entry(
        vcpu: &mut ItsVcpu,
        vmcs: &mut CurrentVmcs,
        input: EntryInput,
    ) -> Result<Entry, VmcsError> {
        vcpu.before_entry(vmcs, input)
    }

    fn apicv_after_exit(vcpu: &mut ItsVcpu, exit: Exit, now: u64) -> ExitOutcome {
        vcpu.after_exit(exit, now)
    }

    fn apicv_block(vcpu: &mut ItsVcpu, input: EntryInput) -> bool {
        vcpu.block(input)
    }

    fn apicv_preempt(vcpu: &mut ItsVcpu) {
        Backend::<CurrentVmcs>::preempt(vcpu);
    }

    fn apicv_take_event(vcpu: &mut ItsVcpu) -> Option<Event> {
        vcpu.apic_mut().take_event()
    }

    fn apicv_request(slot: &ItsSlot, vector: u8, trigger: Trigger) -> Receipt {
        slot.request(vector, trigger)
    }

    fn apicv_receive(slot: &ItsSlot, delivery: Delivery) -> Receipt {
        slot.receive(delivery)
    }

    fn apicv_notify_upcall(slot: &ItsSlot, pending: &AtomicU8) -> Notify {
        slot.notify_upcall(pending)
    }

    fn apicv_send(
        vm: &Vm<'static, Posting<'static>>,
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

    fn apicv_announce(
        vm: &Vm<'static, Posting<'static>>,
        destination: Destination,
        sender: Option<usize>,
        last: &mut (usize, Notify),
    ) {
        for item in vm.announce(destination, sender) {
            *last = item;
        }
    }

    fn apicv_set_level_route(posting: &Posting<'static>, vector: Vector, routed: bool) {
        posting.set_level_route(vector, routed);
    }

    fn apicv_offline(posting: &Posting<'static>) {
        posting.offline();
    }

    fn apicv_move_blocked(posting: &Posting<'static>, cpu: u32) -> bool {
        posting.move_blocked(cpu)
    }

    fn apicv_wants_waking(posting: &Posting<'static>) -> bool {
        posting.wants_waking()
    }

    fn apicv_read_mmio(vcpu: &mut ItsVcpu, offset: u16, width: Width, now: u64) -> u64 {
        vcpu.apic_mut().read_mmio(offset, width, now)
    }

    fn apicv_write_mmio(
        vcpu: &mut ItsVcpu,
        offset: u16,
        width: Width,
        value: u64,
        now: u64,
    ) -> Effect {
        vcpu.apic_mut().write_mmio(offset, width, value, now)
    }

    fn apicv_read_msr(vcpu: &mut ItsVcpu, msr: u32, now: u64) -> Result<u64, Fault> {
        vcpu.apic_mut().read_msr(msr, now)
    }

    fn apicv_write_msr(
        vcpu: &mut ItsVcpu,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Effect, Fault> {
        vcpu.apic_mut().write_msr(msr, value, now)
    }
}
