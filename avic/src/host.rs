//! What the hypervisor knows of its host.

/// What the host is like, as its hypervisor knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The guest runs with nested paging.
    pub nested_paging: bool,
    /// SEV-SNP is on in the host.
    pub snp: bool,
    /// The hypervisor can write the doorbell MSR.
    pub doorbell: bool,
    /// What may be relied on although the manual leaves it open.
    pub trust: Trust,
}

impl Host {
    /// Nested paging, no SEV-SNP, a doorbell, and nothing trusted but the manual.
    #[must_use]
    pub const fn new() -> Self {
        Self { nested_paging: true, snp: false, doorbell: true, trust: Trust::NOTHING }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the manual is silent or at odds with practice, what the integrator vouches for. Without it
/// the driver does what is right under every reading, at a price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Doorbells take 12 bits of APIC ID, as Linux has it, not 8 as the manual. Otherwise a vCPU on
    /// a CPU with an ID above 255 is told by an exit, and IPIs to it exit at the sender.
    pub wide_doorbell: bool,
    /// In x2AVIC entry 255 of the physical table is an entry like any other. Otherwise x2AVIC is
    /// off for a VM that has a vCPU with APIC ID 255.
    pub entry_255: bool,
}

impl Trust {
    /// Nothing.
    pub const NOTHING: Self = Self { wide_doorbell: false, entry_255: false };

    /// The highest host APIC ID that doorbell and physical table are used for.
    #[must_use]
    pub const fn highest_host_id(&self) -> u32 {
        if self.wide_doorbell { 0xFFF } else { 0xFF }
    }
}
