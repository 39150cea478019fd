//! IPIs on the AVIC model: destinations, both tables, and each reason to leave one incomplete.

use vlapic_tests::avic_model::rig::{Rig, Storage};
use vlapic_tests::avic_model::{GuestOp, Knobs, Outcome, VmExit, code, field};

/// Vector 41h, fixed, edge-triggered, physical destination, no shorthand.
const FIXED: u32 = 0x41;
const LOGICAL: u32 = 1 << 11;
const LEVEL: u32 = 1 << 15;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const FLAT: u32 = u32::MAX;
const CLUSTER: u32 = 0x0fff_ffff;
const VALID: u32 = 1 << 31;

const BOTH_MODES: [bool; 2] = [false, true];

/// vCPU 0 runs on core 0 and sends; the others wait.
fn rig(storage: &Storage, x2avic: bool, knobs: Knobs) -> Rig<'_> {
    let mut rig = Rig { x2avic, ..Rig::new(storage, 4, knobs) };
    rig.enter(0, 0);
    rig
}

/// The 64-bit ICR of a destination, and a guest operation that writes it last. The high half is set beforehand.
fn send(rig: &mut Rig<'_>, command: u32, destination: u32) -> (u64, Outcome) {
    let core = &mut rig.machine.cores[0];
    if rig.x2avic {
        let icr = u64::from(destination) << 32 | u64::from(command);
        return (icr, core.wrmsr(0x830, icr));
    }
    let icr = u64::from(destination) << 56 | u64::from(command);
    assert_eq!(core.mmio_write(0x310, destination << 24), Outcome::Done);
    (icr, core.mmio_write(0x300, command))
}

fn incomplete(icr: u64, id: u64, index: u32) -> Outcome {
    let info_2 = id << 32 | u64::from(index);
    Outcome::Exit(VmExit { code: code::INCOMPLETE_IPI, info_1: icr, info_2, trap: true })
}

/// The vCPUs that have the vector in IRR.
fn requested(storage: &Storage) -> Vec<usize> {
    (0..storage.vcpus()).filter(|vcpu| storage.vcpu(*vcpu).irr() == [0x41]).collect()
}

/// The doorbells in flight, in order.
fn doorbells(rig: &Rig<'_>) -> Vec<u32> {
    std::iter::from_fn(|| rig.machine.doorbells().take()).collect()
}

fn running_everywhere(storage: &Storage) {
    for vcpu in 1..storage.vcpus() {
        storage.set_running(vcpu, Some(0x100 + vcpu as u32));
    }
}

#[test]
fn physical_destination_that_runs() {
    for x2avic in BOTH_MODES {
        let storage = Storage::new(8);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        storage.set_running(7, Some(0xfff));
        let (icr, outcome) = send(&mut rig, FIXED, 7);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(requested(&storage), [7]);
        assert_eq!(doorbells(&rig), [0xfff], "all 12 bits of the host's APIC ID");
        assert_eq!(storage.vcpu(0).word(0x300), icr as u32);
        assert_eq!(storage.vcpu(0).word(0x310), (icr >> 32) as u32);
        assert_eq!(storage.vcpu(7).word(0x190), 0, "an IPI leaves TMR alone");
    }
}

#[test]
fn id_0_for_everything_but_fixed_and_edge() {
    for x2avic in BOTH_MODES {
        let modes = (1..8).map(|mode| mode << 8 | FIXED);
        for command in modes.chain([LEVEL | FIXED, LEVEL | 5 << 8]) {
            for shorthand in [0, SELF, ALL, OTHERS] {
                let storage = Storage::new(2);
                let mut rig = rig(&storage, x2avic, Knobs::default());
                running_everywhere(&storage);
                let (icr, outcome) = send(&mut rig, command | shorthand, 1);
                assert_eq!(outcome, incomplete(icr, 0, 0), "{command:#x}");
                assert_eq!(requested(&storage), []);
                assert_eq!(storage.vcpu(0).word(0x300), icr as u32, "a trap: the page is written");
            }
        }
    }
}

#[test]
fn id_1_names_a_target_that_does_not_run() {
    for x2avic in BOTH_MODES {
        let storage = Storage::new(8);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        let (icr, outcome) = send(&mut rig, FIXED, 7);
        assert_eq!(outcome, incomplete(icr, 1, 7));
        assert_eq!(requested(&storage), [7], "already requested: software only wakes the target");
        assert!(rig.machine.doorbells().is_empty());
    }
}

