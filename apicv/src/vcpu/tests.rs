//! The controls follow the APIC's mode by themselves, and cost nothing while it stays.

use vlapic_core::{
    Address, ApicPage, Delivery, Destination, Directory, EntryInput, IA32_APIC_BASE, Next,
    Register, SvrWrites, Trigger, Vm, Width,
};
use vlapic_hal::wrap::{Count, Fault, FaultInjector, When};

use super::*;
use crate::descriptor::PostedDescriptor;
use crate::field;
use crate::machines::full;
use crate::rig::{Fields, INPUT, RUNNING, WAKEUP, addresses, fresh, slot};

const EXIT: Exit = Exit { reason: 1, qualification: 0 };
const XAPIC: u64 = 0xFEE0_0900;
const X2APIC: u64 = 0xFEE0_0D00;
const DISABLED: u64 = 0xFEE0_0100;

fn set_base(vcpu: &mut Vcpu<'_>, value: u64) {
    let _ = vcpu.apic_mut().write_msr(IA32_APIC_BASE, value, 0).unwrap();
}

/// "Virtualize APIC accesses", "virtualize x2APIC mode", virtual-interrupt delivery; posting.
fn controls(vmcs: &impl Vmcs) -> (u64, u64) {
    let secondary = vmcs.read(field::SECONDARY_CONTROLS).unwrap() & 0x211;
    (secondary, vmcs.read(field::PIN_CONTROLS).unwrap() & 0x80)
}

#[test]
fn controls_and_bitmap_follow_the_mode() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
    for (base, secondary, pin, eoi_exits) in [
        (XAPIC, 0x201, 0x80, true),
        (X2APIC, 0x210, 0x80, false),
        (DISABLED, 0, 0, true),
        (XAPIC, 0x201, 0x80, true),
        (DISABLED, 0, 0, true),
    ] {
        set_base(&mut vcpu, base);
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        assert_eq!(controls(&vmcs), (secondary, pin), "{base:#x}");
        assert_eq!(bitmap.intercepts_write(0x80B), eoi_exits, "{base:#x}");
    }
    vcpu.apic_mut().reset(true);
    let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
    assert_eq!(controls(&vmcs), (0x201, 0x80), "after RESET");
}

#[test]
fn a_mode_that_stays_costs_no_access_to_the_controls() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    for base in [XAPIC, X2APIC] {
        let mut vcpu = Vcpu::new(&slot, true);
        let mut vmcs = Count::new(fresh());
        let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
        set_base(&mut vcpu, base);
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        let _ = vmcs.take();
        for _ in 0..3 {
            let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
            let counts = vmcs.take();
            let (reads, writes) = (counts.vmcs_reads.total(), counts.vmcs_writes.total());
            assert_eq!((reads, writes), (1, 0), "guest interrupt status is looked at, no more");
        }
    }
}

#[test]
fn a_failure_half_way_is_repaired_by_the_next_call() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    for nth in 1.. {
        let mut vcpu = Vcpu::new(&slot, true);
        let mut vmcs = fresh();
        let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        let _ = vcpu.after_exit(EXIT, 0);
        set_base(&mut vcpu, X2APIC);
        let error = VmcsError::Instruction(26);
        let fault = (When::Nth(nth), Fault::WriteVmcs { field: None, error });
        let mut faulty = FaultInjector::new(&mut vmcs, [fault]);
        let failed = vcpu.before_entry(&mut faulty, INPUT).is_err();
        let entry = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        assert_eq!(controls(&vmcs), (0x210, 0x80), "write {nth}");
        assert!(entry.flush, "write {nth}");
        if !failed {
            assert!(nth > 3, "several writes can fail");
            break;
        }
    }
}

/// Without posting a vCPU that runs has SN set and the wakeup vector, which asks posters for a kick.
#[test]
fn the_descriptor_follows_the_mode_and_the_cpu() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
    let mut target = |vcpu: &mut Vcpu<'_>, cpu| {
        let _ = vcpu.before_entry(&mut vmcs, EntryInput { cpu, ..INPUT }).unwrap();
        let control = descriptor.control();
        (control.sn(), control.nv(), control.ndst())
    };
    assert_eq!(target(&mut vcpu, 3), (false, RUNNING, 3));
    assert_eq!(target(&mut vcpu, 5), (false, RUNNING, 5), "another CPU");
    set_base(&mut vcpu, DISABLED);
    assert_eq!(target(&mut vcpu, 5), (true, WAKEUP, 5), "a disabled APIC is not posted to");
    set_base(&mut vcpu, XAPIC);
    assert_eq!(target(&mut vcpu, 5), (false, RUNNING, 5));
    slot.inbox().offline();
    assert_eq!(target(&mut vcpu, 5), (false, RUNNING, 5), "changed by others");
    let mut vmcs = fresh();
    let wanted = Wanted::up_to(Feature::VirtualInterruptDelivery);
    let _ = vcpu.configure(&mut vmcs, &full(), wanted, &addresses(&bitmap)).unwrap();
    let _ = vcpu.before_entry(&mut vmcs, EntryInput { cpu: 5, ..INPUT }).unwrap();
    let control = descriptor.control();
    assert_eq!((control.sn(), control.nv()), (true, WAKEUP), "configured without posting");
}

