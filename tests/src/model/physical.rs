//! The local APIC of the core itself, as far as virtualization touches it.

use std::collections::BTreeMap;

/// The physical local APIC of one core.
#[derive(Debug, Clone, Default)]
pub struct PhysicalApic {
    /// Whether it is in x2APIC mode; decides how IPI virtualization reads NDST and whether leaked MSR accesses fault.
    pub x2apic: bool,
    /// CR8 of the host, which a guest reads and writes if nothing virtualizes its own.
    pub cr8: u8,
    requested: [u64; 4],
    in_service: [u64; 4],
    eois: u64,
    registers: BTreeMap<u32, u64>,
    leaks: Vec<MsrLeak>,
}

/// A guest's MSR access that reached the processor itself because neither the MSR bitmap nor APIC virtualization
/// caught it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrLeak {
    /// The MSR's number.
    pub msr: u32,
    /// The value, if it was a write.
    pub written: Option<u64>,
}

impl PhysicalApic {
    /// An interrupt arrives.
    pub fn raise(&mut self, vector: u8) {
        self.requested[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    /// The interrupt that the APIC would hand to the core now: the highest requested one, unless an interrupt of the
    /// same or a higher class is in service.
    pub fn pending(&self) -> Option<u8> {
        let vector = highest(&self.requested)?;
        highest(&self.in_service)
            .is_none_or(|serviced| vector >> 4 > serviced >> 4)
            .then_some(vector)
    }

    /// The core acknowledges the pending interrupt: it is no longer requested but in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested[usize::from(vector / 64)] &= !(1 << (vector % 64));
        self.in_service[usize::from(vector / 64)] |= 1 << (vector % 64);
        Some(vector)
    }

    /// A write of 0 to the EOI register.
    pub fn end_of_interrupt(&mut self) {
        self.eois += 1;
        if let Some(vector) = highest(&self.in_service) {
            self.in_service[usize::from(vector / 64)] &= !(1 << (vector % 64));
        }
    }

    /// How often the EOI register was written.
    pub fn eois(&self) -> u64 {
        self.eois
    }

    /// The guest accesses that reached this core.
    pub fn leaks(&self) -> &[MsrLeak] {
        &self.leaks
    }

    /// An x2APIC register of the core itself, as a leaked WRMSR left it.
    pub fn register(&self, msr: u32) -> u64 {
        self.registers.get(&msr).copied().unwrap_or(0)
    }

    /// RDMSR that nothing virtualizes; `None` is #GP.
    pub(super) fn read(&mut self, msr: u32) -> Option<u64> {
        let known = match msr {
            0x800..=0xbff => self.x2apic && readable(msr),
            _ => true,
        };
        known.then(|| {
            self.leaks.push(MsrLeak { msr, written: None });
            self.register(msr)
        })
    }

    /// WRMSR that nothing virtualizes; `None` is #GP.
    pub(super) fn write(&mut self, msr: u32, value: u64) -> Option<()> {
        let known = match msr {
            0x800..=0xbff => self.x2apic && writable(msr),
            _ => true,
        };
        known.then(|| {
            self.leaks.push(MsrLeak { msr, written: Some(value) });
            self.registers.insert(msr, value);
        })
    }
}

fn readable(msr: u32) -> bool {
    matches!(
        msr,
        0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f..=0x828 | 0x82f | 0x830 | 0x832..=0x839 | 0x83e
    )
}

fn writable(msr: u32) -> bool {
    matches!(msr, 0x808 | 0x80b | 0x80f | 0x828 | 0x82f | 0x830 | 0x832..=0x838 | 0x83e | 0x83f)
}

fn highest(vectors: &[u64; 4]) -> Option<u8> {
    (0..4).rev().find_map(|group| {
        let bit = vectors[group].checked_ilog2()?;
        Some((group as u32 * 64 + bit) as u8)
    })
}
