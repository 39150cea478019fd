//! A vCPU whose addressing changes has the others emulated before it runs on: hardware would go on
//! by what the tables said before.

use avic::Face;
use vlapic_core::{IA32_APIC_BASE, Mode, Profile, Register};
use vlapic_tests::avic_hypervisor::{Broken, Config, Hypervisor, run_enabled};
use vlapic_tests::hypervisor::{Answer, Op};

const HOSTS: [Broken; 2] = [Broken::Nothing, Broken::IgnoresPeers];
const VECTOR: u64 = 0x41;
const LOGICAL: u64 = 1 << 11;
const FLAT_BIT_0: u64 = 1 << 24;

fn done(hypervisor: &mut Hypervisor<'_>, index: usize, register: Register, value: u64) {
    assert_eq!(hypervisor.write(index, register, value), Answer::Done);
}

/// vCPU 2 goes to xAPIC mode and takes the logical ID 1. An IPI from x2APIC mode to logical destination 1 is for vCPU 0
/// by its x2APIC ID and for vCPU 2 by its LDR, of which x2AVIC knows nothing.
#[test]
fn an_xapic_among_x2apics() {
    for broken in HOSTS {
        let config = Config { mode: Mode::X2Apic, broken, ..Config::new(3) };
        run_enabled(config, |hypervisor| {
            let base = hypervisor.slot(2).base().bits() & !0xc00;
            for mode in [0, 0x800] {
                let write = Op::Wrmsr(IA32_APIC_BASE, base | mode);
                assert_eq!(hypervisor.execute(2, write), Answer::Done);
            }
            done(hypervisor, 2, Register::Ldr, FLAT_BIT_0);
            assert_eq!(hypervisor.face(1), Face::X2Avic, "vCPU 2 accepts nothing yet");
            done(hypervisor, 2, Register::Svr, 0x1ff);
            done(hypervisor, 1, Register::IcrLow, 1 << 32 | LOGICAL | VECTOR);
            assert_eq!(hypervisor.taken(0), [VECTOR as u8]);
            let reached = hypervisor.taken(2) == [VECTOR as u8];
            assert_eq!(reached, broken == Broken::Nothing, "{broken:?}");
        });
    }
}

/// vCPU 2 takes another APIC ID. Physical destinations are looked up by that which it had; but with one window for all,
/// unmapped for vCPU 2's sake, the others exit at the next access in any case.
#[test]
fn an_apic_with_a_new_id() {
    for broken in HOSTS {
        let profile = Profile::amd().with_writable_xapic_id(true);
        run_enabled(Config { profile, broken, ..Config::new(3) }, |hypervisor| {
            assert_eq!(hypervisor.face(1), Face::XAvic);
            done(hypervisor, 2, Register::Id, 9 << 24);
            for destination in [2, 9] {
                done(hypervisor, 1, Register::IcrHigh, destination << 24);
                done(hypervisor, 1, Register::IcrLow, VECTOR + destination);
            }
            let right: &[u8] = &[VECTOR as u8 + 9];
            let taken = hypervisor.taken(2);
            assert_eq!(taken, right, "{broken:?}: {taken:x?}");
        });
    }
}
