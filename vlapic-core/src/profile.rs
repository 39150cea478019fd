//! What kind of local APIC a vCPU has: the differences between vendors and models.

/// Whose manual the APIC follows where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel SDM Vol. 3A chapter 10.
    Intel,
    /// AMD APM Vol. 2 chapter 16.
    Amd,
}

/// How many ticks of guest TSC and of the APIC timer's base clock take the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockRatio {
    /// TSC ticks; at least 1.
    pub tsc: u32,
    /// Base-clock ticks before the divider; at least 1.
    pub bus: u32,
}

/// The model of local APIC that a guest sees, fixed when the vCPU is made.
///
/// It holds no state: nothing the page or IA32_APIC_BASE says stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    vendor: Vendor,
    cmci: bool,
    eoi_suppression: bool,
    tsc_deadline: bool,
    x2apic: bool,
    xapic_id_writable: bool,
    focus_check: bool,
    extended_space: bool,
    physical_address_bits: u8,
    version_number: u8,
    clock: ClockRatio,
}

impl Profile {
    /// A recent Intel APIC: x2APIC, TSC-deadline, EOI-broadcast suppression, 7 LVT entries with
    /// CMCI, read-only APIC ID, no focus checking, 46 physical address bits, base clock = TSC.
    #[must_use]
    pub const fn intel() -> Self {
        Self {
            vendor: Vendor::Intel,
            cmci: true,
            eoi_suppression: true,
            tsc_deadline: true,
            x2apic: true,
            xapic_id_writable: false,
            focus_check: false,
            extended_space: false,
            physical_address_bits: 46,
            version_number: 0x15,
            clock: ClockRatio { tsc: 1, bus: 1 },
        }
    }

    /// A recent AMD APIC: x2APIC, TSC-deadline, no EOI-broadcast suppression, 6 LVT entries, the
    /// extended space at 400, focus-check bit, 48 physical address bits, base clock = TSC.
    #[must_use]
    pub const fn amd() -> Self {
        Self {
            vendor: Vendor::Amd,
            cmci: false,
            eoi_suppression: false,
            focus_check: true,
            extended_space: true,
            physical_address_bits: 48,
            version_number: 0x10,
            ..Self::intel()
        }
    }

    /// With or without the CMCI entry (version register: 7 or 6 LVT entries).
    #[must_use]
    pub const fn with_cmci(self, cmci: bool) -> Self {
        Self { cmci, ..self }
    }

    /// With or without SVR bit 12 and version bit 24. Intel only; AMD's version register has no
    /// such bit, so the call changes nothing there.
    #[must_use]
    pub const fn with_eoi_suppression(self, wanted: bool) -> Self {
        let eoi_suppression = wanted && matches!(self.vendor, Vendor::Intel);
        Self { eoi_suppression, ..self }
    }

    /// With or without the TSC-deadline timer (CPUID.1:ECX bit 24).
    #[must_use]
    pub const fn with_tsc_deadline(self, tsc_deadline: bool) -> Self {
        Self { tsc_deadline, ..self }
    }

    /// With or without x2APIC mode (CPUID.1:ECX bit 21).
    #[must_use]
    pub const fn with_x2apic(self, x2apic: bool) -> Self {
        Self { x2apic, ..self }
    }

    /// With an APIC ID that software may rewrite in xAPIC mode, as some older parts had. A
    /// rewritten ID is lost on the way to x2APIC mode (Intel; AMD's APM Vol. 2 16.9.1 would make it
    /// the x2APIC ID, which here is fixed).
    ///
    /// Routing then cannot know who has which ID and looks at every vCPU.
    #[must_use]
    pub const fn with_writable_xapic_id(self, xapic_id_writable: bool) -> Self {
        Self { xapic_id_writable, ..self }
    }

    /// With or without SVR bit 9.
    #[must_use]
    pub const fn with_focus_check(self, focus_check: bool) -> Self {
        Self { focus_check, ..self }
    }

    /// With or without AMD's registers at 400 to 530. The call changes nothing on Intel.
    #[must_use]
    pub const fn with_extended_space(self, wanted: bool) -> Self {
        let extended_space = wanted && matches!(self.vendor, Vendor::Amd);
        Self { extended_space, ..self }
    }

