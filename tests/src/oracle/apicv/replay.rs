//! One batch on the model, under the script that the image follows.

use vlapic_sequences::Digest;
use vlapic_sequences::vmx::{
    Batch, Exit, HOST_VECTOR, HostOperation, List, NOTIFICATION, Operation, Record, Setup,
};

use super::deviation::Quirks;
use crate::model::rig::{self, Rig, Storage};
use crate::model::{ExitReason, Knobs, Outcome, Shadow, VmExit, controls, field};

/// What the model does in a batch.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Each step.
    pub records: Vec<Record>,
    /// The page after each step.
    pub pages: Vec<Vec<u32>>,
    /// Interrupts that the guest took, and exits: a run without them shows little.
    pub taken: usize,
    /// As above.
    pub exits: usize,
}

impl Replay {
    /// The digest that the image prints for the batch.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::new();
        self.records.iter().for_each(|record| record.add_to(&mut digest));
        digest.value()
    }
}

/// Carries out a batch on the model.
#[must_use]
pub fn replay(batch: &Batch, quirks: Quirks) -> Replay {
    let storage = Storage::new();
    let knobs = Knobs {
        vid_virtualizes_reads: !quirks.no_reads_by_delivery,
        posting_rescans_virr: quirks.posting_rescans_virr,
        writes_by_slot: quirks.writes_by_slot,
        delivery_stores_msrs: !quirks.msrs_not_stored,
        // The manual leaves it open, so that it is not a deviation.
        entry_clears_vtpr_upper_bytes: false,
        ..Knobs::default()
    };
    let mut script = Script::new(batch, &storage, quirks, knobs);
    let mut replay = Replay { records: Vec::new(), pages: Vec::new(), taken: 0, exits: 0 };
    script.enter();
    for &operation in &batch.operations {
        let record = script.step(operation);
        replay.taken += record.taken.count();
        replay.exits += record.exits.count();
        replay.records.push(record);
        replay.pages.push((0..0x400).step_by(4).map(|offset| storage.word(offset)).collect());
    }
    replay
}

struct Script<'m> {
    rig: Rig<'m>,
    setup: Setup,
    quirks: Quirks,
    threshold: u8,
    /// The guest's RFLAGS.IF outside of handlers.
    interrupts: bool,
    /// Physical interrupts that have not reached the core because of [`Quirks::masked_after_entry`].
    held: Vec<u8>,
    /// The last entry was made with IF = 0, which has not changed since.
    masked: bool,
    taken: List<u8, 16>,
    exits: List<Exit, 16>,
}

impl<'m> Script<'m> {
    fn new(batch: &Batch, storage: &'m Storage, quirks: Quirks, knobs: Knobs) -> Self {
        let setup = batch.setup;
        batch.initial_page(|offset, word| storage.set_word(offset.into(), word));
        let mut rig = Rig::new(storage, controls_of(setup), knobs);
        let mut bitmap = [0_u8; 4096];
        for msr in 0x800..=0x8ff_u32 {
            for write in [false, true] {
                let byte = if write { 2048 } else { 0 } + msr as usize / 8;
                bitmap[byte] |= u8::from(setup.intercepts(batch.seed, msr, write)) << (msr % 8);
            }
        }
        rig.memory.add_bytes(Storage::MSR_BITMAP, &bitmap);
        rig.vmcs().set(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, NOTIFICATION.into());
        if setup.cr8_exits() {
            let bits = controls::primary::CR8_LOAD_EXITING | controls::primary::CR8_STORE_EXITING;
            rig.vmcs().set_bits(field::PRIMARY, bits);
        }
        rig.set_interrupt_status(batch.status.0, batch.status.1);
        Script {
            rig,
            setup,
            quirks,
            threshold: 0,
            interrupts: false,
            held: Vec::new(),
            masked: false,
            taken: List::new(),
            exits: List::new(),
        }
    }

    /// One step, and all that happens before the next.
    fn step(&mut self, operation: Operation) -> Record {
        (self.taken, self.exits) = (List::new(), List::new());
        let core = &mut self.rig.core;
        let outcome = match operation {
            Operation::Load(offset, width) => core.mmio_read(offset.into(), width.into()),
            Operation::Store(offset, width, value) => {
                core.mmio_write(offset.into(), width.into(), value)
            }
            Operation::ReadMsr(msr) => core.rdmsr(msr),
            Operation::WriteMsr(msr, value) => core.wrmsr(msr, value),
            Operation::ReadCr8 => core.read_cr8(),
            Operation::WriteCr8(value) => core.write_cr8(value),
            Operation::Interrupts(on) => {
                self.unmask();
                self.interrupts = on;
                self.rig.core.set_interrupt_flag(on)
            }
            Operation::Host(operation) => {
                let exit = core.vmcall();
                assert!(exit.exit().is_some(), "VMCALL always exits");
                self.host(operation);
                self.enter();
                Outcome::Done
            }
        };
        let (value, fault) = match outcome {
            Outcome::Value(value) => (value, false),
            Outcome::GeneralProtection => {
                // The handler's IRET loads RFLAGS.
                self.unmask();
                (0, true)
            }
            Outcome::Exit(exit) => {
                self.exit(exit);
                self.enter();
                (0, false)
            }
            _ => (0, false),
        };
        self.settle();
        let page = Record::page_digest(|offset| self.rig.storage.word(offset.into()));
        Record { value, fault, taken: self.taken, exits: self.exits, page }
    }

