use vlapic_hal::fake::MemoryVmcs;
use vlapic_hal::wrap::{Fault, FaultInjector, When};

use super::*;
use crate::machines::{full, lacking, with};

type Fields = MemoryVmcs<24>;

const NV: u8 = 0xf2;
const MODES: [Mode; 3] = [Mode::Disabled, Mode::XApic, Mode::X2Apic];
const WORDS: [VmcsField; 5] = [
    field::PIN_CONTROLS,
    field::PRIMARY_CONTROLS,
    field::SECONDARY_CONTROLS,
    field::TERTIARY_CONTROLS,
    field::EXIT_CONTROLS,
];

/// A VMCS as a hypervisor has made it: HLT and NMI exiting, EPT, 64-bit host.
fn fresh() -> Fields {
    let mut vmcs = Fields::new();
    for (field, value) in WORDS.into_iter().zip([0x1e, 0x8400_61f2, 0x2, 0, 0x3_6fff]) {
        vmcs.write(field, value).unwrap();
    }
    vmcs
}

fn words(vmcs: &impl Vmcs) -> [u64; 5] {
    WORDS.map(|field| vmcs.read(field).unwrap())
}

fn addresses(bitmap: &MsrBitmap) -> Addresses<'_> {
    Addresses {
        virtual_apic: Some(PhysAddr::new(0x11_1000)),
        apic_access: Some(PhysAddr::new(0x22_2000)),
        posted_interrupt_descriptor: Some(PhysAddr::new(0x33_3040)),
        msr_bitmap: Some((bitmap, PhysAddr::new(0x44_4000))),
        pid_pointer_table: Some((PhysAddr::new(0x55_5008), 3)),
    }
}

/// Which bits each level switches on in xAPIC mode; x2APIC mode and a disabled APIC differ in
/// secondary bits 0 and 4 only. Worked by hand from the tables of the manual.
#[test]
fn control_words_of_every_level_in_every_mode() {
    let caps = full();
    let cr8_exiting = 1 << 19 | 1 << 20;
    let bitmaps = 1 << 28;
    let shadow = 1 << 21 | bitmaps;
    let rows: [(Wanted, u64, u64, u64, u64, u64); 7] = [
        (Wanted::NONE, 0, cr8_exiting | bitmaps, 0, 0, 0),
        (Wanted::up_to(Feature::TprShadow), 0, shadow, 0, 0, 0),
        (Wanted::up_to(Feature::X2Apic), 0, shadow, 0, 0, 0),
        (Wanted::up_to(Feature::RegisterVirtualization), 0, shadow, 0x100, 0, 0),
        (Wanted::up_to(Feature::VirtualInterruptDelivery), 0x1, shadow, 0x300, 0, 0),
        (Wanted::up_to(Feature::PostedInterrupts), 0x81, shadow, 0x300, 0, 0x8000),
        (Wanted::ALL, 0x81, shadow | 1 << 17, 0x300, 0x10, 0x8000),
    ];
    for (wanted, pin, primary, secondary, tertiary, exit) in rows {
        for mode in MODES {
            let accesses = match mode {
                Mode::XApic if wanted.contains(Feature::ApicAccess) => 0x1,
                Mode::X2Apic if wanted.contains(Feature::X2Apic) => 0x10,
                _ => 0,
            };
            let bitmap = MsrBitmap::new();
            let mut vmcs = fresh();
            let addresses = addresses(&bitmap);
            let features = wanted.features();
            assert!(program(&mut vmcs, &caps, features, mode, &addresses, NV).is_ok());
            let added = [pin, primary, secondary | accesses, tertiary, exit];
            let before = words(&fresh());
            let expected = core::array::from_fn(|index| before[index] | added[index]);
            assert_eq!(words(&vmcs), expected, "{features} {mode:?}");
        }
    }
}

#[test]
fn addresses_of_what_is_granted_and_nothing_else() {
    use Feature::*;
    let fields = [
        (field::VIRTUAL_APIC, TprShadow, 0x11_1000),
        (field::APIC_ACCESS, ApicAccess, 0x22_2000),
        (field::POSTED_INTERRUPT_DESCRIPTOR, PostedInterrupts, 0x33_3040),
        (field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, PostedInterrupts, 0xf2),
        (field::PID_POINTER_TABLE, IpiVirtualization, 0x55_5008),
        (field::LAST_PID_POINTER_INDEX, IpiVirtualization, 3),
    ];
    for set in crate::machines::every_set() {
        let features = negotiate(set.into(), &full()).features();
        let bitmap = MsrBitmap::new();
        let mut vmcs = fresh();
        let result = program(&mut vmcs, &full(), features, Mode::XApic, &addresses(&bitmap), NV);
        assert!(result.is_ok());
        for (field, feature, value) in fields {
            let expected = features.contains(feature).then_some(value);
            let found = vmcs.written().find(|row| row.0 == field).map(|row| row.1);
            assert_eq!(found, expected, "{field} {features}");
        }
        assert_eq!(vmcs.read(field::MSR_BITMAP), Ok(0x44_4000));
    }
}

