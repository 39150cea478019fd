//! Decoding against a second description of the same rules, over every low word.

use super::*;

/// What SDM Vol. 3A Table 10-3 and APM Vol. 2 Tables 16-3 and 16-4 say, as rows: the modes each
/// kind of APIC knows, then which shorthands they may have.
fn expected(low: u32, x2apic: bool, amd: bool) -> &'static str {
    let field = |from: u32, bits: u32| low >> from & ((1 << bits) - 1);
    let kinds: [&str; 8] = match (amd, x2apic) {
        (false, false) => ["fixed", "lowest", "smi", "-", "nmi", "init", "sipi", "-"],
        (true, false) => ["fixed", "lowest", "smi", "-", "nmi", "init", "sipi", "extint"],
        (_, true) => ["fixed", "-", "smi", "-", "nmi", "init", "sipi", "-"],
    };
    let kind = kinds[field(8, 3) as usize];
    let deassert = field(14, 2) == 0b10;
    let deassert_is_void = if amd { kind != "sipi" } else { kind == "init" };
    let shorthand_fits = kind == "fixed" || matches!(field(18, 2), 0 | 3);
    if kind == "-" || deassert && deassert_is_void || !shorthand_fits {
        "-"
    } else if matches!(kind, "fixed" | "lowest") && field(0, 8) < 16 {
        "illegal"
    } else {
        kind
    }
}

fn name(command: IcrCommand) -> &'static str {
    match command {
        IcrCommand::Invalid => "-",
        IcrCommand::IllegalVector => "illegal",
        IcrCommand::Send(message) => match message.delivery() {
            Delivery::Fixed { .. } => "fixed",
            Delivery::LowestPriority { .. } => "lowest",
            Delivery::Smi => "smi",
            Delivery::Nmi => "nmi",
            Delivery::Init => "init",
            Delivery::Startup { .. } => "sipi",
            Delivery::ExtInt => "extint",
        },
    }
}

#[test]
fn every_low_word() {
    for (amd, profile) in [(false, Profile::intel()), (true, Profile::amd())] {
        for (x2apic, mode) in [(false, Mode::XApic), (true, Mode::X2Apic)] {
            for low in 0..1u32 << 20 {
                let command = Icr::from_halves(low, 0x4500_0077).command(mode, &profile);
                assert_eq!(name(command), expected(low, x2apic, amd), "{low:#07x} {mode:?} {amd}");
            }
        }
    }
}

#[test]
fn vector_and_trigger_travel_with_the_message() {
    for low in 0..1u32 << 16 {
        for (amd, profile) in [(false, Profile::intel()), (true, Profile::amd())] {
            let IcrCommand::Send(message) = Icr::from_halves(low, 0).command(Mode::XApic, &profile)
            else {
                continue;
            };
            // Intel overrides level to edge; AMD sends what is written.
            let level = if amd && low & 0x8000 != 0 { Trigger::Level } else { Trigger::Edge };
            match message.delivery() {
                Delivery::Fixed { vector, trigger }
                | Delivery::LowestPriority { vector, trigger } => {
                    assert_eq!((u32::from(vector), trigger), (low & 0xFF, level), "{low:#x}");
                }
                Delivery::Startup { page } => assert_eq!(u32::from(page), low & 0xFF),
                _ => {}
            }
        }
    }
}

#[test]
fn destinations() {
    let table = [
        (0x0_0041, Destination::Physical(Address::Narrow(0x45)), Address::Wide(0x4500_0077)),
        (0x0_0841, Destination::Logical(Address::Narrow(0x45)), Address::Wide(0x4500_0077)),
    ];
    for (low, narrow, wide) in table {
        let icr = Icr::from_halves(low, 0x4500_0077);
        assert_eq!(icr.destination(Mode::XApic), narrow);
        let wide =
            if icr.logical() { Destination::Logical(wide) } else { Destination::Physical(wide) };
        assert_eq!(icr.destination(Mode::X2Apic), wide);
    }
    let shorthands = [
        (0x4_0041, Destination::SelfOnly),
        (0x8_0841, Destination::All),
        (0xC_0041, Destination::AllButSelf),
    ];
    for (low, expected) in shorthands {
        for mode in [Mode::XApic, Mode::X2Apic] {
            assert_eq!(Icr::from_halves(low, 9).destination(mode), expected);
        }
    }
}

#[test]
fn fields() {
    let icr = Icr::from_bits(0x1234_5678_000C_CFFF);
    assert_eq!((icr.low(), icr.high()), (0xC_CFFF, 0x1234_5678));
    assert_eq!((icr.vector(), icr.delivery_mode(), icr.shorthand()), (0xFF, 7, 3));
    assert!(icr.logical() && icr.assert());
    assert_eq!(icr.trigger(), Trigger::Level);
}
