//! What TLB_CONTROL is for: with a host that does not do what the driver puts there, guests go by translations of the
//! register window that were true of another vCPU or of another time.

use avic::Face;
use vlapic_core::{ApicBase, IA32_APIC_BASE, Register};
use vlapic_tests::avic_hypervisor::{Broken, Config, Hypervisor, run_enabled};
use vlapic_tests::avic_model::{GuestOp, Outcome};
use vlapic_tests::hypervisor::{Answer, Op};

const HOSTS: [Broken; 2] = [Broken::Nothing, Broken::NeverFlushes];
const ELSEWHERE: u64 = 0xfed0_0000;

fn move_base(hypervisor: &mut Hypervisor<'_>, index: usize, base: u64) {
    let flags = hypervisor.slot(index).base().bits() & 0xfff;
    assert_eq!(hypervisor.execute(index, Op::Wrmsr(IA32_APIC_BASE, base | flags)), Answer::Done);
}

/// The TPR of vCPU 0 as its guest reads it on a CPU where vCPU 1 was before, with the same ASID.
#[test]
fn two_vcpus_one_after_the_other_on_a_cpu() {
    for broken in HOSTS {
        run_enabled(Config { broken, ..Config::new(2) }, |hypervisor| {
            for (index, tpr) in [(0, 0x10), (1, 0x20)] {
                assert_eq!(hypervisor.write(index, Register::Tpr, tpr), Answer::Done);
            }
            (0..2).for_each(|index| hypervisor.unload(index));
            hypervisor.load(0, 1);
            assert_eq!(hypervisor.face(0), Face::XAvic);
            let tpr = hypervisor.read(0, Register::Tpr);
            assert_eq!(tpr == 0x10, broken == Broken::Nothing, "{broken:?}: {tpr:#x}");
        });
    }
}

/// From xAVIC to none and back: while its APIC is elsewhere a guest finds memory at FEE0_0000, mapped for the sake of
/// another vCPU.
#[test]
fn a_window_that_was_memory_for_a_while() {
    for broken in HOSTS {
        run_enabled(Config { broken, private_asid: true, ..Config::new(2) }, |hypervisor| {
            move_base(hypervisor, 0, ELSEWHERE);
            assert!(hypervisor.enter(0));
            assert_eq!(hypervisor.face(0), Face::Emulated);
            assert_ne!(hypervisor.read(1, Register::Version), 0, "vCPU 1 has the window mapped");
            let load = GuestOp::Read { address: ApicBase::DEFAULT_ADDRESS + 0x30, width: 4 };
            assert!(hypervisor.enter(0));
            // Nothing there belongs to an APIC, unless what was true before still counts.
            let memory = hypervisor.machine.cores[0].run(load) == Outcome::Value(0);
            assert_eq!(memory, broken == Broken::Nothing, "{broken:?}");
            if broken == Broken::NeverFlushes {
                hypervisor.machine.cores[0].flush_tlb(None);
                assert_eq!(hypervisor.machine.cores[0].run(load), Outcome::Value(0));
            }

            move_base(hypervisor, 0, ApicBase::DEFAULT_ADDRESS);
            assert!(hypervisor.enter(0));
            assert_eq!(hypervisor.face(0), Face::XAvic);
            let apic = hypervisor.machine.cores[0].run(load) != Outcome::Value(0);
            assert_eq!(apic, broken == Broken::Nothing, "{broken:?}");
        });
    }
}
