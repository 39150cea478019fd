use std::vec::Vec;

use super::*;
use crate::{
    Address, ApicPage, Delivery, Destination, DirectInbox, LocalApic, Message, Profile, Targets,
    Trigger, Vm, Width,
};

/// A generator with a long enough period, for choices that need not be good.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn meant(vm: Vm<'_, DirectInbox>, destination: Destination) -> Vec<usize> {
    let targets: Targets<'_, _> = vm.targets(destination, None);
    targets.collect()
}

/// By a fixed interrupt that is driven from inside.
fn reached(vm: Vm<'_, DirectInbox>, destination: Destination) -> Vec<usize> {
    let delivery = Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge };
    let message = Message::new(delivery, destination);
    let mut reached = Vec::new();
    vm.send(&message, None).for_each(|(index, _)| reached.push(index));
    reached
}

fn is_complete(directory: &Directory) -> bool {
    directory.unlisted().load(Ordering::Acquire) as u32 == 0
}

/// By asking everybody.
fn expected(vm: Vm<'_, DirectInbox>, destination: Destination) -> Vec<usize> {
    let asked = vm.slots().iter().enumerate().filter(|(_, slot)| match destination {
        Destination::Logical(address) => slot.matches_logical(address),
        Destination::Physical(address) => slot.matches_physical(address),
        _ => false,
    });
    asked.map(|(index, _)| index).collect()
}

fn compare(vm: Vm<'_, DirectInbox>) {
    for id in 0..=0xFF {
        let wide = [u32::from(id), 0x100 | u32::from(id), u32::from(id) << 12 | 3];
        for address in wide.map(Address::Wide).into_iter().chain([Address::Narrow(id)]) {
            for destination in [Destination::Logical(address), Destination::Physical(address)] {
                assert_eq!(meant(vm, destination), expected(vm, destination), "{destination:?}");
                assert_eq!(reached(vm, destination), expected(vm, destination), "{destination:?}");
            }
        }
    }
}

#[test]
fn whatever_guests_do_the_same_are_meant_as_when_all_are_asked() {
    let mut choices = Choices(7);
    let dense: Vec<u32> = (0..70).collect();
    let sets: [(&[u32], Profile); 4] = [
        (&dense, Profile::intel()),
        (&[0, 1, 2, 3, 64, 65, 130, 255], Profile::intel()),
        (&[0, 1, 2, 255, 256, 257, 513], Profile::intel()),
        (&[0, 1, 2, 3, 4, 5, 6, 200], Profile::amd().with_writable_xapic_id(true)),
    ];
    for (ids, profile) in sets {
        let directory = Directory::new();
        let pages: Vec<ApicPage> = ids.iter().map(|_| ApicPage::new()).collect();
        let slots: Vec<_> = pages
            .iter()
            .zip(ids)
            .map(|(page, &id)| Slot::new(page, id, profile, DirectInbox).with_directory(&directory))
            .collect();
        let vm = Vm::new(&slots).unwrap();
        let mut apics: Vec<_> = slots.iter().map(|slot| LocalApic::new(slot, false)).collect();
        for _ in 0..150 {
            let vcpu = choices.below(ids.len() as u64) as usize;
            let apic = &mut apics[vcpu];
            let base = apic.slot().base().bits() & !0xC00;
            let few = [1, 2, 4, 8, 0x10, 0x11, 0x23, 0x80, 0xF1, 0xFF, 0];
            let id = few[choices.below(few.len() as u64) as usize] << 24;
            match choices.below(12) {
                0 => drop(apic.write_apic_base(base)),
                1 | 2 => drop(apic.write_apic_base(base | 0x800)),
                3 | 4 => drop(apic.write_apic_base(base | 0xC00)),
                5 => apic.init(),
                6 => apic.reset(false),
                7 => drop(apic.write_mmio(0xE0, Width::Dword, choices.below(2) << 28, 0)),
                8 => drop(apic.write_mmio(0xE0, Width::Dword, 0xFFFF_FFFF, 0)),
                9 => drop(apic.write_mmio(0x20, Width::Dword, id, 0)),
                10 => {
                    // From outside, and looked at before the next entry.
                    apic.slot().page().write(Register::Ldr, id as u32);
                    let _ = apic.prepare(0);
                }
                _ => drop(apic.write_mmio(0xD0, Width::Dword, id, 0)),
            }
            compare(vm);
        }
    }
}

#[test]
fn an_unseen_store_is_followed_at_once() {
    let directory = Directory::new();
    let pages = [ApicPage::new(), ApicPage::new()];
    let slot = |id: u32| {
        Slot::new(&pages[id as usize], id, Profile::intel(), DirectInbox).with_directory(&directory)
    };
    let slots = [slot(0), slot(1)];
    let vm = Vm::new(&slots).unwrap();
    let mut apic = LocalApic::new(&slots[1], false);
    apic.set_unseen_writes(true);
    pages[1].write(Register::Ldr, 4 << 24);
    let logical = Destination::Logical(Address::Narrow(4));
    assert_eq!(meant(vm, logical), [1]);
    apic.set_unseen_writes(false);
    assert!(is_complete(&directory));
    assert_eq!(meant(vm, logical), [1]);
}

#[test]
fn a_new_owner_goes_on_with_what_the_last_one_listed() {
    let directory = Directory::new();
    let page = ApicPage::new();
    let slots = [Slot::new(&page, 300, Profile::intel(), DirectInbox).with_directory(&directory)];
    assert!(!is_complete(&directory), "in xAPIC mode, with an ID above FF");
    for _ in 0..2 {
        let mut apic = LocalApic::new(&slots[0], true);
        assert!(!is_complete(&directory));
        let base = apic.slot().base().bits();
        let _ = apic.write_apic_base(base | 0xC00).unwrap();
        assert!(is_complete(&directory));
    }
}