/// Though the mode is still that of the last configuration.
#[test]
fn a_configuration_that_failed_is_not_taken_for_done() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let nothing = vcpu.configure(&mut vmcs, &full(), Wanted::NONE, &addresses(&bitmap)).unwrap();
    assert_eq!(nothing.features(), Features::NONE);
    let error = VmcsError::Instruction(26);
    let secondary = Fault::WriteVmcs { field: Some(field::SECONDARY_CONTROLS), error };
    let mut faulty = FaultInjector::new(&mut vmcs, [(When::Nth(1), secondary)]);
    assert!(vcpu.configure(&mut faulty, &full(), Wanted::ALL, &addresses(&bitmap)).is_err());
    let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
    assert_eq!(controls(&vmcs), (0x201, 0x80));
}

/// The words are half those of a mode that the guest has left again.
#[test]
fn a_failure_half_way_is_repaired_although_the_mode_is_back() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    for nth in 1.. {
        let mut vcpu = Vcpu::new(&slot, true);
        let mut vmcs = fresh();
        let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        set_base(&mut vcpu, DISABLED);
        let error = VmcsError::Instruction(26);
        let fault = (When::Nth(nth), Fault::WriteVmcs { field: None, error });
        let mut faulty = FaultInjector::new(&mut vmcs, [fault]);
        let failed = vcpu.before_entry(&mut faulty, INPUT).is_err();
        set_base(&mut vcpu, XAPIC);
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        assert_eq!(controls(&vmcs), (0x201, 0x80), "write {nth}");
        if !failed {
            assert!(nth > 2, "several writes can fail");
            break;
        }
    }
}

/// From x2APIC mode back to xAPIC mode, the window becomes virtualized: each CPU that the vCPU comes to
/// may have translations from before.
#[test]
fn flushes_of_the_register_window() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
    let mut flush = |vcpu: &mut Vcpu<'_>, cpu, enters| {
        let entry = vcpu.before_entry(&mut vmcs, EntryInput { cpu, ..INPUT }).unwrap();
        if enters {
            let _ = vcpu.after_exit(EXIT, 0);
        }
        entry.flush
    };
    assert!(!flush(&mut vcpu, 1, true), "nothing from before");
    assert!(!flush(&mut vcpu, 2, true));
    set_base(&mut vcpu, X2APIC);
    assert!(flush(&mut vcpu, 2, false), "turned off");
    assert!(flush(&mut vcpu, 2, true), "the entry was not made");
    assert!(!flush(&mut vcpu, 2, true));
    assert!(!flush(&mut vcpu, 1, true), "an x2APIC guest does not pay for moving");
    set_base(&mut vcpu, DISABLED);
    assert!(!flush(&mut vcpu, 1, true), "off in both");
    set_base(&mut vcpu, XAPIC);
    assert!(flush(&mut vcpu, 1, true), "turned on");
    assert!(!flush(&mut vcpu, 1, true));
    assert!(flush(&mut vcpu, 2, false), "another CPU");
    assert!(flush(&mut vcpu, 2, true));
    assert!(!flush(&mut vcpu, 2, true));
}

#[test]
fn a_first_configuration_needs_no_flush_a_later_one_does() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let addresses = addresses(&bitmap);
    for (wanted, flush) in [
        (Wanted::up_to(Feature::TprShadow), false),
        (Wanted::ALL, true),
        (Wanted::ALL, false),
        (Wanted::NONE, true),
    ] {
        let _ = vcpu.configure(&mut vmcs, &full(), wanted, &addresses).unwrap();
        let entry = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
        assert_eq!(entry.flush, flush, "{wanted:?}");
        let _ = vcpu.after_exit(EXIT, 0);
    }
}

