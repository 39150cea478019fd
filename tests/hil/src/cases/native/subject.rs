//! What this machine's APIC is: its model, by its own registers and CPUID.

use vlapic_core::{Mode, Profile, Vendor};

use super::operation::SVR;
use super::physical::Physical;
use crate::machine::identity::{self, Machine};
use crate::machine::smp;

/// The subject of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    pub(super) machine: Machine,
    pub(super) mode: Mode,
    pub(super) profile: Profile,
    /// The APIC ID.
    pub(super) id: u32,
    /// There are other CPUs.
    pub(super) others: bool,
}

const ID: u16 = 0x20;
const VERSION: u16 = 0x30;

impl Subject {
    /// Asks the machine. In xAPIC mode this tries bits of ID and SVR, and puts the registers back.
    pub(super) fn find(physical: &Physical) -> Self {
        let mode = physical.mode();
        let version = physical.read(VERSION).unwrap_or(0) as u32;
        let cpuid = identity::cpuid();
        let amd = cpuid.get_vendor_info().is_some_and(|vendor| vendor.as_str() == "AuthenticAMD");
        let features = cpuid.get_feature_info();
        let feature = |has: fn(&raw_cpuid::FeatureInfo) -> bool| features.as_ref().is_some_and(has);
        let bits = cpuid.get_processor_capacity_feature_info();
        let bits = bits.map_or(36, |info| info.physical_address_bits());
        let mut profile = if amd { Profile::amd() } else { Profile::intel() }
            .with_cmci(version >> 16 & 0xff >= 6)
            .with_eoi_suppression(version & 1 << 24 != 0)
            .with_extended_space(version & 1 << 31 != 0)
            .with_tsc_deadline(feature(raw_cpuid::FeatureInfo::has_tsc_deadline))
            .with_x2apic(feature(raw_cpuid::FeatureInfo::has_x2apic))
            .with_physical_address_bits(bits)
            .with_focus_check(false);
        let id = match mode {
            Mode::X2Apic => physical.read(ID).unwrap_or(0) as u32,
            _ => physical.read(ID).unwrap_or(0) as u32 >> 24,
        };
        if mode == Mode::XApic {
            profile = profile
                .with_writable_xapic_id(takes(physical, ID, 0x4000_0000))
                .with_focus_check(takes(physical, SVR, 0x200));
        }
        let machine = identity::machine();
        let others = smp::cpu_count() > 1;
        Self { machine, mode, profile, id, others }
    }

    /// The field of ICR that holds this APIC's ID.
    pub(super) fn own_destination(&self) -> u32 {
        self.wide(self.id)
    }

    /// The field of ICR that holds `id`.
    pub(super) const fn wide(&self, id: u32) -> u32 {
        match self.mode {
            Mode::X2Apic => id,
            _ => id << 24,
        }
    }

    pub(super) fn amd(&self) -> bool {
        self.profile.vendor() == Vendor::Amd
    }
}

/// Whether a bit of a register can be changed.
fn takes(physical: &Physical, offset: u16, bit: u64) -> bool {
    let before = physical.read(offset).unwrap_or(0);
    physical.write(offset, before ^ bit);
    let changed = physical.read(offset).unwrap_or(0) ^ before == bit;
    physical.write(offset, before);
    changed
}
