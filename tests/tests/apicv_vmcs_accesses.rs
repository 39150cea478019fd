//! How many VMREADs and VMWRITEs the work between an exit and the next entry takes: on a processor each costs as much as
//! some twenty loads.

use apicv::{Exit, Vcpu, reason};
use vlapic_core::{Trigger, Vector};
use vlapic_hal::wrap::Count;
use vlapic_tests::hypervisor::{Config, Hypervisor, Level, run_enabled};

/// Posts and exits between two entries.
type Between = fn(&mut Vcpu<'_>);

fn accesses(hypervisor: &mut Hypervisor<'_>, between: Between) -> (u64, u64) {
    hypervisor.with_driver(0, |driver, core, input| {
        let _ = driver.before_entry(core, input).expect("an entry");
        let mut vmcs = Count::new(core);
        between(driver);
        let _ = driver.before_entry(&mut vmcs, input).expect("an entry");
        let counts = vmcs.counts();
        (counts.vmcs_reads.total(), counts.vmcs_writes.total())
    })
}

fn exit(driver: &mut Vcpu<'_>, reason: u16, qualification: u64) {
    let _ = driver.after_exit(Exit { reason, qualification }, 0);
}

fn request(driver: &mut Vcpu<'_>, trigger: Trigger) {
    let _ = driver.apic().slot().request(0x61, trigger);
}

const BETWEEN: [(&str, Between); 8] = [
    ("nothing", |_| {}),
    ("an exit of the hypervisor's own", |driver| exit(driver, 12, 0)),
    ("an APIC access", |driver| exit(driver, reason::APIC_ACCESS, 0x390)),
    ("an APIC write of ICR", |driver| exit(driver, reason::APIC_WRITE, 0x300)),
    ("TPR below threshold", |driver| exit(driver, reason::TPR_BELOW_THRESHOLD, 0)),
    ("an edge", |driver| request(driver, Trigger::Edge)),
    ("a level for the first time", |driver| request(driver, Trigger::Level)),
    ("a virtualized EOI of a level", |driver| {
        driver.apic().slot().page().tmr().insert(Vector::new(0x61).expect("a legal vector"));
        exit(driver, reason::VIRTUALIZED_EOI, 0x61);
    }),
];

fn table(level: Level) -> [(u64, u64); 8] {
    BETWEEN.map(|(_, between)| {
        let mut counted = (0, 0);
        run_enabled(Config::new(level), |hypervisor| counted = accesses(hypervisor, between));
        counted
    })
}

/// One VMREAD, of RVI and SVI, which the processor has changed; a VMWRITE if they are to be others, and one for a word of the
/// EOI-exit bitmap.
#[test]
fn with_virtual_interrupt_delivery() {
    for level in [Level::VirtualInterruptDelivery, Level::Posted, Level::IpiVirtualization] {
        let expected = [(1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1, 1), (1, 2), (1, 0)];
        assert_eq!(table(level), expected, "{level:?}");
    }
}

#[test]
fn with_a_tpr_shadow() {
    let expected = [(2, 0), (2, 0), (2, 0), (2, 0), (2, 0), (3, 1), (3, 1), (2, 0)];
    for level in [Level::TprShadow, Level::ApicAccess, Level::RegisterVirtualization] {
        assert_eq!(table(level), expected, "{level:?}");
    }
}

#[test]
fn without_help() {
    let expected = [(1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (2, 1), (2, 1), (1, 0)];
    assert_eq!(table(Level::Emulated), expected);
}
