//! A vCPU and its neighbour in plain emulation, stepped by hand.

use core::sync::atomic::{AtomicU8, Ordering};

use vlapic_core::{
    ApicPage, DirectInbox, Effect, Fault, LocalApic, Message, Register, Slot, Vector, Vm, Width,
};
use vlapic_hal::Clock;
use vlapic_hal::x86::TscClock;
use vlapic_sequences::Operation;
use vlapic_sequences::apic::UPCALL;
use vlapic_sequences::vmx::List;

use super::deviation::{Row, Rows};
use crate::guest::apic::APIC_BASE_MSR;

static PENDING: AtomicU8 = AtomicU8::new(0);

pub(super) struct Reference {
    pub(super) slots: &'static [Slot<'static, DirectInbox>],
    routes: Vm<'static, DirectInbox>,
    apic: LocalApic<'static, DirectInbox>,
    x2apic: bool,
    /// The processor delivers virtual interrupts by itself, so self-IPIs are its own.
    delivers: bool,
    interrupts: bool,
    pub(super) taken: List<u8, 16>,
    pub(super) eois: [u32; 256],
    pub(super) rows: Rows,
}

impl Reference {
    pub(super) fn new(
        slots: &'static [Slot<'static, DirectInbox>],
        x2apic: bool,
        delivers: bool,
    ) -> Option<Self> {
        drop(LocalApic::new(&slots[1], true));
        let mut apic = LocalApic::new(&slots[0], true);
        PENDING.store(0, Ordering::SeqCst);
        apic.register_upcall(UPCALL, &PENDING).ok()?;
        let mut reference = Self {
            slots,
            routes: Vm::new(slots).ok()?,
            apic,
            x2apic,
            delivers,
            interrupts: false,
            taken: List::new(),
            eois: [0; 256],
            rows: Rows::default(),
        };
        if x2apic {
            const EXTD: u64 = 1 << 10;
            let base = slots[0].base().bits() | EXTD;
            let effect = reference.apic.write_msr(APIC_BASE_MSR, base, TscClock.now()).ok()?;
            reference.carry_out(effect);
        }
        Some(reference)
    }

    pub(super) fn page(&self, index: usize) -> &'static ApicPage {
        self.slots[index].page()
    }

    /// An operation of the guest; what it reads, or 0.
    pub(super) fn step<H>(
        &mut self,
        operation: Operation<H>,
        host: impl FnOnce(&mut Self, H),
    ) -> Result<u64, Fault> {
        self.taken = List::new();
        let now = TscClock.now();
        let result = match operation {
            Operation::Load(offset, width) => {
                Ok(self.apic.read_mmio(offset, self::width(width), now))
            }
            Operation::Store(0x300, 4, value) if self.is_processors(value) => {
                self.page(0).write(Register::IcrLow, value as u32);
                self.processor_sends(value as u8);
                Ok(0)
            }
            Operation::Store(offset, width, value) => {
                let effect = self.apic.write_mmio(offset, self::width(width), value, now);
                self.carry_out(effect);
                Ok(0)
            }
            Operation::ReadMsr(msr) => self.apic.read_msr(msr, now),
            Operation::WriteMsr(0x83f, value @ 0x10..=0xff) if self.delivers => {
                self.page(0).write(Register::SelfIpi, value as u32);
                self.processor_sends(value as u8);
                Ok(0)
            }
            Operation::WriteMsr(msr, value) => self.apic.write_msr(msr, value, now).map(|effect| {
                self.carry_out(effect);
                0
            }),
            Operation::ReadCr8 => Ok(self.apic.read_cr8()),
            Operation::WriteCr8(value) => self.apic.write_cr8(value, now).map(|effect| {
                self.carry_out(effect);
                0
            }),
            Operation::Interrupts(on) => {
                self.interrupts = on;
                Ok(0)
            }
            Operation::Host(operation) => {
                host(self, operation);
                Ok(0)
            }
        };
        self.settle();
        result
    }

    /// A message of a device.
    pub(super) fn send(&self, message: &Message, sender: Option<usize>) {
        self.routes.send(message, sender).for_each(drop);
    }

    pub(super) fn notify_upcall(&self) {
        let _ = self.slots[0].notify_upcall(&PENDING);
    }

    pub(super) fn clear_pending(&self) {
        PENDING.store(0, Ordering::SeqCst);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ipi(message) => self.send(&message, Some(0)),
            Effect::EndOfInterrupt(vector) => self.eois[usize::from(vector.get())] += 1,
            _ => {}
        }
    }

    /// Takes what it can take; handlers only note their vector.
    fn settle(&mut self) {
        let prepared = self.apic.prepare(TscClock.now());
        debug_assert!(!prepared.event, "no sequence sends events");
        while let Some(vector) = self.apic.nominate()
            && self.interrupts
            && self.apic.commit(vector)
        {
            self.taken.push(vector.get());
        }
    }

    /// Whether the processor makes a self-IPI of a store to the ICR's low half (SDM Vol. 3C "APIC-write emulation").
    fn is_processors(&self, value: u64) -> bool {
        const DIFFERS: u64 = 0xffff_b700;
        const SELF: u64 = 1 << 18;
        self.delivers && !self.x2apic && value & DIFFERS == SELF && value & 0xf0 != 0
    }

    /// Self-IPI virtualization.
    fn processor_sends(&mut self, vector: u8) {
        let Some(vector) = Vector::new(vector) else { return };
        let page = self.page(0);
        if !self.slots[0].accepts() {
            self.rows.add(Row::AcceptedWhileDisabled);
        }
        if page.tmr().contains(vector) {
            self.rows.add(Row::TmrKept);
        }
        page.irr().insert(vector);
    }
}

fn width(bytes: u8) -> Width {
    match bytes {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        _ => Width::Qword,
    }
}
