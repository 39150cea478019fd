//! Our own format, version 1. Its layout stands at [`STATE_LENGTH`](super::STATE_LENGTH).

use super::bytes::{crc32, store, u16_at, u32_at, u64_at};
use super::correction::{Correction, Corrections};
use super::error::ImportError;
use super::image::{Image, Registers, Source};
use crate::base::ApicBase;
use crate::inbox::Inbox;
use crate::latches::Latches;
use crate::local::LocalApic;
use crate::lvt::TimerMode;
use crate::profile::{ClockRatio, Profile, Vendor};
use crate::register::Register;
use crate::timer::{Phase, Settings, Timer};
use crate::vector::Vector;

pub(super) const LENGTH: usize = WORDS + 4 * Register::SLOTS as usize;
static_assertions::const_assert_eq!(LENGTH, 432);

const MAGIC: [u8; 8] = *b"vLAPICst";
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const LENGTH_AT: usize = 10;
const CRC: usize = 12;
const ID: usize = 16;
const FEATURES: usize = 20;
const CLOCK_TSC: usize = 24;
const CLOCK_BUS: usize = 28;
const BASE: usize = 32;
const EXPORTED_AT: usize = 40;
const ORIGIN: usize = 48;
const COUNT: usize = 56;
const SHIFT: usize = 60;
const UPCALL: usize = 61;
const OWED: usize = 62;
const ZERO: usize = 63;
const DEADLINE: usize = 64;
const LATCHES: usize = 72;
const ERRORS: usize = 76;
const ZEROES: usize = 80;
const WORDS: usize = 96;

const AMD: u32 = 1 << 0;
const CMCI: u32 = 1 << 1;
const EOI_SUPPRESSION: u32 = 1 << 2;
const TSC_DEADLINE: u32 = 1 << 3;
const X2APIC: u32 = 1 << 4;
const WRITABLE_ID: u32 = 1 << 5;
const FOCUS_CHECK: u32 = 1 << 6;
const EXTENDED_SPACE: u32 = 1 << 7;

impl<I: Inbox> LocalApic<'_, I> {
    /// The whole state at `now` (guest TSC) in our own format,
    /// [`STATE_LENGTH`](crate::state::STATE_LENGTH): see [`state`](crate::state) for when to call it.
    pub fn export_state(&mut self, now: u64, into: &mut [u8; LENGTH]) {
        let image = self.capture(now);
        let clock = self.slot.profile().timer_clock();
        *into = [0; LENGTH];
        store(into, 0, &MAGIC);
        store(into, VERSION_AT, &VERSION.to_le_bytes());
        store(into, LENGTH_AT, &(LENGTH as u16).to_le_bytes());
        store(into, ID, &self.slot.x2apic_id().to_le_bytes());
        store(into, FEATURES, &features(self.slot.profile()).to_le_bytes());
        store(into, CLOCK_TSC, &clock.tsc.to_le_bytes());
        store(into, CLOCK_BUS, &clock.bus.to_le_bytes());
        store(into, BASE, &image.base.bits().to_le_bytes());
        // Where time has run backwards, the count was last looked at in the future.
        store(into, EXPORTED_AT, &now.max(image.phase.origin).to_le_bytes());
        if image.phase.count != 0 {
            store(into, ORIGIN, &image.phase.origin.to_le_bytes());
            store(into, COUNT, &image.phase.count.to_le_bytes());
            store(into, SHIFT, &[image.phase.shift]);
        }
        store(into, UPCALL, &[image.upcall.map_or(0, Vector::get), u8::from(image.upcall_owed)]);
        store(into, DEADLINE, &image.deadline.to_le_bytes());
        store(into, LATCHES, &image.latches.to_le_bytes());
        store(into, ERRORS, &image.errors.to_le_bytes());
        for (slot, word) in image.registers.0.iter().enumerate() {
            store(into, WORDS + 4 * slot, &word.to_le_bytes());
        }
        let crc = checksum(into);
        store(into, CRC, &crc.to_le_bytes());
    }

    /// Becomes what [`export_state`](Self::export_state) wrote, at `now` (guest TSC): see
    /// [`state`](crate::state) for when to call it and what has to follow.
    ///
    /// A count that runs goes on to the tick, also over the time between export and import.
    ///
    /// # Errors
    /// [`ImportError`]; nothing has changed.
    pub fn import_state(&mut self, now: u64, from: &[u8]) -> Result<Corrections, ImportError> {
        let from: &[u8; LENGTH] = match (from.first_chunk(), from.try_into()) {
            (Some(&MAGIC), _) if u16_at(from, VERSION_AT) != VERSION => {
                return Err(ImportError::Version(u16_at(from, VERSION_AT)));
            }
            (Some(&MAGIC), Ok(from)) => from,
            (Some(&MAGIC), Err(_)) => return Err(ImportError::Length(from.len())),
            _ => return Err(ImportError::NotOurs),
        };
        let profile = *self.slot.profile();
        let mut image = read(from, &profile, self.slot.x2apic_id())?;
        let mut corrections = image.correct(&profile, self.slot.x2apic_id());
        let (exported_at, clock) = (u64_at(from, EXPORTED_AT), clock(from)?);
        if image.phase.count != 0 && (now < exported_at || clock != profile.timer_clock()) {
            corrections.insert(Correction::Phase);
            image.restart_count(exported_at, clock, now);
        }
        self.install(&image);
        Ok(corrections)
    }
}

