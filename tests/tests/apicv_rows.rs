//! What each access of the guest costs and gives, row by row, with the driver on the model: the tables of the manual's
//! chapter on APIC virtualization seen from the guest's side.

use apicv::{Feature, Wanted};
use vlapic_core::{Mode, Register, Trigger, Width};
use vlapic_tests::hypervisor::{Answer, Config, Hypervisor, Level, Op, run};
use vlapic_tests::model::ExitReason;
use vlapic_tests::reference::Reference;
use vlapic_tests::steps::Subject;

/// Columns of the tables: APIC accesses alone; with virtual-interrupt delivery; with register virtualization; with both.
fn columns() -> [Wanted; 4] {
    let delivery = Wanted::up_to(Feature::VirtualInterruptDelivery);
    [
        Wanted::up_to(Feature::X2Apic),
        delivery.without(Feature::RegisterVirtualization),
        Wanted::up_to(Feature::RegisterVirtualization),
        delivery,
    ]
}

/// Offset; reads; writes. `-` no exit, `X` APIC-access exit, `W` APIC-write exit.
const WINDOW: &[(u16, &str, &str)] = &[
    (0x000, "XXXX", "XXXX"),
    (0x010, "XXXX", "XXXX"),
    (0x020, "XX--", "XXWW"),
    (0x030, "XX--", "XXXX"),
    (0x040, "XXXX", "XXXX"),
    (0x080, "----", "----"),
    (0x090, "XXXX", "XXXX"),
    (0x0a0, "XXXX", "XXXX"),
    (0x0b0, "X---", "X-W-"),
    (0x0c0, "XXXX", "XXXX"),
    (0x0d0, "XX--", "XXWW"),
    (0x0e0, "XX--", "XXWW"),
    (0x0f0, "XX--", "XXWW"),
    (0x100, "XX--", "XXXX"),
    (0x170, "XX--", "XXXX"),
    (0x180, "XX--", "XXXX"),
    (0x1f0, "XX--", "XXXX"),
    (0x200, "XX--", "XXXX"),
    (0x270, "XX--", "XXXX"),
    (0x280, "XX--", "XXWW"),
    (0x290, "XXXX", "XXXX"),
    (0x2e0, "XXXX", "XXXX"),
    (0x2f0, "XXXX", "XXXX"),
    (0x300, "X---", "XWWW"),
    (0x310, "XX--", "XX--"),
    (0x320, "XX--", "XXWW"),
    (0x330, "XX--", "XXWW"),
    (0x340, "XX--", "XXWW"),
    (0x350, "XX--", "XXWW"),
    (0x360, "XX--", "XXWW"),
    (0x370, "XX--", "XXWW"),
    (0x380, "XX--", "XXWW"),
    (0x390, "XXXX", "XXXX"),
    (0x3a0, "XXXX", "XXXX"),
    (0x3d0, "XXXX", "XXXX"),
    (0x3e0, "XX--", "XXWW"),
    (0x3f0, "XXXX", "XXXX"),
    (0x400, "XXXX", "XXXX"),
    (0xff0, "XXXX", "XXXX"),
];

/// The exit that an access took, as the tables have it.
fn exit_of(hypervisor: &mut Hypervisor<'_>, op: Op) -> (char, Answer) {
    let before = hypervisor.exits(0);
    let answer = hypervisor.execute(0, op);
    let exit = hypervisor.vcpu(0).last_exit.filter(|_| hypervisor.exits(0) > before);
    assert!(hypervisor.exits(0) - before <= 1, "{op:x?}: more than one exit");
    let kind = match exit.map(|exit| exit.reason) {
        None => '-',
        Some(ExitReason::ApicAccess) => 'X',
        Some(ExitReason::ApicWrite) => 'W',
        Some(ExitReason::Rdmsr) => 'r',
        Some(ExitReason::Wrmsr) => 'w',
        Some(other) => unreachable!("{op:x?}: {other:?}"),
    };
    if kind == 'W' {
        let offset = exit.map(|exit| exit.qualification as u16);
        let expected = match op {
            Op::Store { offset, .. } => Some(offset),
            Op::Wrmsr(msr, _) => Some((msr as u16 & 0xff) << 4),
            _ => None,
        };
        assert_eq!(offset, expected);
    }
    (kind, answer)
}

#[test]
fn register_window() {
    for (column, wanted) in columns().into_iter().enumerate() {
        let config = Config { wanted, ..Config::new(Level::Emulated) };
        let mut reference = Reference::new(1, config.profile, config.mode);
        run(config, |hypervisor| {
            for &(offset, read, write) in WINDOW {
                // An ICR without a destination; others take anything.
                let value = if offset == 0x300 { 0 } else { 0x1_00f1 };
                let store = Op::Store { offset, width: Width::Dword, value };
                let load = Op::Load { offset, width: Width::Dword };
                for (op, row) in [(store, write), (load, read)] {
                    let (kind, answer) = exit_of(hypervisor, op);
                    assert_eq!(Some(kind), row.chars().nth(column), "{op:x?} with {wanted:?}");
                    assert_eq!(answer, reference.execute(0, op), "{op:x?} with {wanted:?}");
                }
            }
        });
    }
}

/// Below the level of APIC accesses the window is not mapped at all, and the answers are the same.
#[test]
fn register_window_without_apic_accesses() {
    for level in [Level::Emulated, Level::TprShadow] {
        let mut reference = Reference::new(1, Config::new(level).profile, Mode::XApic);
        run(Config::new(level), |hypervisor| {
            for &(offset, ..) in WINDOW {
                let before = hypervisor.exits(0);
                let op = Op::Load { offset, width: Width::Dword };
                assert_eq!(hypervisor.execute(0, op), reference.execute(0, op), "{offset:#x}");
                assert_eq!(hypervisor.exits(0), before + 1);
            }
        });
    }
}

