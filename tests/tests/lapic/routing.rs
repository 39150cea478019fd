//! Who gets a message, against the rules applied to every vCPU one by one.

use vlapic_core::{
    Address, Delivery, Destination, Message, Mode, Outcome, Profile, Register, Trigger, Vector, Vm,
    VmError,
};
use vlapic_tests::plain::{Plain, vm};

/// One vCPU as the rules see it.
struct Target {
    mode: Mode,
    id: u32,
    ldr: u32,
    dfr: u32,
}

/// SDM Vol. 3A 10.6.2.1 to 10.6.2.3 and 10.12.9; mixed modes as the core documents them.
fn matches(target: &Target, destination: Destination, sender: bool) -> bool {
    if destination == Destination::SelfOnly {
        return sender;
    }
    if target.mode == Mode::Disabled {
        return false;
    }
    let x2apic = target.mode == Mode::X2Apic;
    match destination {
        Destination::SelfOnly | Destination::All => true,
        Destination::AllButSelf => !sender,
        Destination::Physical(Address::Narrow(0xFF) | Address::Wide(0xFFFF_FFFF))
        | Destination::Logical(Address::Narrow(0xFF) | Address::Wide(0xFFFF_FFFF)) => true,
        Destination::Physical(address) if x2apic => address.id() == target.id,
        Destination::Physical(address) => address.id() % 256 == target.id % 256,
        Destination::Logical(address) if x2apic => {
            let cluster = target.id / 16 % 0x1_0000;
            address.id() / 0x1_0000 == cluster && address.id() >> (target.id % 16) & 1 == 1
        }
        Destination::Logical(address) => {
            let (mda, ldr) = (address.id(), target.ldr >> 24);
            match target.dfr >> 28 {
                _ if mda > 0xFF => false,
                0xF => mda & ldr != 0,
                0x0 => mda / 16 == ldr / 16 && (mda % 16) & (ldr % 16) != 0,
                _ => false,
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.next() % bound
    }
}

fn ids(kind: &str, count: u32) -> Vec<u32> {
    match kind {
        "dense" => (0..count).collect(),
        "even" => (0..count).map(|index| 2 * index).collect(),
        // One more than 16 to a package of 64.
        "packages" => (0..count).map(|index| index / 17 * 64 + index % 17).collect(),
        "far" => (0..count).map(|index| index * 0x000F_0013 + 7).collect(),
        _ => unreachable!(),
    }
}

/// Modes and logical IDs in every mixture.
fn mix(vcpus: &mut [Plain], modes: &[Mode], random: &mut Random) -> Vec<Target> {
    let mut targets = Vec::new();
    for plain in vcpus {
        let mode = modes[random.below(modes.len() as u32) as usize];
        let ldr = match random.below(4) {
            0 => 0,
            1 => 1 << random.below(8),
            _ => random.below(256),
        };
        let dfr = [0xFFFF_FFFF, 0xFFFF_FFFF, 0x0FFF_FFFF, 0x7FFF_FFFF][random.below(4) as usize];
        plain.set(Register::Ldr, ldr << 24);
        plain.set(Register::Dfr, dfr);
        match mode {
            Mode::XApic => {}
            Mode::X2Apic => plain.enter_x2apic(),
            Mode::Disabled => plain.set_msr(0x1B, 0xFEE0_0000),
        }
        targets.push(Target { mode, id: plain.slot.x2apic_id(), ldr: ldr << 24, dfr });
    }
    targets
}

fn destination(random: &mut Random, targets: &[Target]) -> Destination {
    let known = targets[random.below(targets.len() as u32) as usize].id;
    let cluster = (known >> 4) << 16 | random.below(0x1_0000);
    let address = match random.below(10) {
        0 => Address::Narrow(0xFF),
        1 => Address::Wide(0xFFFF_FFFF),
        2 => Address::Wide(known),
        3 => Address::Wide(known ^ 0x100),
        4 => Address::Wide(cluster),
        5 => Address::Wide(random.next()),
        6 => Address::Wide(random.below(0x200)),
        7 => Address::Narrow(known as u8),
        _ => Address::Narrow(random.next() as u8),
    };
    match random.below(16) {
        0 => Destination::SelfOnly,
        1 => Destination::All,
        2 => Destination::AllButSelf,
        3..9 => Destination::Physical(address),
        _ => Destination::Logical(address),
    }
}

const SIZES: [u32; 10] = [1, 2, 3, 15, 16, 17, 255, 256, 257, 4096];

#[test]
fn targets_are_those_the_rules_name() {
    let mixtures: [&[Mode]; 4] = [
        &[Mode::XApic],
        &[Mode::X2Apic],
        &[Mode::XApic, Mode::X2Apic],
        &[Mode::XApic, Mode::X2Apic, Mode::Disabled],
    ];
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    let mut hits = 0;
    for kind in ["dense", "even", "packages", "far"] {
        for count in SIZES {
            for modes in mixtures {
                let (vm, mut vcpus) = vm(Profile::intel(), &ids(kind, count));
                let targets = mix(&mut vcpus, modes, &mut random);
                for _ in 0..60 {
                    let destination = destination(&mut random, &targets);
                    let sender = random.below(count) as usize;
                    let found: Vec<usize> = vm.targets(destination, Some(sender)).collect();
                    let expected: Vec<usize> = (0..count as usize)
                        .filter(|&index| matches(&targets[index], destination, index == sender))
                        .collect();
                    assert_eq!(found, expected, "{kind} {count} {destination:?} from {sender}");
                    hits += found.len();
                }
            }
        }
    }
    assert!(hits > 100_000, "the addresses hit something: {hits}");
}

/// A message reaches those that it is addressed to, in which way ever its iterator is driven.
#[test]
fn however_driven_a_message_reaches_its_targets() {
    let mixtures: [&[Mode]; 4] = [
        &[Mode::XApic],
        &[Mode::X2Apic],
        &[Mode::XApic, Mode::X2Apic],
        &[Mode::XApic, Mode::X2Apic, Mode::Disabled],
    ];
    let mut random = Random(0x0F1E_2D3C_4B5A_6978);
    let mut outcomes = [0; 3];
    for kind in ["dense", "even", "packages", "far"] {
        for count in [1, 2, 3, 17, 63, 64, 65, 130, 255, 256, 257, 600] {
            for modes in mixtures {
                let (vm, mut vcpus) = vm(Profile::intel(), &ids(kind, count));
                let targets = mix(&mut vcpus, modes, &mut random);
                for plain in &mut vcpus {
                    if random.below(4) != 0 {
                        plain.slot.page().write(Register::Svr, 0x1FF);
                    }
                }
                for round in 0..60 {
                    let destination = destination(&mut random, &targets);
                    let sender = random.below(count) as usize;
                    let delivery = match random.below(5) {
                        0 => Delivery::Nmi,
                        1 => Delivery::Fixed { vector: 5, trigger: Trigger::Edge },
                        // A vector of its own for each round.
                        _ => Delivery::Fixed { vector: 0x40 + round, trigger: Trigger::Edge },
                    };
                    let message = Message::new(delivery, destination);
                    let expected: Vec<(usize, Outcome)> = (0..count as usize)
                        .filter(|&index| matches(&targets[index], destination, index == sender))
                        .map(|index| (index, outcome(&vcpus[index], delivery)))
                        .collect();
                    let mut deliveries = vm.send(&message, Some(sender));
                    let mut found = Vec::new();
                    // Some by steps, then the others from inside.
                    for _ in 0..[0, 0, 1, 2, 5000][random.below(5) as usize] {
                        let Some((index, receipt)) = deliveries.next() else { break };
                        found.push((index, receipt.outcome));
                    }
                    deliveries.for_each(|(index, receipt)| found.push((index, receipt.outcome)));
                    assert_eq!(found, expected, "{kind} {count} {message:?} from {sender}");
                    let Delivery::Fixed { vector: 0x40.., .. } = delivery else { continue };
                    let vector = Vector::new(0x40 + round).unwrap();
                    for (index, plain) in vcpus.iter().enumerate() {
                        let requested = plain.slot.page().irr().contains(vector);
                        assert_eq!(requested, expected.contains(&(index, Outcome::Accepted)));
                    }
                    expected.iter().for_each(|(_, outcome)| outcomes[*outcome as usize] += 1);
                }
            }
        }
    }
    assert!(outcomes[0] > 10_000 && outcomes[1] > 1000, "{outcomes:?}");
}

/// What an APIC that is addressed makes of `delivery`; an absent one is addressed by itself only.
fn outcome(plain: &Plain, delivery: Delivery) -> Outcome {
    match delivery {
        _ if plain.slot.mode() == Mode::Disabled => Outcome::Refused,
        Delivery::Fixed { vector: 0..16, .. } => Outcome::IllegalVector,
        Delivery::Fixed { .. } if plain.slot.page().svr().bits() & 0x100 == 0 => Outcome::Refused,
        _ => Outcome::Accepted,
    }
}

fn enabled_vm(ids: &[u32]) -> (Vm<'static, vlapic_core::DirectInbox>, Vec<Plain>) {
    let (vm, mut vcpus) = vm(Profile::intel(), ids);
    vcpus.iter_mut().for_each(Plain::enable);
    (vm, vcpus)
}

#[test]
fn a_fixed_message_reaches_all_its_targets() {
    let (vm, vcpus) = enabled_vm(&ids("dense", 300));
    let delivery = Delivery::Fixed { vector: 0x66, trigger: Trigger::Edge };
    let message = Message::new(delivery, Destination::AllButSelf);
    let reached: Vec<usize> = vm.send(&message, Some(7)).map(|(index, _)| index).collect();
    assert_eq!(reached.len(), 299);
    for (index, plain) in vcpus.iter().enumerate() {
        assert_eq!(plain.irr(), if index == 7 { vec![] } else { vec![0x66] });
    }
    let nobody = Message::new(delivery, Destination::SelfOnly);
    assert_eq!(vm.send(&nobody, None).count(), 0, "a device has no self");
    assert_eq!(vm.send(&nobody, Some(5000)).count(), 0);
}

fn lowest(vm: &Vm<'static, vlapic_core::DirectInbox>, vector: u8) -> Vec<usize> {
    let delivery = Delivery::LowestPriority { vector, trigger: Trigger::Edge };
    let message = Message::new(delivery, Destination::All);
    let sent: Vec<_> = vm.send(&message, None).collect();
    assert!(sent.iter().all(|(_, receipt)| receipt.outcome == Outcome::Accepted));
    sent.into_iter().map(|(index, _)| index).collect()
}

#[test]
fn lowest_priority_reaches_exactly_one_that_accepts() {
    for count in [1, 2, 3, 64] {
        let (vm, mut vcpus) = vm(Profile::intel(), &ids("dense", count));
        assert_eq!(lowest(&vm, 0x51), [] as [usize; 0], "nobody accepts");
        for (index, accepting) in vcpus.iter_mut().enumerate() {
            accepting.enable();
            assert_eq!(lowest(&vm, 0x51), [index]);
            assert_eq!(accepting.apic.acknowledge(), 0x51);
            accepting.set(Register::Eoi, 0);
            accepting.set(Register::Svr, 0xFF);
        }
        vcpus.iter_mut().for_each(Plain::enable);
        for vector in 16..=255 {
            assert_eq!(lowest(&vm, vector).len(), 1);
        }
        let held: usize = vcpus.iter().map(|plain| plain.irr().len()).sum();
        assert_eq!(held, 240);
    }
}

#[test]
fn lowest_priority_asks_the_priority_and_goes_round() {
    let (vm, mut vcpus) = enabled_vm(&ids("dense", 4));
    for (plain, tpr) in vcpus.iter_mut().zip([0x40, 0x25, 0x2F, 0x30]) {
        plain.set(Register::Tpr, tpr);
    }
    assert_eq!(lowest(&vm, 0x51), [1], "class 2; 0x51 % 4 is 1");
    assert_eq!(lowest(&vm, 0x52), [2], "the sub-class does not count");
    assert_eq!(lowest(&vm, 0x53), [1], "round from 3");
    for plain in &mut vcpus {
        plain.set(Register::Tpr, 0);
    }
    assert_eq!([0x60, 0x61, 0x62, 0x63].map(|vector| lowest(&vm, vector)[0]), [0, 1, 2, 3]);
}

/// Priorities of all kinds, against the rules one APIC after the other.
#[test]
fn lowest_priority_goes_to_whom_the_rules_name() {
    let mut random = Random(0x00C0_FFEE_1234_4321);
    let mut winners = std::collections::HashSet::new();
    for (amd, profile) in [(false, Profile::intel()), (true, Profile::amd())] {
        for round in 0..400u32 {
            let count = [1, 2, 3, 5, 16, 70][round as usize % 6];
            let (vm, vcpus) = vm(profile, &ids("dense", count));
            let vector = 0x20 + random.below(0xE0) as u8;
            // Of few classes, so that many are equal.
            let any = |random: &mut Random| Vector::new(0x30 + random.below(0x40) as u8).unwrap();
            for plain in &vcpus {
                let page = plain.slot.page();
                let svr = [0x1FF, 0x1FF, 0x1FF, 0x3FF, 0xFF][random.below(5) as usize];
                page.write(Register::Svr, svr);
                page.write(Register::Tpr, [0, 0x30, 0x3F, 0x40][random.below(4) as usize]);
                if random.below(2) == 0 {
                    page.isr().insert_owned(any(&mut random));
                }
                if random.below(2) == 0 {
                    page.irr().insert(any(&mut random));
                }
            }
            let expected = expected_winner(&vcpus, amd, vector);
            let delivery = Delivery::LowestPriority { vector, trigger: Trigger::Edge };
            let message = Message::new(delivery, Destination::All);
            let mut found = None;
            vm.send(&message, None).for_each(|(index, _)| assert_eq!(found.replace(index), None));
            assert_eq!(found, expected, "{count} vCPUs, vector {vector:#x}, AMD: {amd}");
            winners.extend(found);
        }
    }
    assert!(winners.len() > 20, "{winners:?}");
}

/// SDM Vol. 3A 10.6.2.4, 10.8.3.1; APM Vol. 2 16.6.2.
fn expected_winner(vcpus: &[Plain], amd: bool, vector: u8) -> Option<usize> {
    let class = |set: Vec<Vector>| set.iter().map(|vector| vector.get() >> 4).max().unwrap_or(0);
    let bid = |index: usize| {
        let page = vcpus[index].slot.page();
        let (svr, tpr) = (page.read(Register::Svr), page.read(Register::Tpr) as u8);
        let priority = class(page.isr().iter().collect()).max(tpr >> 4);
        let requested = page.irr().iter().chain(page.isr().iter()).any(|one| one.get() == vector);
        let around = (index + vcpus.len() - usize::from(vector) % vcpus.len()) % vcpus.len();
        let bid = if amd {
            let focus = svr & 0x200 == 0 && requested;
            (!focus, priority.max(class(page.irr().iter().collect())), vcpus.len() - index)
        } else {
            (false, priority, around)
        };
        (svr & 0x100 != 0).then_some((bid, index))
    };
    (0..vcpus.len()).filter_map(bid).min().map(|(_, index)| index)
}

#[test]
fn amds_focus_processor() {
    let (vm, mut vcpus) = vm(Profile::amd(), &ids("dense", 3));
    vcpus.iter_mut().for_each(Plain::enable);
    assert_eq!(lowest(&vm, 0x51), [2], "the highest ID among equals");
    assert_eq!(vcpus[2].apic.acknowledge(), 0x51);
    assert_eq!(lowest(&vm, 0x51), [2], "in service there already");
    assert_eq!(lowest(&vm, 0x52), [1], "another vector goes by priority");
    vcpus[2].set(Register::Svr, 0x3FF);
    assert_eq!(lowest(&vm, 0x51), [0], "focus checking off");
}

#[test]
fn an_illegal_lowest_priority_vector_is_one_error() {
    let (vm, mut vcpus) = enabled_vm(&ids("dense", 3));
    let delivery = Delivery::LowestPriority { vector: 5, trigger: Trigger::Edge };
    let message = Message::new(delivery, Destination::All);
    let outcomes: Vec<_> = vm.send(&message, None).map(|(_, receipt)| receipt.outcome).collect();
    assert_eq!(outcomes, [Outcome::IllegalVector]);
    let errors: Vec<u32> = vcpus.iter_mut().map(Plain::errors).collect();
    assert_eq!(errors.iter().sum::<u32>(), 0x40, "{errors:?}");
}

#[test]
fn an_ipi_from_register_to_register() {
    let (vm, mut vcpus) = enabled_vm(&[0, 1, 0x105]);
    let _ = vcpus[0].store(0x310, 0x0100_0000);
    let vlapic_core::Effect::Ipi(message) = vcpus[0].store(0x300, 0x4041) else { panic!() };
    assert_eq!(vm.send(&message, Some(0)).map(|(index, _)| index).collect::<Vec<_>>(), [1]);
    assert_eq!(vcpus[1].irr(), [0x41]);
    vcpus[0].enter_x2apic();
    let effect = vcpus[0].wrmsr(0x830, 0x105 << 32 | 0x42).unwrap();
    let vlapic_core::Effect::Ipi(message) = effect else { panic!() };
    assert_eq!(vm.send(&message, Some(0)).map(|(index, _)| index).collect::<Vec<_>>(), [2]);
    assert_eq!(vcpus[2].irr(), [0x42]);
}

#[test]
fn a_rewritten_xapic_id_is_found() {
    let (vm, mut vcpus) = vm(Profile::intel().with_writable_xapic_id(true), &[0, 1]);
    let _ = vcpus[1].store(0x020, 0x5500_0000);
    let at = |id| vm.targets(Destination::Physical(Address::Narrow(id)), None).collect::<Vec<_>>();
    assert_eq!((at(0x55), at(1), at(0)), (vec![1], vec![], vec![0]));
}

#[test]
fn a_scribbled_id_is_not_believed() {
    let (vm, vcpus) = enabled_vm(&[0, 1]);
    vcpus[1].slot.page().write(Register::Id, 0);
    let at = |id| vm.targets(Destination::Physical(Address::Narrow(id)), None).collect::<Vec<_>>();
    assert_eq!((at(0), at(1)), (vec![0], vec![1]));
}

#[test]
fn what_is_not_a_vm() {
    use vlapic_core::{ApicPage, DirectInbox, Slot};
    let page: &ApicPage = Box::leak(Box::new(ApicPage::new()));
    let slots = |ids: &[u32], profile: fn(u32) -> Profile| -> Vec<_> {
        ids.iter().map(|&id| Slot::new(page, id, profile(id), DirectInbox)).collect()
    };
    let intel = |_| Profile::intel();
    assert_eq!(Vm::new(&slots(&[0, 2, 2], intel)).unwrap_err(), VmError::NotAscending(2));
    assert_eq!(Vm::new(&slots(&[3, 1], intel)).unwrap_err(), VmError::NotAscending(1));
    let all: Vec<u32> = (0..4097).collect();
    assert_eq!(Vm::new(&slots(&all, intel)).unwrap_err(), VmError::TooMany);
    let mixed = |id| if id == 2 { Profile::amd() } else { Profile::intel() };
    assert_eq!(Vm::new(&slots(&[0, 1, 2], mixed)).unwrap_err(), VmError::MixedModels(2));
    let none: [Slot<'_, DirectInbox>; 0] = [];
    let vm = Vm::new(&none).unwrap();
    assert_eq!(vm.targets(Destination::All, None).count(), 0);
    assert_eq!(vm.targets(Destination::Physical(Address::Wide(5)), None).count(), 0);
}
