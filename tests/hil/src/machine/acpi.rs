//! The list of CPUs from ACPI: RSDP, then XSDT or RSDT, then MADT (ACPI 6.5, 5.2.5 to 5.2.12).

use core::ptr::with_exposed_provenance;

use super::smp::MAX_CPUS;

/// The local APICs that the firmware calls enabled.
#[derive(Debug)]
pub(crate) struct ApicIds {
    ids: [u32; MAX_CPUS],
    count: usize,
}

impl ApicIds {
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids[..self.count].iter().copied()
    }

    fn add(&mut self, id: u32) {
        if self.count < MAX_CPUS && !self.ids[..self.count].contains(&id) {
            self.ids[self.count] = id;
            self.count += 1;
        }
    }
}

/// Reads the list, from the root pointer the loader gave or else the one in the BIOS area; `None` without ACPI.
pub(crate) fn apic_ids(root: Option<u64>) -> Option<ApicIds> {
    let madt = find_table(root.or_else(scan_bios)?, *b"APIC")?;
    let mut list = ApicIds { ids: [0; MAX_CPUS], count: 0 };
    let mut address = madt + 44;
    let end = madt + u64::from(read_u32(madt + 4));
    while address + 2 <= end {
        let (kind, length) = (read_u8(address), u64::from(read_u8(address + 1)));
        match kind {
            // Processor local APIC, and the same with a 32-bit ID; flags bit 0 is "enabled".
            0 if read_u32(address + 4) & 1 != 0 => list.add(u32::from(read_u8(address + 3))),
            9 if read_u32(address + 8) & 1 != 0 => list.add(read_u32(address + 4)),
            _ => {}
        }
        address += length.max(2);
    }
    (list.count > 0).then_some(list)
}

/// Looks for the root pointer in the first KiB of the extended BIOS data area, then in the BIOS area.
fn scan_bios() -> Option<u64> {
    let extended = u64::from(read_u16(0x40e)) << 4;
    let is_root = |&address: &u64| {
        (0..8).all(|index| read_u8(address + index) == b"RSD PTR "[index as usize])
            && (0..20).fold(0u8, |sum, index| sum.wrapping_add(read_u8(address + index))) == 0
    };
    let low = (extended >= 0x8_0000).then(|| (extended..extended + 0x400).step_by(16));
    low.into_iter().flatten().chain((0xe_0000..0x10_0000).step_by(16)).find(is_root)
}

fn find_table(root: u64, signature: [u8; 4]) -> Option<u64> {
    let (table, width) = match (read_u8(root + 15), read_u64(root + 24)) {
        (2.., extended) if extended != 0 => (extended, 8),
        _ => (u64::from(read_u32(root + 16)), 4),
    };
    let entries = u64::from(read_u32(table + 4)).saturating_sub(36) / width;
    (0..entries)
        .map(|index| table + 36 + index * width)
        .map(|entry| if width == 8 { read_u64(entry) } else { u64::from(read_u32(entry)) })
        .find(|&address| read_u32(address) == u32::from_le_bytes(signature))
}

fn read_u8(address: u64) -> u8 {
    // SAFETY: only called for addresses in firmware tables, which are identity mapped memory.
    unsafe { with_exposed_provenance::<u8>(address as usize).read_volatile() }
}

fn read_u16(address: u64) -> u16 {
    u16::from_le_bytes([read_u8(address), read_u8(address + 1)])
}

fn read_u32(address: u64) -> u32 {
    u32::from(read_u16(address + 2)) << 16 | u32::from(read_u16(address))
}

fn read_u64(address: u64) -> u64 {
    u64::from(read_u32(address + 4)) << 32 | u64::from(read_u32(address))
}
