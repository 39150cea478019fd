//! Each identifier of exit 401, in both modes, for each kind of command and destination.

use std::collections::BTreeSet;
use std::vec::Vec;

use vlapic_core::{
    Address, Delivery, Destination, Effect, ExitOutcome, Message, Register, Trigger,
};

use super::{Options, Rig};
use crate::{IncompleteCause, IncompleteIpi};

/// What is to be done about a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    /// Nothing has been sent: all of it is.
    SendAll,
    /// It has been sent: the targets are told, and nothing is sent again.
    Tell,
    /// The sender has made a mistake, which its ESR says; nothing is sent. If the vector counts: otherwise all of it.
    Error,
}

/// APM Vol. 2 Table 15-24, in its order. A new cause does not compile without an action.
fn action(cause: IncompleteCause) -> Action {
    match cause {
        IncompleteCause::InvalidType => Action::SendAll,
        IncompleteCause::TargetNotRunning { .. } => Action::Tell,
        IncompleteCause::InvalidTarget { .. } => Action::SendAll,
        IncompleteCause::InvalidBackingPage { .. } => Action::SendAll,
        IncompleteCause::InvalidVector => Action::Error,
        IncompleteCause::NotAccelerated => Action::SendAll,
        IncompleteCause::Unknown(_) => Action::SendAll,
    }
}

const BUSY: u32 = 1 << 12;

const FIXED: Delivery = Delivery::Fixed { vector: 0x41, trigger: Trigger::Edge };
const COMMANDS: [(u32, Delivery); 6] = [
    (0x0041, FIXED),
    (0xC041, Delivery::Fixed { vector: 0x41, trigger: Trigger::Level }),
    (0x0141, Delivery::LowestPriority { vector: 0x41, trigger: Trigger::Edge }),
    (0x0402, Delivery::Nmi),
    (0x4500, Delivery::Init),
    (0x4608, Delivery::Startup { page: 8 }),
];

/// ICR bits 31:0 besides the command, the high half, and whom it means.
fn destinations(x2apic: bool) -> [(u32, u32, Destination); 5] {
    let address = |id: u32| if x2apic { Address::Wide(id) } else { Address::Narrow(id as u8) };
    let high = |id: u32| if x2apic { id } else { id << 24 };
    let all = if x2apic { u32::MAX } else { 0xFF };
    [
        (0, high(3), Destination::Physical(address(3))),
        (1 << 11, high(6), Destination::Logical(address(6))),
        (0, high(all), Destination::Physical(address(all))),
        (2 << 18, 0, Destination::All),
        (3 << 18, 0, Destination::AllButSelf),
    ]
}

fn rig(x2apic: bool) -> Rig {
    let mut rig = Options::vcpus(4).build();
    for index in 0..4 {
        rig.enable(index);
        if x2apic {
            rig.enter_x2apic(index);
        }
    }
    for index in 0..4 {
        rig.enter(index);
    }
    rig
}

#[test]
fn every_identifier_command_and_destination() {
    let mut seen = BTreeSet::new();
    for id in (0..64).chain([0x100, u64::from(u32::MAX)]) {
        for x2apic in [false, true] {
            let mut rig = rig(x2apic);
            for (command, delivery) in COMMANDS {
                for (bits, high, destination) in destinations(x2apic) {
                    // The index is of some target, or undefined.
                    for index in [3, 0xFFF, 0xFFFF_FFFF] {
                        let info_2 = id << 32 | index;
                        let cause = IncompleteIpi::decode(0, info_2).cause;
                        let action = action(cause);
                        seen.insert(action);
                        let low = command | bits;
                        // Hardware sends nothing but fixed IPIs, and to all with the sender nothing else can be sent.
                        let sent_to_all = destination == Destination::All && high == 0;
                        let illegal = sent_to_all && delivery != FIXED;
                        if illegal || action == Action::Tell && delivery != FIXED {
                            continue;
                        }
                        rig.page(0).write(Register::IcrHigh, high);
                        rig.page(0).write(Register::IcrLow, low | BUSY);
                        let info_1 = u64::from(high) << 32 | u64::from(low | BUSY);
                        let outcome = rig.exit(0, 0x401, info_1, info_2);
                        let message = Message::new(delivery, destination);
                        let fixed = low & 0x700 == 0;
                        // x2APIC mode has no lowest priority.
                        let dropped = x2apic && low & 0x700 == 0x100;
                        let effect = match action {
                            _ if dropped => Effect::None,
                            Action::Error if fixed => Effect::None,
                            Action::SendAll | Action::Error => Effect::Ipi(message),
                            Action::Tell => Effect::Announce(message),
                        };
                        let context = std::format!("{cause:?} {low:#x} {high:#x}");
                        assert_eq!(outcome, ExitOutcome::Done(effect), "{context}");
                        assert_eq!(rig.page(0).read(Register::IcrLow), low, "{context}");
                        let errors = if action == Action::Error && fixed { 1 << 5 } else { 0 };
                        assert_eq!(esr(&mut rig), errors, "{context}");
                        for vcpu in 0..4 {
                            let page = rig.page(vcpu);
                            assert!(page.irr().is_empty(), "{context}: nobody but the hypervisor");
                        }
                    }
                }
            }
        }
    }
    let all = [Action::SendAll, Action::Tell, Action::Error];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}

/// As the guest writes it, and what it then says.
fn esr(rig: &mut Rig) -> u32 {
    let outcome = rig.exit(0, 0x402, 1 << 32 | 0x280, 0);
    assert_eq!(outcome, ExitOutcome::Done(Effect::None));
    rig.page(0).read(Register::Esr)
}