/// Going down the levels leaves no bit of a higher one, but what others may have come to rely on.
#[test]
fn from_any_level_to_any_other() {
    let shared = [0x1, 1 << 31 | 1 << 17, 0, 0, 0x8000];
    for from in crate::machines::every_set() {
        let from = negotiate(from.into(), &full()).features();
        for to in [
            Wanted::NONE,
            Wanted::up_to(Feature::TprShadow),
            Wanted::up_to(Feature::RegisterVirtualization),
            Wanted::ALL,
        ] {
            let bitmap = MsrBitmap::new();
            let addresses = addresses(&bitmap);
            let mut vmcs = fresh();
            let mut direct = fresh();
            let to = to.features();
            for features in [from, to] {
                let result = program(&mut vmcs, &full(), features, Mode::X2Apic, &addresses, NV);
                assert!(result.is_ok());
            }
            assert!(program(&mut direct, &full(), to, Mode::X2Apic, &addresses, NV).is_ok());
            for ((word, direct), shared) in words(&vmcs).into_iter().zip(words(&direct)).zip(shared)
            {
                assert_eq!(word & !shared, direct & !shared, "{from} to {to}");
            }
        }
    }
}

fn refuse(
    caps: &Capabilities,
    features: Features,
    addresses: &Addresses<'_>,
    nv: u8,
) -> ProgramError {
    let mut vmcs = fresh();
    let result = program(&mut vmcs, caps, features, Mode::XApic, addresses, nv);
    assert!(vmcs.written().eq(fresh().written()), "nothing is written");
    result.unwrap_err()
}

#[test]
fn missing_misaligned_and_unreachable_structures() {
    let bitmap = MsrBitmap::new();
    let all = Wanted::ALL.features();
    let put = |structure, address: Option<u64>| {
        let mut addresses = addresses(&bitmap);
        let address = address.map(PhysAddr::new);
        match structure {
            Structure::VirtualApicPage => addresses.virtual_apic = address,
            Structure::ApicAccessPage => addresses.apic_access = address,
            Structure::PostedInterruptDescriptor => addresses.posted_interrupt_descriptor = address,
            Structure::MsrBitmap => {
                addresses.msr_bitmap = address.map(|address| (&bitmap, address));
            }
            Structure::PidPointerTable => {
                addresses.pid_pointer_table = address.map(|address| (address, 3));
            }
        }
        addresses
    };
    for structure in Structure::ALL {
        let refused = |address| refuse(&full(), all, &put(structure, address), NV);
        assert_eq!(refused(None), ProgramError::Missing(structure));
        let half = structure.alignment() / 2;
        let odd = PhysAddr::new(0x10_0000 + half);
        assert_eq!(refused(Some(odd.as_u64())), ProgramError::Misaligned(structure, odd));
        let far = PhysAddr::new(1 << 46);
        assert_eq!(refused(Some(far.as_u64())), ProgramError::OutOfReach(structure, far));
        let last = (1 << 46) - 4096;
        let mut vmcs = fresh();
        let addresses = put(structure, Some(last));
        assert!(program(&mut vmcs, &full(), all, Mode::XApic, &addresses, NV).is_ok());
    }
    // A table whose last entry is out of reach though its first is not.
    let table = PhysAddr::new((1 << 46) - 16);
    let mut addresses = addresses(&bitmap);
    addresses.pid_pointer_table = Some((table, 2));
    let refused = refuse(&full(), all, &addresses, NV);
    assert_eq!(refused, ProgramError::OutOfReach(Structure::PidPointerTable, table));
    addresses.pid_pointer_table = Some((table, 1));
    assert!(program(&mut fresh(), &full(), all, Mode::XApic, &addresses, NV).is_ok());
    let limited = with(&[(0x480, 0x00db_0400_0000_002b)]);
    let page = 1 << 32;
    let refused = refuse(&limited, all, &put(Structure::VirtualApicPage, Some(page)), NV);
    let page = PhysAddr::new(page);
    assert_eq!(refused, ProgramError::OutOfReach(Structure::VirtualApicPage, page));
}