/// With several, which of them is reported is not said.
#[test]
fn id_1_after_every_target_was_requested() {
    for (reports_first_not_running, index) in [(true, 2), (false, 6)] {
        let storage = Storage::new(8);
        let knobs = Knobs { reports_first_not_running, ..Knobs::default() };
        let mut rig = rig(&storage, true, knobs);
        for vcpu in [1, 3, 4, 5, 7] {
            storage.set_running(vcpu, Some(0x100 + vcpu as u32));
        }
        let (icr, outcome) = send(&mut rig, OTHERS | FIXED, 0);
        assert_eq!(outcome, incomplete(icr, 1, index));
        assert_eq!(requested(&storage), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(doorbells(&rig), [0x101, 0x103, 0x104, 0x105, 0x107]);
    }
}

#[test]
fn id_2_for_a_target_that_is_not_there() {
    for x2avic in BOTH_MODES {
        let storage = Storage::new(8);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        storage.set_physical(5, Storage::page_address(5));
        for destination in [5, 8, 200] {
            let (icr, outcome) = send(&mut rig, FIXED, destination);
            assert_eq!(outcome, incomplete(icr, 2, destination));
            assert_eq!(requested(&storage), []);
            rig.enter(0, 0);
        }
    }
}

#[test]
fn id_2_above_the_last_index() {
    for x2avic in BOTH_MODES {
        for (last, destination, found) in [(6, 7, false), (7, 7, true)] {
            let storage = Storage::new(8);
            let mut rig = Rig { x2avic, ..Rig::new(&storage, 1, Knobs::default()) };
            let mut vmcb = rig.vmcb(0);
            vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | last);
            rig.try_enter(0, vmcb).unwrap();
            running_everywhere(&storage);
            let (icr, outcome) = send(&mut rig, FIXED, destination);
            let wanted = if found { Outcome::Done } else { incomplete(icr, 2, destination) };
            assert_eq!(outcome, wanted);
        }
    }
}

#[test]
fn id_3_for_a_backing_page_that_cannot_be() {
    for x2avic in BOTH_MODES {
        let storage = Storage::new(8);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        storage.set_physical(3, 1 << 63 | 1 << 48);
        let (icr, outcome) = send(&mut rig, FIXED, 3);
        assert_eq!(outcome, incomplete(icr, 3, 3));
        assert_eq!(rig.machine.memory().stray_accesses(), 0);
    }
}

#[test]
fn id_3_in_a_broadcast_under_both_readings() {
    for (broadcast_lookups_come_first, before) in [(true, vec![]), (false, vec![1, 2])] {
        let storage = Storage::new(8);
        let knobs = Knobs { broadcast_lookups_come_first, ..Knobs::default() };
        let mut rig = rig(&storage, true, knobs);
        storage.set_physical(3, 1 << 63 | 1 << 48);
        let (icr, outcome) = send(&mut rig, OTHERS | FIXED, 0);
        assert_eq!(outcome, incomplete(icr, 3, 3));
        assert_eq!(requested(&storage), before);
    }
}

#[test]
fn id_4_for_vectors_that_are_none() {
    for x2avic in BOTH_MODES {
        for vector in 0..0x20 {
            let storage = Storage::new(2);
            let mut rig = rig(&storage, x2avic, Knobs::default());
            running_everywhere(&storage);
            let (icr, outcome) = send(&mut rig, vector, 1);
            let wanted = if vector < 16 { incomplete(icr, 4, 0) } else { Outcome::Done };
            assert_eq!(outcome, wanted, "{vector}");
        }
    }
}

#[test]
fn nmi_with_vector_0_under_both_readings() {
    for (vector_is_checked_before_type, id) in [(false, 0), (true, 4)] {
        let storage = Storage::new(2);
        let knobs = Knobs { vector_is_checked_before_type, ..Knobs::default() };
        let mut rig = rig(&storage, false, knobs);
        let (icr, outcome) = send(&mut rig, 4 << 8, 1);
        assert_eq!(outcome, incomplete(icr, id, 0));
    }
}

#[test]
fn shorthand_self_uses_no_table() {
    for x2avic in BOTH_MODES {
        let storage = Storage::new(1);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        storage.set_physical(0, 0);
        let (_, outcome) = send(&mut rig, SELF | FIXED, 0);
        assert_eq!(outcome, Outcome::Done);
        assert!(rig.machine.doorbells().is_empty());
        assert_eq!(rig.machine.cores[0].boundary(true, false), Outcome::Delivered(0x41));
    }
}

