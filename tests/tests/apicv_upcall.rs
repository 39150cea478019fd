//! Upcalls with the driver on the model: exactly one for each event, however SVR is written and at every level.

use std::sync::atomic::Ordering::SeqCst;

use vlapic_core::{Bank, Mode, Register, SvrWrites};
use vlapic_tests::demo::{UpcallRow, Way, Who};
use vlapic_tests::hypervisor::{Config, Hypervisor, Level, Op, Run, run};
use vlapic_tests::model::Knobs;

const VECTOR: u8 = 0xf3;
const RECHECK: u64 = 5_000;

/// How the guest's handler does its two duties.
#[derive(Clone, Copy, Debug)]
enum Handler {
    EoiFirst,
    ClearFirst,
}

/// Every configuration: level, mode, silent or not.
fn configurations() -> impl Iterator<Item = Config> {
    Level::ALL.into_iter().flat_map(|level| {
        [Mode::XApic, Mode::X2Apic].into_iter().flat_map(move |mode| {
            let config = Config::new(level).vcpus(2).mode(mode);
            [config, config.silent(RECHECK)]
        })
    })
}

fn write_svr(hypervisor: &mut Hypervisor<'_>, value: u32) {
    if hypervisor.config().silent_window {
        hypervisor.store_silently(1, Register::Svr, value);
    } else {
        let _ = hypervisor.write(1, Register::Svr, value.into());
    }
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
    for config in configurations() {
        for handler in [Handler::EoiFirst, Handler::ClearFirst] {
            run(config, |hypervisor| {
                hypervisor.register_upcall(1, VECTOR);
                hypervisor.notify_upcall(1);
                hypervisor.notify_upcall(1);
                assert!(!stale_bits(hypervisor), "early: {config:?}");
                assert_eq!(handle(hypervisor, handler), 0, "early: {config:?}");
                assert_eq!(
                    hypervisor.storage().pending[1].load(SeqCst),
                    1,
                    "the byte is the guest's"
                );

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
            });
        }
    }
}

/// The guest cleared its byte by polling: an upcall that was owed is no longer.
#[test]
fn a_debt_that_was_polled_away() {
    for config in configurations() {
        run(config, |hypervisor| {
            hypervisor.register_upcall(1, VECTOR);
            hypervisor.notify_upcall(1);
            hypervisor.storage().pending[1].store(0, SeqCst);
            write_svr(hypervisor, 0x1ff);
            assert_eq!(handle(hypervisor, Handler::EoiFirst), 0, "{config:?}");
            hypervisor.notify_upcall(1);
            assert_eq!(handle(hypervisor, Handler::EoiFirst), 1, "{config:?}");
        });
    }
}

/// An upcall registered while the byte is set comes at once; with the byte clear none does.
#[test]
fn pending_before_vector() {
    for config in configurations() {
        for pending in [false, true] {
            run(config, |hypervisor| {
                write_svr(hypervisor, 0x1ff);
                if pending {
                    hypervisor.notify_upcall(1);
                }
                assert_eq!(handle(hypervisor, Handler::EoiFirst), 0);
                hypervisor.register_upcall(1, VECTOR);
                let seen = handle(hypervisor, Handler::EoiFirst);
                assert_eq!(seen, usize::from(pending), "{config:?}");
            });
        }
    }
}

/// The bounded re-check is a value: a deadline where SVR writes are silent, an intercept where they can be had.
#[test]
fn bounded_recheck_is_a_value() {
    let cases = [
        (SvrWrites::Exit, None, false),
        (SvrWrites::Interceptable, None, true),
        (SvrWrites::Silent { recheck: RECHECK }, Some(RECHECK), false),
    ];
    for level in Level::ALL {
        for (svr_writes, recheck, intercept) in cases {
            run(Config { svr_writes, ..Config::new(level).vcpus(2) }, |hypervisor| {
                let said = |hypervisor: &mut Hypervisor<'_>| {
                    let now = hypervisor.now();
                    hypervisor.with_driver(1, |driver, core, input| {
                        let entry = driver.before_entry(core, input).unwrap();
                        (entry.exit_by.map(|time| time - now), entry.intercept_svr)
                    })
                };
                assert_eq!(said(hypervisor), (None, false), "nothing owed");
                hypervisor.register_upcall(1, VECTOR);
                assert_eq!(said(hypervisor), (None, false), "nothing pending");
                hypervisor.notify_upcall(1);
                assert_eq!(
                    said(hypervisor),
                    (recheck, intercept),
                    "owed, {svr_writes:?} at {level:?}"
                );
                let _ = hypervisor.write(1, Register::Lvt(vlapic_core::LvtEntry::Timer), 0x1_0031);
                let _ = hypervisor.write(1, Register::InitialCount, 10);
                assert_eq!(said(hypervisor).0, Some(20), "the timer is earlier");
                hypervisor.advance(20);
                hypervisor.slot(1).page().write(Register::Svr, 0x1ff);
                assert_eq!(said(hypervisor), (None, false), "paid");
                let page = hypervisor.slot(1).page();
                // Where nothing delivers, the same call has injected it.
                assert_eq!(page.irr().iter().chain(page.isr().iter()).count(), 1);
            });
        }
    }
}

