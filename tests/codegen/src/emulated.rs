//! `vlapic-core` by itself: plain emulation.

use core::sync::atomic::AtomicU8;

use vlapic_core::{
    Backend, Delivery, Destination, DirectInbox, Effect, Emulated, Entry, EntryInput, Errors,
    Event, Fault, IllegalUpcallVector, Injection, LocalApic, LvtEntry, Message, MsiAddress,
    MsiData, MsiDestination, MsiError, Notify, Pin, Prepared, Receipt, Register, Slot, Trigger,
    Vector, Vm, Width,
};

use crate::entries;

type ItsSlot = Slot<'static, DirectInbox>;
type Apic = LocalApic<'static, DirectInbox>;

entries! {
    fn core_present(slot: &ItsSlot) -> bool {
        slot.present()
    }

    fn core_accepts(slot: &ItsSlot) -> bool {
        slot.accepts()
    }

    fn core_delivers(slot: &ItsSlot) -> bool {
        slot.delivers()
    }

    fn core_request(slot: &ItsSlot, vector: u8, trigger: Trigger) -> Receipt {
        slot.request(vector, trigger)
    }

    fn core_receive(slot: &ItsSlot, delivery: Delivery) -> Receipt {
        slot.receive(delivery)
    }

    fn core_local_event(slot: &ItsSlot, entry: LvtEntry) -> Receipt {
        slot.local_event(entry)
    }

    fn core_record_error(slot: &ItsSlot, errors: Errors) -> Notify {
        slot.record_error(errors)
    }

    fn core_set_lint(slot: &ItsSlot, pin: Pin, asserted: bool) -> Notify {
        slot.set_lint(pin, asserted)
    }

    fn core_notify_upcall(slot: &ItsSlot, pending: &AtomicU8) -> Notify {
        slot.notify_upcall(pending)
    }

    fn core_register_upcall(
        slot: &ItsSlot,
        vector: u8,
        pending: &AtomicU8,
    ) -> Result<Notify, IllegalUpcallVector> {
        slot.register_upcall(vector, pending)
    }

    fn core_send(
        vm: &Vm<'static, DirectInbox>,
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

    fn core_targets(
        vm: &Vm<'static, DirectInbox>,
        destination: Destination,
        sender: Option<usize>,
        last: &mut usize,
    ) {
        for item in vm.targets(destination, sender) {
            *last = item;
        }
    }

    fn core_decode_msi(
        address: u64,
        data: u32,
        width: MsiDestination,
    ) -> Result<Option<Message>, MsiError> {
        Message::from_msi(MsiAddress::from_bits(address), MsiData::from_bits(data), width)
    }

    fn core_read_mmio(apic: &mut Apic, offset: u16, width: Width, now: u64) -> u64 {
        apic.read_mmio(offset, width, now)
    }

    fn core_write_mmio(apic: &mut Apic, offset: u16, width: Width, value: u64, now: u64) -> Effect {
        apic.write_mmio(offset, width, value, now)
    }

    fn core_read_msr(apic: &mut Apic, msr: u32, now: u64) -> Result<u64, Fault> {
        apic.read_msr(msr, now)
    }

    fn core_write_msr(apic: &mut Apic, msr: u32, value: u64, now: u64) -> Result<Effect, Fault> {
        apic.write_msr(msr, value, now)
    }

    fn core_read_cr8(apic: &Apic) -> u64 {
        apic.read_cr8()
    }

    fn core_write_cr8(apic: &mut Apic, value: u64, now: u64) -> Result<Effect, Fault> {
        apic.write_cr8(value, now)
    }

    fn core_after_write(apic: &mut Apic, register: Register, now: u64) -> Effect {
        apic.after_write(register, now)
    }

    fn core_take_event(apic: &mut Apic) -> Option<Event> {
        apic.take_event()
    }

    fn core_prepare(apic: &mut Apic, now: u64) -> Prepared {
        apic.prepare(now)
    }

    fn core_nominate(apic: &Apic) -> Option<Vector> {
        apic.nominate()
    }

    fn core_commit(apic: &mut Apic, vector: Vector) -> bool {
        apic.commit(vector)
    }

    fn core_acknowledge(apic: &mut Apic) -> u8 {
        apic.acknowledge()
    }

    fn core_end_of_interrupt(apic: &mut Apic) -> Effect {
        apic.end_of_interrupt()
    }

    fn core_next_deadline(apic: &Apic) -> Option<u64> {
        apic.next_deadline()
    }

    fn core_before_entry(
        vcpu: &mut Emulated<'static>,
        injection: &mut Injection,
        input: EntryInput,
    ) -> Option<Entry> {
        vcpu.before_entry(injection, input).ok()
    }

    fn core_block(vcpu: &mut Emulated<'static>, input: EntryInput) -> bool {
        vcpu.block(input)
    }
}