#[test]
fn self_ipi_register() {
    let storage = Storage::new(1);
    let mut rig = rig(&storage, true, Knobs::default());
    let core = &mut rig.machine.cores[0];
    assert_eq!(core.wrmsr(0x83f, 0x41), Outcome::Done);
    assert_eq!(core.boundary(true, false), Outcome::Delivered(0x41));
    assert_eq!(core.wrmsr(0x83f, 0x141), Outcome::GeneralProtection);
    let exit = core.wrmsr(0x83f, 0xf).exit().unwrap();
    assert_eq!((exit.code, exit.info_2 >> 32), (code::INCOMPLETE_IPI, 4));
}

#[test]
fn broadcasts() {
    for x2avic in BOTH_MODES {
        let everyone: u32 = if x2avic { u32::MAX } else { 0xff };
        for (command, destination, targets) in [
            (ALL | FIXED, 0x99, vec![0, 1, 2, 4]),
            (OTHERS | FIXED, 0x99, vec![1, 2, 4]),
            (FIXED, everyone, vec![0, 1, 2, 4]),
        ] {
            let storage = Storage::new(5);
            let mut rig = rig(&storage, x2avic, Knobs::default());
            running_everywhere(&storage);
            storage.set_physical(3, 0);
            let (_, outcome) = send(&mut rig, command, destination);
            assert_eq!(outcome, Outcome::Done, "an invalid entry is skipped");
            assert_eq!(requested(&storage), targets);
            assert_eq!(doorbells(&rig).len(), targets.len());
        }
    }
}

#[test]
fn broadcasts_that_the_manual_does_not_describe() {
    let knobs = Knobs { x2avic_broadcasts_all_ones: false, ..Knobs::default() };
    let storage = Storage::new(2);
    let mut not_broadcast = rig(&storage, true, knobs);
    let (icr, outcome) = send(&mut not_broadcast, FIXED, u32::MAX);
    assert_eq!(outcome, incomplete(icr, 2, 0xfff));

    let knobs = Knobs { others_excludes_self: false, ..Knobs::default() };
    let storage = Storage::new(2);
    let mut with_self = rig(&storage, true, knobs);
    running_everywhere(&storage);
    assert_eq!(send(&mut with_self, OTHERS | FIXED, 0).1, Outcome::Done);
    assert_eq!(requested(&storage), [0, 1]);

    for (all_ones, targets) in [(true, vec![0, 1]), (false, vec![])] {
        let storage = Storage::new(2);
        let knobs = Knobs { x2avic_broadcasts_all_ones: all_ones, ..Knobs::default() };
        let mut cluster = rig(&storage, true, knobs);
        running_everywhere(&storage);
        let _ = send(&mut cluster, LOGICAL | FIXED, 0xffff_0001);
        assert_eq!(requested(&storage), targets);
    }
}

/// Entries 255 and up: reserved in AVIC, open in x2AVIC.
#[test]
fn entries_at_the_end_of_the_first_page() {
    for (x2avic, x2avic_uses_entry_255, reached) in
        [(false, true, vec![254]), (true, false, vec![254, 256]), (true, true, vec![254, 255, 256])]
    {
        let storage = Storage::new(257);
        let knobs = Knobs { x2avic_uses_entry_255, ..Knobs::default() };
        let mut rig = rig(&storage, x2avic, knobs);
        running_everywhere(&storage);
        for destination in [254, 255, 256].into_iter().filter(|id| x2avic || *id == 254) {
            let _ = send(&mut rig, FIXED, destination);
            if !rig.machine.cores[0].in_guest() {
                rig.enter(0, 0);
            }
        }
        assert_eq!(requested(&storage), reached);
    }
    // Neither a broadcast nor a logical ID leads to the reserved entry, even if the index allows it.
    let storage = Storage::new(257);
    let mut reserved = Rig::new(&storage, 1, Knobs::default());
    let mut vmcb = reserved.vmcb(0);
    vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | 255);
    reserved.try_enter(0, vmcb).unwrap();
    running_everywhere(&storage);
    assert_eq!(send(&mut reserved, OTHERS | FIXED, 0).1, Outcome::Done);
    assert_eq!(requested(&storage), (1..=254).collect::<Vec<_>>());
    storage.set_logical(0, VALID | 255);
    let (icr, outcome) = send(&mut reserved, LOGICAL | FIXED, 1);
    assert_eq!(outcome, incomplete(icr, 2, 255));
}

