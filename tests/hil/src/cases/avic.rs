//! What only AVIC does: the cases of `vlapic-svm-loop`, which the tests run on the silicon model as well.

use core::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::Trigger;
use vlapic_svm_loop::cases::{CASES as SHARED, Call, Guest};

use super::stage::Stage;
use super::{Case, Failure, Mode, Setting, guests};
use crate::guest::{self, Context, apic, cpu, hypercall};
use crate::hypervisor::{Config, Level, VirtualMachine};

pub(super) const CASES: &[Case] = &[
    case(0, |at| run(at, 0)),
    case(1, |at| run(at, 1)),
    case(2, |at| run(at, 2)),
    case(3, |at| run(at, 3)),
    case(4, |at| run(at, 4)),
    case(5, |at| run(at, 5)),
    case(6, |at| run(at, 6)),
    case(7, |at| run(at, 7)),
    case(8, |at| run(at, 8)),
];

const _: () = assert!(CASES.len() == SHARED.len());

const fn case(index: usize, run: fn(Setting) -> Result<(), Failure>) -> Case {
    let shared = &SHARED[index];
    Case { name: shared.name, cpus: shared.vcpus, applies: |at| at.level == Level::Avic, run }
}

fn run(setting: Setting, index: usize) -> Result<(), Failure> {
    let mut config = Config::new(setting.level, SHARED[index].vcpus);
    config.on_call = on_call;
    WORD.store(0, Ordering::SeqCst);
    let stage = Stage::with_first_here(config)?;
    let argument = guests::argument(setting.mode) | (index as u64) << 8;
    stage.launch(program, argument)?;
    (1..stage.vcpus()).for_each(|index| stage.start(index));
    stage.run_first(program, argument)?;
    stage.finish_all()
}

const CALL: u64 = hypercall::FIRST_FREE;

/// The word that the guests share.
static WORD: AtomicU64 = AtomicU64::new(0);

fn on_call(machine: &VirtualMachine, _: usize, _: u64, first: u64, second: u64) -> u64 {
    match Call::decode(first, second) {
        Some(Call::Exits(vcpu)) => machine.guest_exits(vcpu),
        Some(Call::Post { vcpu, vector, level }) => {
            let trigger = if level { Trigger::Level } else { Trigger::Edge };
            machine.carry_out(vcpu, machine.slot(vcpu).request(vector, trigger));
            0
        }
        Some(Call::Ends(vector)) => machine.eois[usize::from(vector)].load(Ordering::SeqCst).into(),
        Some(Call::Sleeps(vcpu)) => machine.slot(vcpu).is_blocked().into(),
        Some(Call::Inhibit(on)) => {
            machine.inhibit_avic(on);
            0
        }
        None => u64::MAX,
    }
}

extern "C" fn program(context: &'static Context, argument: u64) -> u64 {
    let mode = guests::mode(argument);
    let Some(case) = SHARED.get((argument >> 8) as usize) else { return u64::from(line!()) };
    if guests::enable_apic(context, mode).is_err() {
        return u64::from(line!());
    }
    let index = context.word(super::stage::INDEX).load(Ordering::Relaxed) as usize;
    (case.program)(&mut Inside { context, index, mode })
}

/// The vCPU that runs this.
struct Inside {
    context: &'static Context,
    index: usize,
    mode: Mode,
}

impl Guest for Inside {
    fn index(&self) -> usize {
        self.index
    }

    fn is_x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    fn read(&mut self, offset: u16) -> u64 {
        apic::read(self.context, offset).unwrap_or(u64::MAX)
    }

    fn write(&mut self, offset: u16, value: u64) {
        // A write that faults is found out by what it did not do.
        let _ = apic::write(self.context, offset, value);
    }

    fn read_cr8(&mut self) -> u64 {
        cpu::read_cr8()
    }

    fn write_cr8(&mut self, value: u64) {
        let _ = cpu::write_cr8(value);
    }

    fn interrupts_off(&mut self) {
        cpu::interrupts_off();
    }

    fn interrupts_on(&mut self) {
        cpu::interrupts_on();
    }

    fn halt(&mut self) {
        cpu::wait_for_interrupt();
    }

    fn pause(&self) {
        core::hint::spin_loop();
    }

    fn taken(&self, vcpu: usize, vector: u8) -> u64 {
        guest::context(vcpu).count(vector).into()
    }

    fn word(&self) -> &AtomicU64 {
        &WORD
    }

    fn call(&mut self, call: Call) -> u64 {
        let (kind, argument) = call.encode();
        hypercall::call(CALL, kind, argument)
    }
}