/// What waits to be injected goes first, whoever knows of it.
#[test]
fn events_wait_for_what_is_injected() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    for wanted in [Wanted::up_to(Feature::TprShadow), Wanted::ALL] {
        let mut vcpu = Vcpu::new(&slot, true);
        let mut vmcs = fresh();
        let _ = vcpu.configure(&mut vmcs, &full(), wanted, &addresses(&bitmap)).unwrap();
        page.write(Register::Svr, 0x1FF);
        let _ = slot.request(0x51, Trigger::Edge);
        let _ = slot.receive(Delivery::Nmi);
        let mut entry = |vmcs: &mut Fields, injecting| {
            let input = EntryInput { now: 700, injecting, ..INPUT };
            let entry = vcpu.before_entry(vmcs, input).unwrap();
            (entry.next, entry.injected, entry.exit_by)
        };
        assert_eq!(entry(&mut vmcs, true), (Next::Enter, None, Some(700)), "at once, after it");
        assert_eq!(entry(&mut vmcs, false).0, Next::TakeEvent);
        vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, 1 << 31 | 0x31).unwrap();
        assert_eq!(entry(&mut vmcs, false), (Next::Enter, None, Some(700)), "in the VMCS");
        vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, 0).unwrap();
        let _ = vcpu.apic_mut().take_event();
        assert_eq!(vcpu.before_entry(&mut vmcs, INPUT).unwrap().next, Next::Enter);
    }
}

#[test]
fn a_vcpu_that_waits_for_its_sipi_is_not_entered() {
    let (page, descriptor) = (ApicPage::new(), PostedDescriptor::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, false);
    let mut vmcs = fresh();
    let mut next = |vcpu: &mut Vcpu<'_>| vcpu.before_entry(&mut vmcs, INPUT).unwrap().next;
    assert_eq!(next(&mut vcpu), Next::AwaitStartup);
    let _ = slot.receive(Delivery::Startup { page: 8 });
    assert_eq!(next(&mut vcpu), Next::TakeEvent);
    assert!(vcpu.apic_mut().take_event().is_some());
    assert_eq!(next(&mut vcpu), Next::Enter);
}

/// With a TPR shadow and no more the processor changes TPR alone; where it delivers it keeps PPR too.
#[test]
fn ppr_where_the_processor_changes_tpr() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let levels = [
        (Wanted::NONE, 0x66),
        (Wanted::up_to(Feature::TprShadow), 0x57),
        (Wanted::up_to(Feature::RegisterVirtualization), 0x57),
        (Wanted::up_to(Feature::VirtualInterruptDelivery), 0x66),
        (Wanted::up_to(Feature::TprShadow), 0x57),
        (Wanted::ALL, 0x66),
    ];
    for (wanted, expected) in levels {
        for base in [XAPIC, X2APIC] {
            vcpu.apic_mut().reset(true);
            let _ = vcpu.configure(&mut vmcs, &full(), wanted, &addresses(&bitmap)).unwrap();
            set_base(&mut vcpu, base);
            let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
            page.write(Register::Tpr, 0x57);
            page.write(Register::Ppr, 0x66);
            let _ = vcpu.after_exit(EXIT, 0);
            let read = match base {
                X2APIC => vcpu.apic_mut().read_msr(0x80A, 0).unwrap(),
                _ => vcpu.apic_mut().read_mmio(0xA0, Width::Dword, 0),
            };
            assert_eq!(read, expected, "{wanted:?} {base:#x}");
        }
    }
}

/// A disabled APIC has a TPR shadow alone; CR8 goes on, and PPR is right as soon as it can be read.
#[test]
fn ppr_after_cr8_while_disabled() {
    let (page, descriptor, bitmap) = (ApicPage::new(), PostedDescriptor::new(), MsrBitmap::new());
    let slot = slot(&page, &descriptor);
    let mut vcpu = Vcpu::new(&slot, true);
    let mut vmcs = fresh();
    let _ = vcpu.configure(&mut vmcs, &full(), Wanted::ALL, &addresses(&bitmap)).unwrap();
    set_base(&mut vcpu, DISABLED);
    let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
    page.write(Register::Tpr, 0x50);
    let _ = vcpu.after_exit(EXIT, 0);
    set_base(&mut vcpu, XAPIC);
    for _ in 0..2 {
        assert_eq!(vcpu.apic_mut().read_mmio(0xA0, Width::Dword, 0), 0x50);
        let _ = vcpu.before_entry(&mut vmcs, INPUT).unwrap();
    }
}

/// A VM's directory does not count on what it knows of an APIC whose registers may change unseen.
#[test]
fn the_directory_is_told_of_unseen_writes() {
    let (page, descriptor, directory) =
        (ApicPage::new(), PostedDescriptor::new(), Directory::new());
    let slots = [slot(&page, &descriptor).with_directory(&directory)];
    let vm = Vm::new(&slots).unwrap();
    let mut vcpu = Vcpu::new(&slots[0], true);
    let destination = Destination::Logical(Address::Narrow(4));
    for (svr_writes, found) in
        [(SvrWrites::Exit, 0), (SvrWrites::Silent { recheck: 7 }, 1), (SvrWrites::Exit, 0)]
    {
        page.write(Register::Ldr, 1 << 24);
        vcpu.set_svr_writes(svr_writes);
        // A store that nobody was told of.
        page.write(Register::Ldr, 4 << 24);
        assert_eq!(vm.targets(destination, None).count(), found, "{svr_writes:?}");
    }
}