#[test]
fn the_table_of_4096_entries() {
    let storage = Storage::new(4096);
    let mut rig = Rig::x2avic(&storage, 1, Knobs::default());
    let mut vmcb = rig.vmcb(0);
    vmcb.set64(field::PHYSICAL_TABLE, Storage::PHYSICAL | 0xfff);
    rig.try_enter(0, vmcb).unwrap();
    let (icr, outcome) = send(&mut rig, FIXED, 0xfff);
    assert_eq!(outcome, incomplete(icr, 1, 0xfff));
    assert_eq!(requested(&storage), [0xfff]);
}

/// Number of the logical entry that each single-bit logical ID uses.
#[test]
fn every_logical_destination_of_both_models() {
    let flat = (0..8).map(|bit| (FLAT, 1 << bit, bit));
    let cluster = (0..15).flat_map(|cluster: usize| {
        (0..4).map(move |bit| (CLUSTER, (cluster as u32) << 4 | 1 << bit, cluster * 4 + bit))
    });
    for (dfr, destination, entry) in flat.chain(cluster) {
        let storage = Storage::new(6);
        let mut rig = rig(&storage, false, Knobs::default());
        running_everywhere(&storage);
        storage.vcpu(0).set_word(0xe0, dfr);
        storage.set_logical(entry, VALID | 5);
        let (_, outcome) = send(&mut rig, LOGICAL | FIXED, destination);
        assert_eq!(outcome, Outcome::Done, "{destination:#x}");
        assert_eq!(requested(&storage), [5], "{destination:#x}");
    }
}

#[test]
fn logical_destinations_with_several_bits() {
    let storage = Storage::new(9);
    let mut rig = rig(&storage, false, Knobs::default());
    running_everywhere(&storage);
    for bit in 0..8 {
        storage.set_logical(bit, VALID | (8 - bit as u32));
    }
    assert_eq!(send(&mut rig, LOGICAL | FIXED, 0xff).1, Outcome::Done);
    assert_eq!(requested(&storage), [1, 2, 3, 4, 5, 6, 7, 8], "not a broadcast but eight bits");
    assert_eq!(send(&mut rig, LOGICAL | FIXED, 0).1, Outcome::Done, "nobody");
}

#[test]
fn logical_destinations_that_have_no_entry() {
    for (logical_lookups_come_first, before) in [(true, vec![]), (false, vec![1])] {
        let storage = Storage::new(4);
        let knobs = Knobs { logical_lookups_come_first, ..Knobs::default() };
        let mut rig = rig(&storage, false, knobs);
        running_everywhere(&storage);
        storage.set_logical(0, VALID | 1);
        storage.set_logical(2, VALID | 2);
        let (icr, outcome) = send(&mut rig, LOGICAL | FIXED, 0b111);
        assert_eq!(outcome, incomplete(icr, 2, 1));
        assert_eq!(requested(&storage), before);
    }
    // An entry that leads nowhere.
    let storage = Storage::new(4);
    let mut nowhere = rig(&storage, false, Knobs::default());
    storage.set_logical(0, VALID | 9);
    let (icr, outcome) = send(&mut nowhere, LOGICAL | FIXED, 1);
    assert_eq!(outcome, incomplete(icr, 2, 9));
    // Cluster 15, even where its entries would be.
    let storage = Storage::new(4);
    let mut last_cluster = rig(&storage, false, Knobs::default());
    storage.vcpu(0).set_word(0xe0, CLUSTER);
    (60..64).for_each(|entry| storage.set_logical(entry, VALID | 1));
    let (_, outcome) = send(&mut last_cluster, LOGICAL | FIXED, 0xf1);
    assert_eq!(outcome.exit().unwrap().info_2 >> 32, 2);
    assert_eq!(requested(&storage), []);
}

#[test]
fn logical_destinations_of_x2apic() {
    let storage = Storage::new(0x40);
    let mut rig = rig(&storage, true, Knobs::default());
    running_everywhere(&storage);
    storage.set_logical(1, VALID | 5);
    assert_eq!(send(&mut rig, LOGICAL | FIXED, 0x0002_8003).1, Outcome::Done);
    assert_eq!(requested(&storage), [0x20, 0x21, 0x2f], "the logical table is not used");
    let (icr, outcome) = send(&mut rig, LOGICAL | FIXED, 0x0004_0001);
    assert_eq!(outcome, incomplete(icr, 2, 0x40));
}