    /// With `bits` physical address bits (MAXPHYADDR), held to 36..=52.
    #[must_use]
    pub const fn with_physical_address_bits(self, bits: u8) -> Self {
        let physical_address_bits = if bits < 36 {
            36
        } else if bits > 52 {
            52
        } else {
            bits
        };
        Self { physical_address_bits, ..self }
    }

    /// With `number` in bits 7:0 of the version register: 15 unless changed, AMD 10 (hexadecimal;
    /// KVM and Xen show 14). Held to the integrated APICs' 10 to 1F.
    #[must_use]
    pub const fn with_version_number(self, number: u8) -> Self {
        Self { version_number: 0x10 | number & 0xF, ..self }
    }

    /// With the timer's base clock running at `clock.bus / clock.tsc` of the guest's TSC. A zero
    /// in the ratio counts as one.
    #[must_use]
    pub const fn with_timer_clock(self, clock: ClockRatio) -> Self {
        let tsc = if clock.tsc == 0 { 1 } else { clock.tsc };
        let bus = if clock.bus == 0 { 1 } else { clock.bus };
        Self { clock: ClockRatio { tsc, bus }, ..self }
    }

    /// Whose rules apply.
    #[inline]
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether the LVT has a CMCI entry.
    #[inline]
    #[must_use]
    pub const fn cmci(&self) -> bool {
        self.cmci
    }

    /// Whether SVR bit 12 exists.
    #[inline]
    #[must_use]
    pub const fn eoi_suppression(&self) -> bool {
        self.eoi_suppression
    }

    /// Whether LVT timer bit 18 and IA32_TSC_DEADLINE exist.
    #[inline]
    #[must_use]
    pub const fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// Whether x2APIC mode exists.
    #[inline]
    #[must_use]
    pub const fn x2apic(&self) -> bool {
        self.x2apic
    }

    /// Whether the xAPIC ID register takes writes.
    #[inline]
    #[must_use]
    pub const fn xapic_id_writable(&self) -> bool {
        self.xapic_id_writable
    }

    /// Whether SVR bit 9 exists.
    #[inline]
    #[must_use]
    pub const fn focus_check(&self) -> bool {
        self.focus_check
    }

    /// Whether AMD's extended space exists.
    #[inline]
    #[must_use]
    pub const fn extended_space(&self) -> bool {
        self.extended_space
    }

    /// MAXPHYADDR.
    #[inline]
    #[must_use]
    pub const fn physical_address_bits(&self) -> u8 {
        self.physical_address_bits
    }

    /// Whether APICs of both profiles can be routed to by one rule.
    pub(crate) const fn routes_as(&self, other: &Self) -> bool {
        self.xapic_id_writable == other.xapic_id_writable
            && matches!(self.vendor, Vendor::Intel) == matches!(other.vendor, Vendor::Intel)
    }

    /// The speed of the timer's base clock.
    #[inline]
    #[must_use]
    pub const fn timer_clock(&self) -> ClockRatio {
        self.clock
    }

    /// The version register (SDM Vol. 3A 10.4.8; APM Vol. 2 16.3.4).
    #[must_use]
    pub const fn version(&self) -> u32 {
        let entries_less_one = if self.cmci { 6 } else { 5 };
        self.version_number as u32
            | entries_less_one << 16
            | (self.eoi_suppression as u32) << 24
            | (self.extended_space as u32) << 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_register() {
        assert_eq!(Profile::intel().version(), 0x0106_0015);
        assert_eq!(
            Profile::intel().with_cmci(false).with_eoi_suppression(false).version(),
            0x0005_0015
        );
        assert_eq!(Profile::amd().version(), 0x8005_0010);
        assert_eq!(Profile::amd().with_eoi_suppression(true).version(), 0x8005_0010);
        assert_eq!(Profile::intel().with_version_number(0x14).version(), 0x0106_0014);
    }

    #[test]
    fn nonsense_is_held_to_the_sane() {
        let profile = Profile::intel()
            .with_physical_address_bits(80)
            .with_timer_clock(ClockRatio { tsc: 0, bus: 0 });
        assert_eq!(profile.physical_address_bits(), 52);
        assert_eq!(profile.timer_clock(), ClockRatio { tsc: 1, bus: 1 });
    }
}