    /// Boundaries until nothing more happens. A handler notes its vector and returns.
    fn settle(&mut self) {
        let mut in_handler = false;
        loop {
            let interrupts = self.interrupts && !in_handler;
            let delivers = interrupts || self.delivers_without_if();
            match self.rig.core.boundary(delivers, Shadow::None) {
                Outcome::Delivered(vector) => {
                    self.taken.push(vector);
                    self.unmask();
                    in_handler = true;
                }
                Outcome::Exit(exit) => {
                    self.exit(exit);
                    in_handler |= self.enter();
                }
                Outcome::Posted => {}
                _ if in_handler => in_handler = false,
                _ => return,
            }
        }
    }

    /// See [`Quirks::delivered_without_if`].
    fn delivers_without_if(&self) -> bool {
        self.quirks.delivered_without_if
            && self.rig.core.recognized()
            && self.rig.core.physical.pending().is_some()
    }

    /// Enters the guest, again after exits that come at once. Whether an event was injected, so that a handler runs.
    fn enter(&mut self) -> bool {
        loop {
            let vtpr = self.rig.storage.word(0x080) as u8;
            let threshold =
                if self.setup.tpr_shadow { self.setup.threshold(self.threshold, vtpr) } else { 0 };
            self.rig.vmcs().set(field::TPR_THRESHOLD, threshold.into());
            let entered = self.rig.try_enter().expect("the script's controls are consistent");
            self.masked =
                self.quirks.masked_after_entry && !self.interrupts && entered.injected.is_none();
            if !self.masked {
                self.unmask();
            }
            if let Some(vector) = entered.injected {
                self.taken.push(vector);
            }
            match entered.exit {
                None => return entered.injected.is_some(),
                Some(exit) => self.exit(exit),
            }
        }
    }

    /// What is held reaches the core.
    fn unmask(&mut self) {
        self.masked = false;
        for vector in self.held.drain(..) {
            self.rig.core.raise(vector);
        }
    }

    /// Notes an exit and does what the script says.
    fn exit(&mut self, exit: VmExit) {
        use ExitReason as R;
        let traps = [R::TprBelowThreshold, R::VirtualizedEoi, R::ApicWrite];
        let (rvi, svi) = self.rig.saved_interrupt_status();
        let delivery = self.setup.delivery;
        let is_interrupt = exit.reason == R::ExternalInterrupt;
        self.exits.push(Exit {
            reason: exit.reason as u16,
            done: exit.trap_like && traps.contains(&exit.reason),
            qualification: exit.qualification,
            status: if delivery { u16::from(svi) << 8 | u16::from(rvi) } else { 0 },
            interruption: if is_interrupt { exit.interruption_info } else { 0 },
        });
        match exit.reason {
            R::TprBelowThreshold => self.threshold = 0,
            R::InterruptWindow => self.set_window(false),
            R::ExternalInterrupt => self.rig.core.physical.end_of_interrupt(),
            _ => {}
        }
    }

    fn host(&mut self, operation: HostOperation) {
        match operation {
            HostOperation::Nothing => {}
            HostOperation::Request(vector) => {
                self.rig.storage.request(vector);
                let (rvi, svi) = self.rig.saved_interrupt_status();
                self.rig.set_interrupt_status(rvi.max(vector), svi);
            }
            HostOperation::Status(rvi, svi) => self.rig.set_interrupt_status(rvi, svi),
            HostOperation::EoiExit(vector, exits) => {
                let encoding = field::EOI_EXIT_BITMAP[usize::from(vector / 64)];
                let bit = 1 << (vector % 64);
                let word = self.rig.vmcs().get(encoding);
                self.rig.vmcs().set(encoding, if exits { word | bit } else { word & !bit });
            }
            HostOperation::Threshold(threshold) => self.threshold = threshold,
            HostOperation::Window => self.set_window(true),
            HostOperation::Post(vector, notify) => {
                self.rig.storage.post(vector);
                if notify {
                    self.interrupt(NOTIFICATION);
                }
            }
            HostOperation::Inject(vector) => {
                let info = 1 << 31 | u64::from(vector);
                self.rig.vmcs().set(field::ENTRY_INTERRUPTION_INFO, info);
            }
            HostOperation::Interrupt => self.interrupt(HOST_VECTOR),
            HostOperation::Page(offset, value) => self.rig.storage.set_word(offset.into(), value),
        }
    }

    /// The host sends its own CPU an interrupt. The local APIC keeps one of each vector.
    fn interrupt(&mut self, vector: u8) {
        if !self.held.contains(&vector) {
            self.held.push(vector);
        }
    }

    fn set_window(&mut self, on: bool) {
        let bit = u64::from(controls::primary::INTERRUPT_WINDOW_EXITING);
        let word = self.rig.vmcs().get(field::PRIMARY);
        self.rig.vmcs().set(field::PRIMARY, if on { word | bit } else { word & !bit });
    }
}

fn controls_of(setup: Setup) -> rig::Setup {
    rig::Setup {
        tpr_shadow: setup.tpr_shadow,
        apic_accesses: setup.apic_accesses,
        x2apic: setup.x2apic,
        register_virtualization: setup.registers,
        delivery: setup.delivery,
        posted: setup.posted,
        ipi: false,
    }
}