/// The guest that enables its APIC in silence is found out within the time agreed, and costs no exit before or after.
#[test]
fn silent_enable_is_found_in_time() {
    for level in [Level::VirtualInterruptDelivery, Level::Posted] {
        run(Config::new(level).vcpus(2).silent(RECHECK), |hypervisor| {
            hypervisor.register_upcall(1, VECTOR);
            hypervisor.notify_upcall(1);
            hypervisor.advance(RECHECK as u32 / 2);
            write_svr(hypervisor, 0x1ff);
            let before = hypervisor.exits(1);
            hypervisor.advance(RECHECK as u32 / 2 - 1);
            assert_eq!((hypervisor.taken(1).len(), hypervisor.exits(1)), (0, before));
            hypervisor.advance(1);
            assert_eq!(hypervisor.taken(1), [VECTOR]);
            assert_eq!(hypervisor.exits(1), before + 1);
            hypervisor.advance(10 * RECHECK as u32);
            assert_eq!(hypervisor.exits(1), before + 1, "no more looks once it is paid");
        });
    }
}

/// The guest enables its APIC in silence and halts at once: going to sleep looks at SVR as well.
#[test]
fn silent_enable_then_halt() {
    for level in Level::ALL {
        run(Config::new(level).vcpus(2).silent(u64::MAX), |hypervisor| {
            hypervisor.register_upcall(1, VECTOR);
            hypervisor.notify_upcall(1);
            write_svr(hypervisor, 0x1ff);
            assert_eq!(hypervisor.taken(1), [0; 0]);
            let _ = hypervisor.execute(1, Op::Halt);
            assert_eq!(hypervisor.taken(1), [VECTOR], "at {level:?}");
            assert_eq!(hypervisor.vcpu(1).run, Run::Ready);
        });
    }
}

/// An APIC disabled in silence accepts nothing from then on, and its entries read as masked.
#[test]
fn spiv_disable_without_exit() {
    for level in Level::ALL {
        for mode in [Mode::XApic, Mode::X2Apic] {
            run(Config::new(level).vcpus(2).mode(mode).silent(RECHECK), |hypervisor| {
                let timer = Register::Lvt(vlapic_core::LvtEntry::Timer);
                write_svr(hypervisor, 0x1ff);
                let _ = hypervisor.write(1, timer, 0x31);
                let _ = hypervisor.write(1, Register::InitialCount, 1000);
                write_svr(hypervisor, 0xff);
                let receipt = hypervisor.post(1, 0x91, vlapic_core::Trigger::Edge);
                assert_eq!(receipt.outcome, vlapic_core::Outcome::Refused);
                hypervisor.advance(5000);
                assert_eq!(hypervisor.taken(1), [0; 0], "neither post nor timer, at {level:?}");
                assert_eq!(hypervisor.read(1, timer), 0x1_0031, "at {level:?}");
            });
        }
    }
}

/// The record is what the reader of the serial line knows.
#[test]
fn the_record() {
    let row = UpcallRow {
        way: Way::ApicWrite,
        who: Who::Driver,
        mode: Mode::XApic,
        irr_clean: true,
        expected: 2,
        seen: 1,
        exits: 7,
    };
    let line = "HIL-UPCALL way=apic-write who=driver mode=xapic irr_clean=yes expected=2 seen=1 exits=7 result=lost";
    assert_eq!(row.to_string(), line);
}

/// A processor that stores SVR writes to the page and says nothing: the bounded re-check finds the enabled APIC.
#[test]
fn svr_writes_that_never_exit() {
    for level in [Level::RegisterVirtualization, Level::VirtualInterruptDelivery, Level::Posted] {
        let config = Config::new(level).vcpus(2);
        let knobs = Knobs { svr_writes_never_exit: true, ..config.knobs };
        let svr_writes = SvrWrites::Silent { recheck: RECHECK };
        run(Config { knobs, svr_writes, ..config }, |hypervisor| {
            hypervisor.register_upcall(1, VECTOR);
            hypervisor.notify_upcall(1);
            let before = hypervisor.exits(1);
            let _ = hypervisor.write(1, Register::Svr, 0x1ff);
            assert_eq!((hypervisor.taken(1).len(), hypervisor.exits(1)), (0, before));
            hypervisor.advance(RECHECK as u32);
            assert_eq!(hypervisor.taken(1), [VECTOR], "at {level:?}");
            hypervisor.eoi(1);
            hypervisor.advance(10 * RECHECK as u32);
            assert_eq!(hypervisor.taken(1), [VECTOR], "no second upcall");
        });
    }
}