#[test]
fn features_that_cannot_be() {
    let bitmap = MsrBitmap::new();
    let addresses = addresses(&bitmap);
    let alone = Features::NONE.with(Feature::VirtualInterruptDelivery);
    let expected = ProgramError::NotGranted(
        Feature::VirtualInterruptDelivery,
        Reason::Needs(Feature::TprShadow),
    );
    assert_eq!(refuse(&full(), alone, &addresses, NV), expected);
    let old = lacking(&[(0x48b, 1 << 40)]);
    let expected = ProgramError::NotGranted(Feature::RegisterVirtualization, Reason::NotSupported);
    assert_eq!(refuse(&old, Wanted::ALL.features(), &addresses, NV), expected);
    let refused = refuse(&full(), Wanted::ALL.features(), &addresses, 15);
    assert_eq!(refused, ProgramError::NotificationVector(15));
    let posted_off = Wanted::up_to(Feature::VirtualInterruptDelivery).features();
    let result = program(&mut fresh(), &full(), posted_off, Mode::XApic, &addresses, 0);
    assert!(result.is_ok(), "the vector is not used");
}

/// Controls that must have the other setting, as under another hypervisor.
#[test]
fn fixed_controls() {
    let bitmap = MsrBitmap::new();
    let addresses = addresses(&bitmap);
    let no_cr8_exiting = lacking(&[(0x48e, 3 << 51)]);
    let refused = refuse(&no_cr8_exiting, Features::NONE, &addresses, NV);
    assert_eq!(refused, ProgramError::Fixed(ControlWord::Primary, 3 << 19));
    let shadow_always = with(&[(0x48e, 0xfffb_fffe_0420_6172)]);
    let refused = refuse(&shadow_always, Features::NONE, &addresses, NV);
    assert_eq!(refused, ProgramError::Fixed(ControlWord::Primary, 1 << 21));
}

/// Every VMWRITE and VMREAD in turn fails.
#[test]
fn a_failing_access_at_each_position() {
    let error = VmcsError::Instruction(12);
    let caps = full();
    let features = Wanted::ALL.features();
    let faults = [
        (Fault::WriteVmcs { field: None, error }, 12),
        (Fault::ReadVmcs { field: None, error }, 4),
    ];
    for (fault, count) in faults {
        for position in 1..=count + 1 {
            let bitmap = MsrBitmap::new();
            bitmap.apply(features, Mode::X2Apic);
            let mut vmcs = FaultInjector::new(fresh(), [(When::Nth(position), fault)]);
            let result = program(&mut vmcs, &caps, features, Mode::X2Apic, &addresses(&bitmap), NV);
            let closed = (0x800..0x900)
                .all(|msr| bitmap.intercepts_read(msr) && bitmap.intercepts_write(msr));
            if position <= count {
                assert_eq!(vmcs.struck(), 1, "position {position}");
                assert_eq!(result, Err(ProgramError::Vmcs(error)));
                let before_writing = matches!(fault, Fault::ReadVmcs { .. });
                assert!(closed || before_writing, "nothing leaks with controls half written");
                let addresses = addresses(&bitmap);
                let again = program(&mut vmcs, &caps, features, Mode::X2Apic, &addresses, NV);
                assert!(again.is_ok(), "the call can be repeated");
                assert_eq!(words(vmcs.inner())[2], 0x312);
            } else {
                assert_eq!(vmcs.struck(), 0);
                assert!(result.is_ok() && !closed);
            }
        }
    }
}

/// A processor without the features has no fields for them: no access to any.
#[test]
fn fields_that_do_not_exist_are_left_alone() {
    let missing = [
        field::POSTED_INTERRUPT_NOTIFICATION_VECTOR,
        field::LAST_PID_POINTER_INDEX,
        field::GUEST_INTERRUPT_STATUS,
        field::APIC_ACCESS,
        field::POSTED_INTERRUPT_DESCRIPTOR,
        field::TERTIARY_CONTROLS,
        field::PID_POINTER_TABLE,
        field::SECONDARY_CONTROLS,
        field::MSR_BITMAP,
    ];
    let [reads, writes] = [false, true].map(|write| {
        missing.map(|field| {
            let error = VmcsError::Unsupported(field);
            let field = Some(field);
            let fault = match write {
                false => Fault::ReadVmcs { field, error },
                true => Fault::WriteVmcs { field, error },
            };
            (When::Always, fault)
        })
    });
    let caps = lacking(&[(0x48e, 1 << 63 | 1 << 60 | 1 << 49)]);
    let bitmap = MsrBitmap::new();
    let mut start = Fields::new();
    start.write(field::PRIMARY_CONTROLS, 0x0400_6172).unwrap();
    let mut vmcs = FaultInjector::new(FaultInjector::new(start, reads), writes);
    for wanted in [Wanted::ALL, Wanted::NONE] {
        let features = negotiate(wanted, &caps).features();
        let result = program(&mut vmcs, &caps, features, Mode::XApic, &addresses(&bitmap), NV);
        assert_eq!(result, Ok(Translations::Unchanged), "{features}");
    }
}