/// MSRs that may go without an exit in x2APIC mode, reads and writes, in the columns above.
const MSRS: &[(u32, &str, &str)] = &[
    (0x802, "rr--", "wwww"),
    (0x803, "rr--", "wwww"),
    (0x808, "----", "----"),
    (0x80a, "rrr-", "wwww"),
    (0x80b, "rrrr", "w-w-"),
    (0x80d, "rr--", "wwww"),
    (0x80f, "rr--", "wwww"),
    (0x810, "rr--", "wwww"),
    (0x827, "rr--", "wwww"),
    (0x828, "rr--", "wwww"),
    (0x830, "rr--", "wwww"),
    (0x832, "rr--", "wwww"),
    (0x837, "rr--", "wwww"),
    (0x838, "rr--", "wwww"),
    (0x83e, "rr--", "wwww"),
    // Vector 0 is not for the processor.
    (0x83f, "rrrr", "wWwW"),
];

#[test]
fn x2apic_msrs() {
    for (column, wanted) in columns().into_iter().enumerate() {
        let config = Config { wanted, ..Config::new(Level::Emulated).mode(Mode::X2Apic) };
        let mut reference = Reference::new(1, config.profile, config.mode);
        run(config, |hypervisor| {
            for msr in 0x7ff..=0x900 {
                let known = MSRS.iter().find(|row| row.0 == msr);
                let registers = 0x811..0x827;
                let lvt = 0x833..0x837;
                let row = match known {
                    Some(&(_, read, write)) => (read, write),
                    None if registers.contains(&msr) || lvt.contains(&msr) => ("rr--", "wwww"),
                    None => ("rrrr", "wwww"),
                };
                for (op, row) in [(Op::Wrmsr(msr, 0), row.1), (Op::Rdmsr(msr), row.0)] {
                    let (kind, answer) = exit_of(hypervisor, op);
                    assert_eq!(Some(kind), row.chars().nth(column), "{op:x?} with {wanted:?}");
                    assert_eq!(answer, reference.execute(0, op), "{op:x?} with {wanted:?}");
                }
            }
        });
    }
}

/// In xAPIC mode and with the APIC disabled every MSR of the range faults, at every level, and none reaches the host.
#[test]
fn x2apic_msrs_in_other_modes() {
    for level in Level::ALL {
        run(Config::new(level), |hypervisor| {
            for disabled in [false, true] {
                if disabled {
                    let _ = hypervisor.execute(0, Op::Wrmsr(0x1b, 0xfee0_0100));
                }
                for msr in 0x800..=0x8ff {
                    for op in [Op::Rdmsr(msr), Op::Wrmsr(msr, 0)] {
                        let answer = hypervisor.execute(0, op);
                        assert_eq!(answer, Answer::GeneralProtection, "{op:x?} at {level:?}");
                    }
                }
            }
        });
    }
}

/// Exits of one operation: at TPR shadow, APIC accesses, register virtualization, delivery, posted, IPI virtualization.
#[test]
fn exits_of_operations() {
    type Operation = fn(&mut Hypervisor<'_>);
    let eoi: Operation = |hypervisor| hypervisor.eoi(0);
    let raise_tpr: Operation = |hypervisor| {
        let _ = hypervisor.execute(0, Op::WriteCr8(9));
    };
    let lower_tpr: Operation = |hypervisor| {
        let _ = hypervisor.execute(0, Op::WriteCr8(0));
    };
    let self_ipi: Operation = |hypervisor| {
        let _ = match hypervisor.slot(0).mode() {
            Mode::X2Apic => hypervisor.write(0, Register::SelfIpi, 0x61),
            _ => hypervisor.write(0, Register::IcrLow, 0x4_0061),
        };
    };
    let unicast: Operation = |hypervisor| {
        let _ = hypervisor.write(0, Register::IcrLow, 0x61);
    };
    let posted: Operation = |hypervisor| {
        let _ = hypervisor.post(0, 0x71, Trigger::Edge);
    };
    let wait_at_tpr: Operation = |hypervisor| {
        let _ = hypervisor.execute(0, Op::WriteCr8(9));
        let _ = hypervisor.post(0, 0x71, Trigger::Edge);
    };
    let nothing: Operation = |_| {};
    let table: [(&str, Operation, Operation, [u64; 6]); 7] = [
        ("EOI", posted, eoi, [1, 1, 1, 0, 0, 0]),
        ("raise TPR", nothing, raise_tpr, [0, 0, 0, 0, 0, 0]),
        ("lower TPR, nothing waits", raise_tpr, lower_tpr, [0, 0, 0, 0, 0, 0]),
        ("lower TPR, one waits", wait_at_tpr, lower_tpr, [1, 1, 1, 0, 0, 0]),
        ("self-IPI", nothing, self_ipi, [1, 1, 1, 0, 0, 0]),
        // The sender's exit, and where nothing posts also the target's.
        ("IPI", nothing, unicast, [1, 1, 1, 1, 1, 0]),
        ("interrupt from a device", nothing, posted, [1, 1, 1, 1, 0, 0]),
    ];
    for mode in [Mode::XApic, Mode::X2Apic] {
        for (name, prepare, operation, expected) in table {
            for (level, expected) in Level::ALL[1..].iter().zip(expected) {
                run(Config::new(*level).mode(mode), |hypervisor| {
                    let _ = hypervisor.write(0, Register::Svr, 0x1ff);
                    prepare(hypervisor);
                    let before = hypervisor.exits(0);
                    operation(hypervisor);
                    let exits = hypervisor.exits(0) - before;
                    assert_eq!(exits, expected, "{name} at {level:?} in {mode:?}");
                });
            }
        }
    }
}