fn read(from: &[u8; LENGTH], profile: &Profile, id: u32) -> Result<Image, ImportError> {
    if usize::from(u16_at(from, LENGTH_AT)) != LENGTH {
        return Err(ImportError::Field(LENGTH_AT as u16));
    }
    if u32_at(from, CRC) != checksum(from) {
        return Err(ImportError::Checksum);
    }
    let found = u32_at(from, ID);
    if found != id {
        return Err(ImportError::ApicId { found, expected: id });
    }
    let had = u32_at(from, FEATURES);
    if had & AMD != features(profile) & AMD {
        return Err(ImportError::Vendor);
    }
    let mut image = fields(from)?;
    let source = Source {
        tsc_deadline: had & TSC_DEADLINE != 0,
        cmci: had & CMCI != 0,
        eoi_suppression: had & EOI_SUPPRESSION != 0,
        writable_id: had & WRITABLE_ID != 0 && image.registers.get(Register::Id) != id << 24,
        extended_space: had & EXTENDED_SPACE != 0,
    };
    image.check(source, profile)?;
    image.fill(source, profile);
    Ok(image)
}

/// The fields, each one that export can have written.
fn fields(from: &[u8; LENGTH]) -> Result<Image, ImportError> {
    let byte = |at: usize| from.get(at).copied().unwrap_or(0);
    let phase =
        Phase { origin: u64_at(from, ORIGIN), count: u32_at(from, COUNT), shift: byte(SHIFT) };
    let upcall = Vector::new(byte(UPCALL));
    let latches = u32_at(from, LATCHES);
    let idle = phase.count != 0 || phase == Phase::default();
    let mut registers = Registers::new();
    for (slot, word) in registers.0.iter_mut().enumerate() {
        *word = u32_at(from, WORDS + 4 * slot);
    }
    let fields = [
        (FEATURES, u32_at(from, FEATURES) < EXTENDED_SPACE << 1),
        (ORIGIN, idle && phase.origin <= u64_at(from, EXPORTED_AT)),
        (SHIFT, phase.shift < 8),
        (UPCALL, upcall.is_some() || byte(UPCALL) == 0),
        (OWED, byte(OWED) < 2),
        (ZERO, byte(ZERO) == 0),
        (LATCHES, Latches::are_possible(latches)),
        (ERRORS, u32_at(from, ERRORS) <= 0xFF),
        (ZEROES, from.iter().take(WORDS).skip(ZEROES).all(|&byte| byte == 0)),
    ];
    if let Some((at, _)) = fields.into_iter().find(|&(_, possible)| !possible) {
        return Err(ImportError::Field(at as u16));
    }
    if registers.illegal_vectors() {
        return Err(ImportError::IllegalVector);
    }
    clock(from)?;
    Ok(Image {
        base: ApicBase::from_bits(u64_at(from, BASE)),
        registers,
        phase,
        deadline: u64_at(from, DEADLINE),
        latches,
        errors: u32_at(from, ERRORS),
        upcall,
        upcall_owed: byte(OWED) != 0,
    })
}

fn clock(from: &[u8; LENGTH]) -> Result<ClockRatio, ImportError> {
    let clock = ClockRatio { tsc: u32_at(from, CLOCK_TSC), bus: u32_at(from, CLOCK_BUS) };
    if clock.tsc == 0 || clock.bus == 0 {
        return Err(ImportError::Field(CLOCK_TSC as u16));
    }
    Ok(clock)
}

impl Image {
    /// The count goes on at `now` from where it stood at `then`, by the clock it ran by.
    fn restart_count(&mut self, then: u64, clock: ClockRatio, now: u64) {
        let mode = match self.registers.timer_mode() {
            TimerMode::Periodic => TimerMode::Periodic,
            _ => TimerMode::OneShot,
        };
        let initial_count = self.registers.get(Register::InitialCount);
        let settings = Settings { mode, initial_count, shift: self.phase.shift, clock };
        let left = Timer::from_parts(self.phase, 0, clock).current_count(then, settings);
        // One that had just expired is due.
        self.phase = Phase { origin: then.min(now), count: left.max(1), shift: self.phase.shift };
    }
}

fn features(profile: &Profile) -> u32 {
    let bit = |has: bool, bit: u32| if has { bit } else { 0 };
    bit(matches!(profile.vendor(), Vendor::Amd), AMD)
        | bit(profile.cmci(), CMCI)
        | bit(profile.eoi_suppression(), EOI_SUPPRESSION)
        | bit(profile.tsc_deadline(), TSC_DEADLINE)
        | bit(profile.x2apic(), X2APIC)
        | bit(profile.xapic_id_writable(), WRITABLE_ID)
        | bit(profile.focus_check(), FOCUS_CHECK)
        | bit(profile.extended_space(), EXTENDED_SPACE)
}

fn checksum(bytes: &[u8; LENGTH]) -> u32 {
    let (before, rest) = bytes.split_at(CRC);
    crc32(&[before, rest.get(4..).unwrap_or(&[])])
}
