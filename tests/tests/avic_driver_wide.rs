//! More vCPUs than one page of the physical ID table names, with the AVIC driver on the model.

use avic::{Face, Host, Trust};
use vlapic_core::{Mode, Register};
use vlapic_tests::avic_hypervisor::{Config, Hypervisor, run};
use vlapic_tests::avic_model::Capability;
use vlapic_tests::hypervisor::{Answer, Op};

const ICR: u32 = 0x830;
const SVR: u32 = 0x80f;
const LOGICAL: u64 = 1 << 11;
const ALL_BUT_SELF: u64 = 3 << 18;

/// So many vCPUs have one with ID 255 among them, of whose table entry not every reading of the manual is the same.
const TRUSTING: Host = Host { trust: Trust { entry_255: true, ..Trust::NOTHING }, ..Host::new() };

/// `vcpus` enabled APICs in x2APIC mode, eight of which are on a CPU: 0, and the last seven.
fn wide<R>(vcpus: usize, processor: Capability, test: impl FnOnce(&mut Hypervisor<'_>) -> R) -> R {
    let config =
        Config { cpus: 8, mode: Mode::X2Apic, processor, host: TRUSTING, ..Config::new(vcpus) };
    run(config, |hypervisor| {
        (0..8).for_each(|cpu| hypervisor.unload(cpu));
        for index in (0..vcpus).rev() {
            hypervisor.load(index, 0);
            assert_eq!(hypervisor.instruction(index, Op::Wrmsr(SVR, 0x1ff)), Answer::Done);
            hypervisor.boundaries(index);
            if index > 0 {
                hypervisor.unload(index);
            }
        }
        for cpu in 1..8 {
            hypervisor.load(vcpus - cpu, cpu);
        }
        hypervisor.settle();
        test(hypervisor)
    })
}

fn requested(hypervisor: &Hypervisor<'_>, vector: u8) -> usize {
    let has = |index: &usize| {
        let page = hypervisor.slot(*index).page();
        page.irr().iter().any(|requested| requested.get() == vector)
    };
    (0..hypervisor.config().vcpus).filter(has).count()
}

#[test]
fn every_page_is_reached() {
    for vcpus in [513, 4096] {
        wide(vcpus, Capability::full(), |hypervisor| {
            to_the_last(hypervisor);
            to_one_that_does_not_run(hypervisor);
            to_all_others(hypervisor);
        });
    }
}

fn to_the_last(hypervisor: &mut Hypervisor<'_>) {
    assert_eq!(hypervisor.face(0), Face::X2Avic);
    let last = hypervisor.config().vcpus - 1;
    let exits = hypervisor.exits(0);
    let _ = hypervisor.execute(0, Op::Wrmsr(ICR, (last as u64) << 32 | 0x41));
    assert_eq!(hypervisor.taken(last), [0x41], "{last}");
    assert_eq!(hypervisor.exits(0), exits, "the processor found it by itself");

    let (cluster, bit) = (last as u64 >> 4, last & 15);
    let destination = cluster << 16 | 1 << bit;
    let _ = hypervisor.execute(0, Op::Wrmsr(ICR, destination << 32 | LOGICAL | 0x51));
    assert_eq!(hypervisor.taken(last), [0x41, 0x51], "{last}");
    assert_eq!(hypervisor.exits(0), exits);
}

/// Its request is made, and the host told of it.
fn to_one_that_does_not_run(hypervisor: &mut Hypervisor<'_>) {
    let vcpus = hypervisor.config().vcpus;
    let target = vcpus - 20;
    let exits = hypervisor.exits(0);
    let _ = hypervisor.execute(0, Op::Wrmsr(ICR, (target as u64) << 32 | 0x42));
    assert_eq!(hypervisor.exits(0), exits + 1);
    assert_eq!(requested(hypervisor, 0x42), 1);
    hypervisor.unload(vcpus - 1);
    hypervisor.load(target, 1);
    hypervisor.settle();
    assert_eq!(hypervisor.taken(target), [0x42]);
}

fn to_all_others(hypervisor: &mut Hypervisor<'_>) {
    let vcpus = hypervisor.config().vcpus;
    let _ = hypervisor.execute(0, Op::Wrmsr(ICR, ALL_BUT_SELF | 0x61));
    for index in vcpus - 7..vcpus - 1 {
        assert_eq!(hypervisor.taken(index), [0x61], "vCPU {index} of {vcpus}");
    }
    // All but the sender and the seven that run.
    assert_eq!(requested(hypervisor, 0x61), vcpus - 8);
    assert!(hypervisor.taken(0).is_empty());
}

/// Without the extension the tables end at 511, and nobody is accelerated; the interrupts arrive all the same.
#[test]
fn without_the_extension() {
    wide(600, Capability::x2avic(), |hypervisor| {
        assert_eq!(hypervisor.face(0), Face::Emulated);
        for target in [599u64, 511, 512, 1] {
            let _ = hypervisor.execute(0, Op::Wrmsr(ICR, target << 32 | 0x41));
        }
        assert_eq!(hypervisor.taken(599), [0x41]);
        assert_eq!(requested(hypervisor, 0x41), 3);
    });
    wide(512, Capability::x2avic(), |hypervisor| {
        assert_eq!(hypervisor.face(0), Face::X2Avic);
        let exits = hypervisor.exits(0);
        let _ = hypervisor.execute(0, Op::Wrmsr(ICR, 511 << 32 | 0x41));
        assert_eq!(hypervisor.taken(511), [0x41]);
        assert_eq!(hypervisor.exits(0), exits);
    });
}

/// xAVIC's table ends at 254; with a vCPU 255 nobody is accelerated in xAPIC mode, as a broadcast would miss it.
#[test]
fn the_last_of_xavic() {
    for (vcpus, face) in [(255, Face::XAvic), (256, Face::Emulated)] {
        run(Config { cpus: 2, ..Config::new(vcpus) }, |hypervisor| {
            hypervisor.unload(1);
            hypervisor.load(254, 1);
            for index in [0, 254] {
                let _ = hypervisor.write(index, Register::Svr, 0x1ff);
            }
            assert_eq!(hypervisor.face(0), face);
            let exits = hypervisor.exits(0);
            // One more for each write that is emulated.
            let _ = hypervisor.write(0, Register::IcrHigh, 254 << 24);
            let _ = hypervisor.write(0, Register::IcrLow, 0x41);
            assert_eq!(hypervisor.taken(254), [0x41]);
            assert_eq!(hypervisor.exits(0) == exits, face == Face::XAvic);
            let _ = hypervisor.write(0, Register::IcrHigh, 0xff << 24);
            let _ = hypervisor.write(0, Register::IcrLow, 0x51);
            assert_eq!((requested(hypervisor, 0x51), hypervisor.taken(0)), (0, &[0x51][..]));
            assert_eq!(hypervisor.taken(254), [0x41, 0x51]);
        });
    }
}
