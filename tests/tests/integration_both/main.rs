//! One hypervisor for every processor: set-up and run loop are written once, over `Configure` and `Backend`, and run the
//! same guest on the model of APICv, on the model of AVIC, and with no help at all.
//!
//! What stands between the two `glue` lines is all that such a hypervisor writes for the APIC. `Host` is what it has
//! anyway: its processor, its timer, its way to reach another CPU. `docs/integration.md` explains each call.

mod amd;
mod host;
mod intel;
mod plain;
mod script;

use std::sync::atomic::AtomicU8;

use vlapic_core::{
    Configure, Effect, ExitOutcome, LocalApic, Next, Notify, Probe, SvrWrites, Vm, Wanted,
};

use vlapic_tests::avic_model::Capability;
use vlapic_tests::model::Level;

use crate::host::{Host, Why};
use crate::script::{Seen, Step};

// glue
fn run<'s, C, B, H>(
    host: &mut H,
    mut vcpu: B,
    vm: Vm<'s, B::Inbox>,
    me: usize,
    pending: &'s AtomicU8,
) -> Result<(), &'static str>
where
    B: Configure<'s, C>,
    B::Capabilities: Probe<H::Processor>,
    H: Host<'s, C, B>,
{
    let probed = B::Capabilities::probe(host.processor());
    let capabilities = probed.map_err(|_| "not the processor that this was built for")?;
    vcpu.set_svr_writes(SvrWrites::Exit);
    vcpu.apic_mut().bind_upcall(pending);
    let resources = host.resources();
    let granted = vcpu.configure(host.controls(), &capabilities, Wanted::ALL, resources);
    host.granted(granted.map_err(|_| "memory that the processor cannot use")?);
    while !host.finished() {
        host.interrupts_off();
        let input = host.entry_input();
        let prepared = vcpu.before_entry(host.controls(), input);
        let entry = prepared.map_err(|_| "controls that cannot be accessed")?;
        if entry.next != Next::Enter || host.take_kick() {
            host.interrupts_on();
            match entry.next {
                Next::TakeEvent => host.carry_out(vcpu.apic_mut().take_event()),
                Next::AwaitStartup => host.sleep_until(None),
                Next::UnmapWindow => host.unmap_window(),
                Next::KickOthers => {
                    let others = (0..vm.slots().len()).filter(|&other| other != me);
                    others.for_each(|other| host.notify(other, Notify::Kick));
                }
                _ => {}
            }
            continue;
        }
        let exit = host.enter(&entry);
        host.interrupts_on();
        let now = host.now();
        let handled = vcpu.after_exit(host.controls(), &exit, now);
        let effect = match handled.map_err(|_| "controls that cannot be accessed")? {
            ExitOutcome::Done(effect) => effect,
            ExitOutcome::Decode(_) | ExitOutcome::Msr { .. } => host.emulate(vcpu.apic_mut()),
            _ => match host.why(&exit) {
                Why::Access => host.emulate(vcpu.apic_mut()),
                Why::Halt => {
                    while vcpu.block(host.entry_input()) && !host.take_kick() {
                        host.sleep_until(vcpu.apic().next_deadline());
                    }
                    Effect::None
                }
                Why::Other => Effect::None,
            },
        };
        match effect {
            Effect::Ipi(message) => vm
                .send(&message, Some(me))
                .for_each(|(target, receipt)| host.notify(target, receipt.notify)),
            Effect::Announce(message) => vm
                .announce(message.destination(), Some(me))
                .for_each(|(target, notify)| host.notify(target, notify)),
            Effect::EndOfInterrupt(vector) => host.end_of_interrupt(vector),
            _ => {} // The next entry has it: when to exit, which mode, what to flush.
        }
    }
    Ok(())
}
// end of glue