#[test]
fn the_model_of_logical_ids_under_both_readings() {
    for (dfr_is_read_at_each_ipi, entry) in [(true, 4), (false, 0)] {
        let storage = Storage::new(4);
        let knobs = Knobs { dfr_is_read_at_each_ipi, ..Knobs::default() };
        let mut rig = rig(&storage, false, knobs);
        running_everywhere(&storage);
        storage.set_logical(entry, VALID | 3);
        // VMRUN saw the flat model.
        storage.vcpu(0).set_word(0xe0, CLUSTER);
        let destination = if entry == 4 { 0x11 } else { 0x01 };
        assert_eq!(send(&mut rig, LOGICAL | FIXED, destination).1, Outcome::Done);
        assert_eq!(requested(&storage), [3]);
    }
}

#[test]
fn the_busy_bit_under_both_readings() {
    for (busy_is_left_set, busy) in [(false, 0), (true, 1 << 12)] {
        let storage = Storage::new(2);
        let mut rig = rig(&storage, false, Knobs { busy_is_left_set, ..Knobs::default() });
        let (icr, outcome) = send(&mut rig, FIXED, 1);
        assert_eq!(outcome, incomplete(icr | busy, 1, 1));
        assert_eq!(u64::from(storage.vcpu(0).word(0x300)), FIXED as u64 | busy);
    }
}

#[test]
fn undefined_bits_of_the_second_word() {
    let knobs = Knobs { undefined_bits_are_set: true, ..Knobs::default() };
    for (command, destination, info_2) in [
        (5 << 8, 1, 0x0000_0000_ffff_ffff_u64),
        (FIXED, 1, 0x0000_0001_ffff_f001),
        (FIXED, 9, 0x0000_0002_ffff_f009),
        (3, 1, 0x0000_0004_ffff_ffff),
    ] {
        let storage = Storage::new(2);
        let mut rig = rig(&storage, true, knobs);
        let (_, outcome) = send(&mut rig, command, destination);
        assert_eq!(outcome.exit().unwrap().info_2, info_2);
    }
}

/// Numbers worked out by hand from the manual's layouts.
#[test]
fn worked_examples() {
    for (x2avic, icr) in [(false, 0x0700_0000_0000_0041), (true, 0x0000_0007_0000_0041)] {
        let storage = Storage::new(8);
        let mut rig = rig(&storage, x2avic, Knobs::default());
        let (_, outcome) = send(&mut rig, FIXED, 7);
        let exit = outcome.exit().unwrap();
        assert_eq!((exit.info_1, exit.info_2), (icr, 0x0000_0001_0000_0007));
    }
    // Cluster 3, index bit 2 is the entry at byte 38h; that for ID 5 reads 80000005h.
    let storage = Storage::new(6);
    let mut rig = rig(&storage, false, Knobs::default());
    storage.vcpu(0).set_word(0xe0, CLUSTER);
    storage.set_logical(0x38 / 4, 0x8000_0005);
    // A running vCPU on the core 1A5h.
    storage.set_physical(5, 0xc000_0000_0000_01a5 | Storage::page_address(5));
    assert_eq!(send(&mut rig, LOGICAL | FIXED, 0x34).1, Outcome::Done);
    assert_eq!(doorbells(&rig), [0x1a5]);
}

/// The target stops running somewhere between the steps of an IPI to it. With the manual's order, the doorbell or the
/// exit tells; with a stale IsRunning, a doorbell goes to a core that has left the guest and nobody is told.
#[test]
fn a_target_that_stops_running_in_between() {
    for stale_is_running in [false, true] {
        let mut lost = 0;
        for stop_after in 0.. {
            let storage = Storage::new(2);
            let mut rig = rig(&storage, true, Knobs { stale_is_running, ..Knobs::default() });
            storage.set_running(1, Some(1));
            let core = &mut rig.machine.cores[0];
            core.begin(GuestOp::Wrmsr { msr: 0x830, value: 1 << 32 | u64::from(FIXED) });
            let mut stopped_with_request = None;
            let outcome = (0..)
                .find_map(|step| {
                    if step == stop_after {
                        // What a host does before it blocks: IsRunning, then IRR.
                        storage.set_running(1, None);
                        stopped_with_request = Some(!storage.vcpu(1).irr().is_empty());
                    }
                    core.step()
                })
                .unwrap();
            let Some(saw_request) = stopped_with_request else { break };
            lost += u32::from(!saw_request && outcome == Outcome::Done);
        }
        assert_eq!(lost != 0, stale_is_running, "{lost} interrupts that nobody was told of");
    }
}
