//! States that somebody made up, in each format.

use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::state::{
    Correction, Corrections, ImportError, KvmBeside, KvmIds, Latched, OneShot, Outside,
    REGISTERS_LENGTH, STATE_LENGTH, XenLapic, XenRecords,
};
use vlapic_core::{DirectInbox, LocalApic};

use super::plain::{Memory, Op, apply, is_sound, profile};

/// A format, then the bytes of a state. It is refused by name and nothing has changed, or it is an APIC: sound, the
/// same once more through the same format, and it stands whatever is done to it.
pub fn import(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

type Apic<'s> = LocalApic<'s, DirectInbox>;
type Imported = core::result::Result<Corrections, ImportError>;

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let profile = profile(bytes)?;
    let memory = Memory::<1>::new();
    let slots = memory.slots([5], profile);
    let mut apic = LocalApic::new(&slots[0], true);
    apic.bind_upcall(&memory.pending[0]);
    let mut now = u64::from(u32::arbitrary(bytes)?);
    let choice = u8::arbitrary(bytes)?;
    let before = exported(&mut apic, now);
    let result = match choice & 3 {
        0 => native(&mut apic, now, choice, bytes)?,
        1 => kvm(&mut apic, now, choice, bytes)?,
        _ => xen(&mut apic, now, choice, bytes)?,
    };
    if result.is_err() {
        assert_eq!(exported(&mut apic, now), before, "an error that changed something");
        return Ok(());
    }
    is_sound(&mut apic, now);
    let Ok(vm) = vlapic_core::Vm::new(&slots) else { unreachable!("one slot is a VM") };
    for _ in 0..32 {
        if bytes.is_empty() {
            break;
        }
        let op = Op::take(bytes)?;
        apply(&vm, &mut apic, 0, &memory.pending[0], &mut now, op, &mut |_, _| {});
    }
    is_sound(&mut apic, now);
    Ok(())
}

fn exported(apic: &mut Apic<'_>, now: u64) -> [u8; STATE_LENGTH] {
    let mut state = [0; STATE_LENGTH];
    apic.export_state(now, &mut state);
    state
}

/// Ours: a real state with stretches replaced, its checksum put right or not.
fn native(
    apic: &mut Apic<'_>,
    now: u64,
    choice: u8,
    bytes: &mut Unstructured<'_>,
) -> Result<Imported> {
    let mut state = exported(apic, now).to_vec();
    if choice & 4 != 0 {
        let length = usize::from(u16::arbitrary(bytes)?);
        state = bytes.bytes(length.min(bytes.len()))?.to_vec();
    } else {
        patch(&mut state, bytes)?;
        seal(&mut state);
    }
    Ok(apic.import_state(now, &state))
}

fn kvm(
    apic: &mut Apic<'_>,
    now: u64,
    choice: u8,
    bytes: &mut Unstructured<'_>,
) -> Result<Imported> {
    let ids = if choice & 4 == 0 { KvmIds::Narrow } else { KvmIds::Wide };
    let mut registers = [0; REGISTERS_LENGTH];
    let real = apic.export_kvm(ids, now, &mut registers);
    patch(&mut registers, bytes)?;
    let beside = KvmBeside {
        apic_base: base(real.apic_base, choice, bytes)?,
        tsc_deadline: u64::arbitrary(bytes)?,
        outside: outside(bytes)?,
    };
    let length = if choice & 0x40 == 0 { REGISTERS_LENGTH } else { 1000 };
    let result = apic.import_kvm(ids, now, registers.get(..length).unwrap_or(&[]), &beside);
    if result.is_ok() {
        let beside = apic.export_kvm(ids, now, &mut registers);
        again(apic.import_kvm(ids, now, &registers, &beside));
    }
    Ok(result)
}

fn xen(
    apic: &mut Apic<'_>,
    now: u64,
    choice: u8,
    bytes: &mut Unstructured<'_>,
) -> Result<Imported> {
    let outside = outside(bytes)?;
    if choice & 4 != 0 {
        // A whole stream.
        let instance = u16::from(choice >> 3);
        let rest = bytes.bytes(bytes.len())?;
        return Ok(XenRecords::find(rest, instance)
            .and_then(|records| apic.import_xen(now, &records, &outside)));
    }
    let mut registers = [0; REGISTERS_LENGTH];
    let (mut lapic, _) = apic.export_xen(now, &mut registers);
    patch(&mut registers, bytes)?;
    lapic.apic_base = base(lapic.apic_base, choice, bytes)?;
    lapic.tsc_deadline = u64::arbitrary(bytes)?;
    lapic.disabled = u32::arbitrary(bytes)?;
    lapic.timer_divisor = u32::arbitrary(bytes)?;
    lapic.pending_errors = u32::arbitrary(bytes)?;
    let length = [16, XenLapic::OLD_LENGTH, XenLapic::LENGTH, 7][usize::from(choice >> 6)];
    let lapic = lapic.to_bytes();
    let records = XenRecords { lapic: lapic.get(..length).unwrap_or(&[]), registers: &registers };
    let result = apic.import_xen(now, &records, &outside);
    if result.is_ok() {
        let (lapic, outside) = apic.export_xen(now, &mut registers);
        let lapic = lapic.to_bytes();
        let records = XenRecords { lapic: &lapic, registers: &registers };
        again(apic.import_xen(now, &records, &outside));
    }
    Ok(result)
}

/// What we wrote ourselves has nothing in it to put right.
fn again(result: Imported) {
    let found: Vec<_> = result.map(|found| found.iter().collect()).unwrap_or_default();
    let none = found.iter().all(|&one| one == Correction::ClassInServiceTwice);
    assert!(result.is_ok() && none, "{result:?}");
}

fn base(real: u64, choice: u8, bytes: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match choice >> 3 & 7 {
        0 | 1 => real,
        2 | 3 => real | 0xc00,
        4 => real & !0x800,
        _ => u64::arbitrary(bytes)?,
    })
}

fn outside(bytes: &mut Unstructured<'_>) -> Result<Outside> {
    let bits = u8::arbitrary(bytes)?;
    let bit = |number: u8| bits & 1 << number != 0;
    Ok(Outside {
        latched: Latched {
            init: bit(0),
            startup: bit(1).then_some(bits),
            nmi: bit(2),
            smi: bit(3),
            extint: bit(4),
            waits: bit(5),
        },
        upcall_vector: if bit(6) { Some(u8::arbitrary(bytes)?) } else { None },
        one_shot: if bit(7) { OneShot::Running } else { OneShot::Unknown },
    })
}

/// Words replaced at as many places as the bytes say.
fn patch(state: &mut [u8], bytes: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..u8::arbitrary(bytes)? & 31 {
        let at = usize::from(u8::arbitrary(bytes)?) * 4;
        let word = u32::arbitrary(bytes)?.to_le_bytes();
        for (place, byte) in state.iter_mut().skip(at).zip(word) {
            *place = byte;
        }
    }
    Ok(())
}

/// Puts the checksum right: CRC-32 of all but itself, at offset 12.
fn seal(state: &mut [u8]) {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    let crc = !state[..12].iter().chain(&state[16..]).fold(!0, step);
    state[12..16].copy_from_slice(&crc.to_le_bytes());
}
