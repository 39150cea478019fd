//! Nested paging of the APIC page on the AVIC model, and what the TLB keeps of it.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{Knobs, Mapping, Outcome, code, control, field};

fn nested_page_fault(outcome: Outcome) -> Option<(u64, u64)> {
    let exit = outcome.exit().filter(|exit| exit.code == code::NESTED_PAGE_FAULT)?;
    Some((exit.info_1, exit.info_2))
}

#[test]
fn the_apic_page_needs_a_writable_mapping() {
    for (mapping, write, fault) in [
        (None, false, Some(0x1_0000_0004)),
        (None, true, Some(0x1_0000_0006)),
        (Some(false), false, Some(0x1_0000_0005)),
        (Some(false), true, Some(0x1_0000_0007)),
        (Some(true), false, None),
        (Some(true), true, None),
    ] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        rig.machine.nested().unmap(Rig::NESTED_CR3, Rig::APIC_BASE);
        if let Some(writable) = mapping {
            let mapping = Mapping { page: Storage::WINDOW, writable };
            rig.machine.nested().map(Rig::NESTED_CR3, Rig::APIC_BASE, mapping);
        }
        rig.enter(0, 0);
        let core = &mut rig.machine.cores[0];
        let outcome = if write { core.mmio_write(0x080, 0) } else { core.mmio_read(0x080) };
        let wanted = fault.map(|code| (code, 0xfee0_0080));
        assert_eq!(nested_page_fault(outcome), wanted);
    }
}

#[test]
fn x2avic_uses_no_mapping() {
    let storage = Storage::new(1);
    let mut rig = Rig::x2avic(&storage, 1, Knobs::default());
    rig.machine.nested().unmap(Rig::NESTED_CR3, Rig::APIC_BASE);
    rig.enter(0, 0);
    assert_eq!(rig.machine.cores[0].wrmsr(0x808, 0x20), Outcome::Done);
    assert!(nested_page_fault(rig.machine.cores[0].mmio_read(0x080)).is_some());
}

/// Another vCPU of the same VM on the same core: without a flush it works on the page of the one before it.
#[test]
fn translations_of_the_vcpu_before() {
    for (tlb_control, page) in [(0, 0), (1, 1), (3, 1), (7, 1)] {
        let storage = Storage::new(2);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        rig.enter(0, 0);
        assert_eq!(
            rig.machine.cores[0].mmio_write(0x320, 0x1_0000).exit().map(|e| e.trap),
            Some(true)
        );
        let mut vmcb = rig.vmcb(1);
        vmcb.set32(field::TLB_CONTROL, tlb_control);
        rig.try_enter(0, vmcb).unwrap();
        assert_eq!(rig.machine.cores[0].mmio_write(0x310, 0x0700_0000), Outcome::Done);
        assert_eq!(storage.vcpu(page).word(0x310), 0x0700_0000, "TLB_CONTROL {tlb_control}");
    }
}

#[test]
fn translations_belong_to_an_asid() {
    let storage = Storage::new(2);
    let mut rig = Rig::new(&storage, 1, Knobs::default());
    rig.enter(0, 0);
    assert!(rig.machine.cores[0].mmio_write(0x320, 0).exit().is_some());
    let mut vmcb = rig.vmcb(1);
    vmcb.set32(field::TLB_CONTROL, 0);
    vmcb.set32(field::ASID, 2);
    rig.try_enter(0, vmcb).unwrap();
    assert_eq!(rig.machine.cores[0].mmio_write(0x310, 0x0700_0000), Outcome::Done);
    assert_eq!(storage.vcpu(1).word(0x310), 0x0700_0000);
}

/// From AVIC to x2AVIC, from nothing to AVIC: what the TLB holds is still used, until it is flushed.
#[test]
fn translations_across_modes() {
    for flush in [false, true] {
        let storage = Storage::new(1);
        let mut rig = Rig::new(&storage, 1, Knobs::default());
        let tlb_control = if flush { 3 } else { 0 };
        // Nothing: the window is plain memory.
        let mut off = rig.vmcb(0);
        off.clear_bits64(field::VIRTUAL_INTERRUPT, control::AVIC);
        rig.try_enter(0, off).unwrap();
        assert_eq!(rig.machine.cores[0].mmio_write(0x310, 1), Outcome::Done);
        assert_eq!((storage.window_word(0x310), storage.vcpu(0).word(0x310)), (1, 0));
        rig.leave(0);
        // AVIC.
        let mut avic = rig.vmcb(0);
        avic.set32(field::TLB_CONTROL, tlb_control);
        rig.try_enter(0, avic).unwrap();
        assert_eq!(rig.machine.cores[0].mmio_write(0x310, 2), Outcome::Done);
        let seen = (storage.window_word(0x310), storage.vcpu(0).word(0x310));
        assert_eq!(seen, if flush { (1, 2) } else { (2, 0) });
        rig.leave(0);
        rig.machine.cores[0].flush_tlb(None);
        rig.enter(0, 0);
        assert_eq!(rig.machine.cores[0].mmio_write(0x310, 3), Outcome::Done);
        rig.leave(0);
        // x2AVIC: the window is plain memory again.
        rig.x2avic = true;
        let mut x2avic = rig.vmcb(0);
        x2avic.set32(field::TLB_CONTROL, tlb_control);
        rig.try_enter(0, x2avic).unwrap();
        assert_eq!(rig.machine.cores[0].mmio_write(0x310, 4), Outcome::Done);
        assert_eq!(storage.vcpu(0).word(0x310), if flush { 3 } else { 4 });
    }
}
