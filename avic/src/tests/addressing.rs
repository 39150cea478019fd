use vlapic_core::{Delivery, Event, Next, Register, SvrWrites};

use super::{INPUT, Options, Rig};
use crate::{Face, Inhibit};

fn rig(ldrs: &[u8], dfr: u32) -> Rig {
    let mut rig = Options::vcpus(ldrs.len() as u32).build();
    for (index, &ldr) in ldrs.iter().enumerate() {
        rig.enable(index);
        rig.page(index).write(Register::Dfr, dfr);
        rig.page(index).write(Register::Ldr, u32::from(ldr) << 24);
    }
    for _ in 0..2 {
        for index in 0..ldrs.len() {
            rig.enter(index);
        }
    }
    rig
}

const FLAT: u32 = 0xFFFF_FFFF;
const CLUSTER: u32 = 0x0FFF_FFFF;

fn entries(rig: &Rig) -> usize {
    (0..240).step_by(4).filter(|&offset| rig.logical(offset).is_some()).count()
}

#[test]
fn flat_ids() {
    let rig = rig(&[0x01, 0x02, 0x20, 0x80], FLAT);
    for (offset, id) in [(0x00, 0), (0x04, 1), (0x14, 2), (0x1C, 3)] {
        assert_eq!(rig.logical(offset), Some(id));
    }
    assert_eq!(entries(&rig), 4);
    assert!(!rig.vcpus[0].inhibits().contains(Inhibit::LogicalIds));
}

#[test]
fn cluster_ids() {
    let rig = rig(&[0x01, 0x11, 0x34, 0xE8], CLUSTER);
    for (offset, id) in [(0x00, 0), (0x10, 1), (0x38, 2), (0xEC, 3)] {
        assert_eq!(rig.logical(offset), Some(id));
    }
    assert_eq!(entries(&rig), 4);
}

/// Without entries every logical IPI exits and is emulated; nothing else of AVIC is off.
#[test]
fn ids_that_do_not_fit_empty_the_table() {
    for (ldrs, dfr) in [
        ([0x01, 0x03], FLAT),
        ([0x01, 0x01], FLAT),
        ([0x01, 0x00], FLAT),
        ([0x01, 0xFF], FLAT),
        ([0x11, 0x11], CLUSTER),
        ([0x11, 0x10], CLUSTER),
        ([0x11, 0x13], CLUSTER),
        ([0x11, 0xF1], CLUSTER),
        ([0x01, 0x02], 0x7FFF_FFFF),
    ] {
        let mut rig = rig(&ldrs, dfr);
        assert_eq!(entries(&rig), 0, "{ldrs:x?}");
        for index in 0..2 {
            assert_eq!(rig.enter(index), Face::XAvic);
            assert!(rig.vcpus[index].inhibits().contains(Inhibit::LogicalIds));
            assert!(!rig.vcpus[index].inhibits().stop_acceleration());
        }
        // The second mends its ways, and both are back.
        rig.page(0).write(Register::Dfr, CLUSTER);
        rig.page(0).write(Register::Ldr, 0x1100_0000);
        rig.page(1).write(Register::Dfr, CLUSTER);
        rig.page(1).write(Register::Ldr, 0x2200_0000);
        for index in [1, 0, 1] {
            rig.enter(index);
        }
        assert_eq!((rig.logical(0x10), rig.logical(0x24)), (Some(0), Some(1)), "{ldrs:x?}");
        assert_eq!(entries(&rig), 2);
    }
}

#[test]
fn a_new_ldr_moves_the_entry() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(1).write(Register::Ldr, 0x4000_0000);
    rig.enter(1);
    assert_eq!((rig.logical(0x04), rig.logical(0x18)), (None, Some(1)));
    assert_eq!(entries(&rig), 2);
}

/// vCPU 1 takes the ID of vCPU 0, which moves away but does not come here for now.
#[test]
fn a_stale_owner_is_not_trusted() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(0).write(Register::Ldr, 0x8000_0000);
    rig.page(1).write(Register::Ldr, 0x0100_0000);
    rig.enter(1);
    assert_ne!(rig.logical(0x00), Some(0));
    rig.enter(1);
    rig.enter(0);
    rig.enter(1);
    assert_eq!((rig.logical(0x00), rig.logical(0x1C)), (Some(1), Some(0)));
}

