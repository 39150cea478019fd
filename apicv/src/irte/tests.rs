use super::*;

/// Worked by hand from the field table: descriptor 0x12_3456_7840, vector 0x51, urgent,
/// requester 00:1f.2 compared in full.
#[test]
fn a_posted_entry_bit_by_bit() {
    let source = Source::Requester { id: 0x00fa, qualifier: 0 };
    let posted = Posted {
        descriptor: PhysAddr::new(0x12_3456_7840),
        vector: 0x51,
        urgent: true,
        common: Common { source, ..Common::default() },
    };
    let entry = posted.encode().unwrap();
    assert_eq!(entry.halves(), [0x3456_7840_0051_c001, 0x0000_0012_0004_00fa]);
    assert_eq!(entry.decode(), Ok(Some(Target::Posted(posted))));
}

/// Vector 0x30, level, lowest priority, logical, hint, x2APIC destination 0x0001_0002, FPD,
/// buses 3 to 5.
#[test]
fn a_remapped_entry_bit_by_bit() {
    let remapped = Remapped {
        destination: 0x0001_0002,
        vector: 0x30,
        logical: true,
        redirection_hint: true,
        level: true,
        delivery: RemappedDelivery::LowestPriority,
        common: Common {
            fault_processing_disable: true,
            available: 0xa,
            source: Source::Buses { first: 3, last: 5 },
        },
    };
    let entry = remapped.encode();
    assert_eq!(entry.halves(), [0x0001_0002_0030_0a3f, 0x0008_0305]);
    assert_eq!(entry.decode(), Ok(Some(Target::Remapped(remapped))));
    assert_eq!(Remapped::xapic_destination(0x12), 0x1200);
}

#[test]
fn round_trips() {
    let sources = [
        Source::Any,
        Source::Requester { id: 0xffff, qualifier: 3 },
        Source::Buses { first: 0, last: 0xff },
    ];
    let deliveries = (0..8).filter_map(|bits| RemappedDelivery::from_bits(bits).ok());
    let mut count = 0;
    for source in sources {
        for bits in 0..0x40u8 {
            let flag = |bit: u8| bits & 1 << bit != 0;
            let common =
                Common { fault_processing_disable: flag(0), available: bits & 0xf, source };
            let posted = Posted {
                descriptor: PhysAddr::new(u64::from(bits) << 58 | u64::from(bits) << 29 & !63),
                vector: bits.rotate_left(3),
                urgent: flag(1),
                common,
            };
            let entry = posted.encode().unwrap();
            assert_eq!(entry.decode(), Ok(Some(Target::Posted(posted))));
            for delivery in deliveries.clone() {
                let remapped = Remapped {
                    destination: u32::MAX.rotate_left(bits.into()) ^ u32::from(bits) << 26,
                    vector: bits.rotate_left(3),
                    logical: flag(2),
                    redirection_hint: flag(3),
                    level: flag(4),
                    delivery,
                    common,
                };
                let entry = remapped.encode();
                assert_eq!(entry.decode(), Ok(Some(Target::Remapped(remapped))));
                count += 1;
            }
        }
    }
    assert_eq!(count, 3 * 64 * 6);
}

/// Each bit of either format is reserved, or changes what is decoded; 81:64 count only with a
/// source that is compared.
#[test]
fn every_bit_counts() {
    let posted_reserved: &[core::ops::Range<u32>] = &[2..8, 12..14, 24..38, 84..96];
    let remapped_reserved: &[core::ops::Range<u32>] = &[12..15, 24..32, 84..128];
    let requester = 1 | 1 << 82;
    for (base, reserved) in [(requester | 1 << 15, posted_reserved), (requester, remapped_reserved)]
    {
        let plain = Irte::from_bits(base).decode();
        assert!(plain.is_ok());
        // Not P, IM and SVT.
        for bit in (1..128).filter(|bit| ![15, 82, 83].contains(bit)) {
            let found = Irte::from_bits(base | 1 << bit).decode();
            if reserved.iter().any(|range| range.contains(&bit)) {
                assert_eq!(found, Err(IrteError::Reserved(1 << bit)));
            } else {
                assert_ne!(found, plain, "bit {bit} of {base:#x}");
                assert!(found.is_ok() || (5..8).contains(&bit));
            }
        }
    }
}

#[test]
fn not_present_says_nothing() {
    assert_eq!(Irte::default().decode(), Ok(None));
    assert_eq!(Irte::from_bits(!1).decode(), Ok(None));
}

#[test]
fn reserved_encodings_and_misaligned_descriptors() {
    for mode in [3, 6] {
        let entry = Irte::from_bits(1 | mode << 5);
        assert_eq!(entry.decode(), Err(IrteError::Delivery(mode as u8)));
    }
    assert_eq!(Irte::from_bits(0x8001 | 3 << 82).decode(), Err(IrteError::Source));
    let descriptor = PhysAddr::new(0x20);
    let posted = Posted { descriptor, vector: 0x20, urgent: false, common: Common::default() };
    assert_eq!(posted.encode(), Err(IrteError::Misaligned(descriptor)));
}
