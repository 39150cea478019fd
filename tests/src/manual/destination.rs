//! Logical destinations: SDM Vol. 3A 10.6.2.2 and 10.12.10; APM Vol. 2 16.6.1 and 16.14.

/// DFR's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// DFR FFFFFFFF.
    Flat,
    /// DFR 0FFFFFFF.
    Cluster,
}

/// Whether an 8-bit destination means an APIC with this LDR (bits 31:24).
#[must_use]
pub fn narrow(model: Model, destination: u8, ldr: u8) -> bool {
    let bit = |word: u8, bit: u8| word >> bit & 1 == 1;
    if destination == 0xFF {
        return true;
    }
    match model {
        Model::Flat => (0..8).any(|at| bit(destination, at) && bit(ldr, at)),
        Model::Cluster => {
            (4..8).all(|at| bit(destination, at) == bit(ldr, at))
                && (0..4).any(|at| bit(destination, at) && bit(ldr, at))
        }
    }
}

/// Whether a 32-bit destination means the APIC with this x2APIC ID.
#[must_use]
pub const fn wide(destination: u32, id: u32) -> bool {
    let (cluster, members) = (destination / 0x1_0000, destination % 0x1_0000);
    destination == u32::MAX || cluster == id / 16 && members >> (id % 16) & 1 == 1
}