#[test]
fn a_change_of_model_goes_through_an_empty_table() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(0).write(Register::Dfr, CLUSTER);
    rig.enter(0);
    assert_eq!(entries(&rig), 0, "two models at once");
    rig.page(1).write(Register::Dfr, CLUSTER);
    rig.enter(1);
    rig.enter(0);
    assert_eq!((rig.logical(0x00), rig.logical(0x04)), (Some(0), Some(1)));
}

#[test]
fn an_apic_that_accepts_nothing_is_not_in_the_way() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(1).write(Register::Svr, 0xFF);
    rig.enter(1);
    assert_eq!((rig.logical(0x00), rig.logical(0x04)), (Some(0), None));
    // Enabled by a store that nobody was told of, with an ID that is taken.
    rig.page(1).write(Register::Ldr, 0x0100_0000);
    rig.page(1).write(Register::Svr, 0x1FF);
    rig.enter(1);
    assert_eq!(entries(&rig), 0);
}

/// What is said of the entry in the physical table when SVR is written with and without an exit.
#[test]
fn an_apic_that_accepts_nothing_has_no_valid_entry() {
    let mut rig = Options::vcpus(1).build();
    let valid = |rig: &Rig| rig.shared.physical().entry(0).decode().is_some();
    for svr in [0xFF, 0x1FF, 0xFF, 0x1FF] {
        rig.page(0).write(Register::Svr, svr);
        rig.enter(0);
        assert_eq!(valid(&rig), svr == 0x1FF);
    }
    rig.page(0).write(Register::Svr, 0xFF);
    rig.enter(0);
    rig.vcpus[0].set_svr_writes(SvrWrites::Silent { recheck: 1 });
    assert!(valid(&rig));
    rig.enter(0);
    assert!(valid(&rig));
}

/// Hardware may go by the DFR of a sender that accepts nothing itself.
#[test]
fn a_sender_with_another_model_is_emulated() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(1).write(Register::Svr, 0xFF);
    rig.page(1).write(Register::Dfr, CLUSTER);
    assert_eq!(rig.enter(1), Face::Emulated);
    assert!(rig.vcpus[1].inhibits().contains(Inhibit::LogicalModel));
    assert_eq!(rig.enter(0), Face::XAvic);
    assert_eq!(rig.logical(0x00), Some(0));
    rig.page(1).write(Register::Dfr, FLAT);
    assert_eq!(rig.enter(1), Face::XAvic);
}

#[test]
fn init_takes_the_entry_away() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    let _ = rig.slot(1).receive(Delivery::Init);
    assert_eq!(rig.vcpus[1].apic_mut().take_event(), Some(Event::Init { waits: true }));
    assert!(rig.vcpus[1].block(INPUT), "it waits for its SIPI");
    assert_eq!((rig.logical(0x00), rig.logical(0x04)), (Some(0), None));
    rig.enter(0);
    assert_eq!(rig.logical(0x00), Some(0));
}

#[test]
fn both_modes_at_once() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.enter_x2apic(0);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert!(rig.vcpus[0].inhibits().contains(Inhibit::MixedModes));
    assert_eq!(entries(&rig), 0);
    assert_eq!(rig.enter(1), Face::XAvic, "its logical IPIs exit");
    rig.enter_x2apic(1);
    assert_eq!(rig.enter(1), Face::X2Avic);
    assert_eq!(rig.enter(0), Face::X2Avic);
}

#[test]
fn an_xapic_that_wakes_among_x2apics_has_them_kicked() {
    let mut rig = rig(&[0x01, 0x02], FLAT);
    rig.page(1).write(Register::Svr, 0xFF);
    rig.enter(1);
    rig.enter_x2apic(0);
    assert_eq!(rig.enter(0), Face::X2Avic, "vCPU 1 accepts nothing");
    rig.page(1).write(Register::Svr, 0x1FF);
    assert!(rig.vcpus[1].block(INPUT), "sleep does not forget it");
    let refused = rig.entry(1, INPUT).next;
    assert_eq!(refused, Next::KickOthers);
    assert_eq!(rig.enter(0), Face::Emulated);
    assert_eq!(rig.entry(1, INPUT).next, Next::AwaitStartup);
}

/// A vCPU whose ID no entry can hold, in xAPIC mode.
#[test]
fn ids_above_254_keep_the_table_empty() {
    let mut rig = Options { ids: std::vec![0, 300], ..Options::vcpus(0) }.build();
    for (index, ldr) in [(0, 1), (1, 2)] {
        rig.enable(index);
        rig.page(index).write(Register::Ldr, ldr << 24);
    }
    for index in [0, 1, 0] {
        rig.enter(index);
    }
    assert_eq!(entries(&rig), 0);
}