/// A word that was not activated holds whatever the VMCS region held.
#[test]
fn a_word_that_was_not_activated_starts_from_nothing() {
    let bitmap = MsrBitmap::new();
    let mut vmcs = fresh();
    vmcs.write(field::PRIMARY_CONTROLS, 0x0400_6172).unwrap();
    vmcs.write(field::SECONDARY_CONTROLS, 0xffff_ffff).unwrap();
    vmcs.write(field::TERTIARY_CONTROLS, u64::MAX).unwrap();
    let must_be_1 = with(&[(0x48b, 0x06d7_7fff_0000_0008)]);
    let all = Wanted::ALL.features();
    let result = program(&mut vmcs, &must_be_1, all, Mode::XApic, &addresses(&bitmap), NV);
    assert_eq!(result, Ok(Translations::Stale));
    assert_eq!(words(&vmcs)[2..4], [0x309, 0x10]);
    assert_eq!(words(&vmcs)[1], 0x9422_6172 & !(3 << 19));
    // One that was activated is the hypervisor's, right or wrong.
    let mut vmcs = fresh();
    assert!(program(&mut vmcs, &must_be_1, all, Mode::XApic, &addresses(&bitmap), NV).is_ok());
    assert_eq!(words(&vmcs)[2], 0x303);
}

#[test]
fn translations_and_modes() {
    use Translations::{Stale, Unchanged};
    let bitmap = MsrBitmap::new();
    let caps = full();
    let all = Wanted::ALL.features();
    let mut vmcs = fresh();
    let mut addresses = addresses(&bitmap);
    let first = program(&mut vmcs, &caps, all, Mode::Disabled, &addresses, NV);
    assert_eq!(first, Ok(Unchanged));
    for (mode, expected) in [
        (Mode::XApic, Stale),
        (Mode::XApic, Unchanged),
        (Mode::X2Apic, Stale),
        (Mode::Disabled, Unchanged),
        (Mode::XApic, Stale),
        (Mode::Disabled, Stale),
        (Mode::X2Apic, Unchanged),
        (Mode::XApic, Stale),
    ] {
        let found = reprogram_for_mode(&mut vmcs, &caps, all, mode, Some(&bitmap));
        assert_eq!(found, Ok(expected), "{mode:?}");
        assert_eq!(bitmap.intercepts_read(0x803), mode != Mode::X2Apic);
        let mut direct = fresh();
        assert!(program(&mut direct, &caps, all, mode, &addresses, NV).is_ok());
        assert_eq!(words(&vmcs), words(&direct));
    }
    let same = program(&mut vmcs, &caps, all, Mode::XApic, &addresses, NV);
    assert_eq!(same, Ok(Unchanged));
    addresses.apic_access = Some(PhysAddr::new(0x66_6000));
    let moved = program(&mut vmcs, &caps, all, Mode::XApic, &addresses, NV);
    assert_eq!(moved, Ok(Stale));
}

#[test]
fn a_failing_write_while_the_mode_changes() {
    let bitmap = MsrBitmap::new();
    let caps = full();
    let all = Wanted::ALL.features();
    let error = VmcsError::NoCurrentVmcs;
    for position in 1..=5 {
        let mut vmcs = fresh();
        assert!(program(&mut vmcs, &caps, all, Mode::X2Apic, &addresses(&bitmap), NV).is_ok());
        assert!(!bitmap.intercepts_write(0x80b));
        let fault = Fault::WriteVmcs { field: None, error };
        let mut vmcs = FaultInjector::new(vmcs, [(When::Nth(position), fault)]);
        let result = reprogram_for_mode(&mut vmcs, &caps, all, Mode::Disabled, Some(&bitmap));
        assert_eq!(result, Err(ProgramError::Vmcs(error)));
        assert!(bitmap.intercepts_write(0x80b));
    }
}