/// The guest that all of them run.
fn program() -> Vec<Step> {
    use vlapic_core::Trigger::{Edge, Level};
    const EOI: Step = Step::Store(0xb0, 0);
    const X2APIC_EOI: Step = Step::WriteMsr(0x80b, 0);
    vec![
        // An upcall before the APIC is enabled: nothing shows, and it comes with the store to SVR.
        Step::Upcall,
        Step::InterruptsOn,
        Step::Load(0x270),
        Step::Store(0xf0, 0x1ff),
        EOI,
        Step::InterruptsOn,
        Step::Device(0x51, Edge),
        EOI,
        // Level-triggered, and another device that waits for the first one's end.
        Step::InterruptsOn,
        Step::Device(0x61, Level),
        Step::Device(0x41, Edge),
        Step::InterruptsOn,
        EOI,
        EOI,
        // An NMI beside a vector: the NMI goes first, the vector waits for RFLAGS.IF.
        Step::Device(0x55, Edge),
        Step::Nmi,
        Step::InterruptsOn,
        EOI,
        // The timer, in the middle of a computation.
        Step::Store(0x320, 0x52),
        Step::Store(0x3e0, 0xb),
        Step::Store(0x380, 1000),
        Step::InterruptsOn,
        Step::Compute(1500),
        EOI,
        Step::Load(0x390),
        // TPR holds a vector back.
        Step::InterruptsOn,
        Step::Store(0x80, 0x70),
        Step::Device(0x65, Edge),
        Step::Load(0x80),
        Step::Store(0x80, 0),
        EOI,
        // INIT to another vCPU, which nobody has made yet; then an IPI to itself.
        Step::Store(0x310, 0x0100_0000),
        Step::Store(0x300, 0x4500),
        Step::InterruptsOn,
        Step::Store(0x300, 0x4_4091),
        EOI,
        // x2APIC mode: the same once more, by MSRs.
        Step::WriteMsr(0x1b, 0xfee0_0d00),
        Step::ReadMsr(0x802),
        Step::InterruptsOn,
        Step::WriteMsr(0x83f, 0xa1),
        X2APIC_EOI,
        Step::InterruptsOn,
        Step::Halt(0x71),
        X2APIC_EOI,
        Step::InterruptsOn,
        Step::Halt(0x81),
        X2APIC_EOI,
        Step::Finish,
    ]
}

fn expected() -> Seen {
    Seen {
        taken: vec![
            script::UPCALL,
            0x51,
            0x61,
            0x41,
            script::NMI,
            0x55,
            0x52,
            0x65,
            0x91,
            0xa1,
            0x71,
            0x81,
        ],
        ended: vec![0x61],
        kicked: vec![1],
        // IRR before the enable; current count after the timer; TPR; the x2APIC ID.
        read: vec![0, 0, 0x70, 0],
        sleeps: 2,
    }
}

#[test]
fn plain_emulation() {
    assert_eq!(plain::run(program()), (expected(), "granted: none".into()));
}

#[test]
fn apicv_at_every_level() {
    for (level, granted) in intel::LEVELS {
        let (seen, grant) = intel::run(level, program());
        assert_eq!(seen, expected(), "{level:?}");
        assert!(grant.starts_with(&format!("granted: {granted}")), "{grant}");
    }
}

#[test]
fn avic_at_every_level() {
    for (capability, granted) in amd::LEVELS {
        let (seen, grant) = amd::run(capability, program());
        assert_eq!(seen, expected(), "{granted}");
        assert!(grant.starts_with(&format!("granted: {granted}")), "{grant}");
    }
}

/// What is helped with is worth something: fewer exits, for the same interrupts.
#[test]
fn help_saves_exits() {
    let plain = plain::exits(program());
    let apicv = intel::exits(Level::IpiVirtualization, program());
    let avic = amd::exits(Capability::x2avic(), program());
    assert!(apicv < plain && avic < plain, "{plain} {apicv} {avic}");
}

/// Set-up and loop together stay under sixty lines, counted as those of the other integrations are.
#[test]
fn the_loop_is_short() {
    let lines = include_str!("main.rs").lines().skip_while(|line| *line != "// glue").skip(1);
    let glue = lines.take_while(|line| *line != "// end of glue");
    let says_something =
        |line: &&str| !line.trim_start().starts_with("//") && line.contains(char::is_alphanumeric);
    let count = glue.filter(says_something).count();
    assert!((40..60).contains(&count), "{count} lines");
}

/// Names the APIC of a vCPU whatever its backend.
type Apic<'s, I> = LocalApic<'s, I>;
