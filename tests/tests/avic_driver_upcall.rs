//! Upcalls with the AVIC driver on the model: exactly one for each event, however SVR is written.

use std::sync::atomic::Ordering::SeqCst;

use avic::{Face, Wanted};
use vlapic_core::{Bank, Mode, Register, SvrWrites};
use vlapic_tests::avic_hypervisor::{Config, Hypervisor, run};
use vlapic_tests::avic_model::Knobs;
use vlapic_tests::hypervisor::Op;

const VECTOR: u8 = 0xf3;
const RECHECK: u64 = 5_000;

/// How the guest's handler does its two duties.
#[derive(Clone, Copy, Debug)]
enum Handler {
    EoiFirst,
    ClearFirst,
}

/// Emulated, by a trap, by an intercepted MSR, and with no exit at all; and the face that goes with it.
fn ways() -> [(Config, Face); 5] {
    let config = Config::new(2);
    let silent = Knobs { svr_writes_never_exit: true, ..config.knobs };
    let svr_writes = SvrWrites::Silent { recheck: RECHECK };
    [
        (Config { wanted: Wanted::NONE, ..config }, Face::Emulated),
        (Config { wanted: Wanted::NONE, mode: Mode::X2Apic, ..config }, Face::Emulated),
        (config, Face::XAvic),
        (Config { mode: Mode::X2Apic, ..config }, Face::X2Avic),
        (Config { knobs: silent, svr_writes, ..config }, Face::XAvic),
    ]
}

fn write_svr(hypervisor: &mut Hypervisor<'_>, value: u64) {
    let _ = hypervisor.write(1, Register::Svr, value);
}

/// vCPU 1 runs for longer than the re-check takes and handles what upcalls there are.
fn handle(hypervisor: &mut Hypervisor<'_>, handler: Handler) -> usize {
    let mut seen = 0;
    for _ in 0..3 {
        hypervisor.advance(RECHECK as u32);
        while hypervisor.taken(1).len() > seen {
            seen += 1;
            let pending = &hypervisor.storage().pending[1];
            match handler {
                Handler::EoiFirst => {
                    hypervisor.eoi(1);
                    pending.store(0, SeqCst);
                }
                Handler::ClearFirst => {
                    pending.store(0, SeqCst);
                    hypervisor.eoi(1);
                }
            }
        }
    }
    assert!(hypervisor.taken(1).iter().all(|&vector| vector == VECTOR));
    hypervisor.vcpu_mut(1).forget_taken();
    seen
}

fn stale_bits(hypervisor: &mut Hypervisor<'_>) -> bool {
    (0..8).map(Bank::new).any(|bank| {
        hypervisor.read(1, Register::Irr(bank)) != 0 || hypervisor.read(1, Register::Isr(bank)) != 0
    })
}

#[test]
fn exactly_once() {
    for (config, face) in ways() {
        for handler in [Handler::EoiFirst, Handler::ClearFirst] {
            run(config, |hypervisor| {
                hypervisor.register_upcall(1, VECTOR);
                hypervisor.notify_upcall(1);
                hypervisor.notify_upcall(1);
                assert!(!stale_bits(hypervisor), "early: {config:?}");
                assert_eq!(handle(hypervisor, handler), 0, "early: {config:?}");
                let pending = hypervisor.storage().pending[1].load(SeqCst);
                assert_eq!(pending, 1, "the byte is the guest's");
                assert_eq!(hypervisor.face(1), face);

                write_svr(hypervisor, 0x1ff);
                assert_eq!(handle(hypervisor, handler), 1, "{handler:?} {config:?}");
                write_svr(hypervisor, 0x1fe);
                assert_eq!(handle(hypervisor, handler), 0, "SVR written again: {config:?}");

                hypervisor.notify_upcall(1);
                assert_eq!(handle(hypervisor, handler), 1, "{handler:?} {config:?}");

                // Disabled again: the next is owed, and paid once.
                write_svr(hypervisor, 0xff);
                hypervisor.notify_upcall(1);
                assert_eq!(handle(hypervisor, handler), 0, "{config:?}");
                assert!(!stale_bits(hypervisor), "{config:?}");
                write_svr(hypervisor, 0x1ff);
                assert_eq!(handle(hypervisor, handler), 1, "{config:?}");
                assert_eq!(handle(hypervisor, handler), 0, "{config:?}");
                assert!(!stale_bits(hypervisor), "{config:?}");
            });
        }
    }
}

/// The write of SVR is as silent as it is said to be: it costs no exit, and the debt is paid within the time agreed.
#[test]
fn a_silent_enable_is_found_in_time() {
    let [.., (config, _)] = ways();
    run(config, |hypervisor| {
        hypervisor.register_upcall(1, VECTOR);
        let _ = hypervisor.read(1, Register::Svr);
        hypervisor.notify_upcall(1);
        hypervisor.advance(RECHECK as u32 / 2);
        let before = hypervisor.exits(1);
        write_svr(hypervisor, 0x1ff);
        hypervisor.advance(RECHECK as u32 / 2 - 1);
        assert_eq!((hypervisor.taken(1).len(), hypervisor.exits(1)), (0, before));
        hypervisor.advance(1);
        assert_eq!(hypervisor.taken(1), [VECTOR]);
        assert_eq!(hypervisor.exits(1), before + 1);
        hypervisor.advance(10 * RECHECK as u32);
        assert_eq!(hypervisor.exits(1), before + 1, "no more looks once it is paid");
    });
}

/// The guest enables its APIC in silence and halts at once: going to sleep looks at SVR as well.
#[test]
fn a_silent_enable_then_halt() {
    let [.., (config, _)] = ways();
    let svr_writes = SvrWrites::Silent { recheck: u64::MAX };
    run(Config { svr_writes, ..config }, |hypervisor| {
        hypervisor.register_upcall(1, VECTOR);
        hypervisor.notify_upcall(1);
        write_svr(hypervisor, 0x1ff);
        assert_eq!(hypervisor.taken(1), [0; 0]);
        let _ = hypervisor.execute(1, Op::Halt);
        assert_eq!(hypervisor.taken(1), [VECTOR]);
    });
}

/// The same driver told that SVR writes exit, on a processor where they do not: the upcall never comes.
#[test]
fn a_silent_enable_that_nobody_expects_is_lost() {
    let [.., (config, _)] = ways();
    run(Config { svr_writes: SvrWrites::Exit, ..config }, |hypervisor| {
        hypervisor.register_upcall(1, VECTOR);
        hypervisor.notify_upcall(1);
        write_svr(hypervisor, 0x1ff);
        assert_eq!(handle(hypervisor, Handler::EoiFirst), 0);
    });
}
