//! What is done to both sides.

/// One operation on one vCPU, or on the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// WRMSR: an x2APIC register, IA32_APIC_BASE, IA32_TSC_DEADLINE.
    WriteMsr {
        /// The vCPU.
        vcpu: usize,
        /// Its number.
        msr: u32,
        /// The value.
        value: u64,
        /// By the guest's instruction; else by ioctl, which for IA32_APIC_BASE obeys other rules.
        in_guest: bool,
    },
    /// RDMSR of one of these.
    ReadMsr {
        /// The vCPU.
        vcpu: usize,
        /// Its number.
        msr: u32,
        /// By the guest's instruction.
        in_guest: bool,
    },
    /// A guest's store to memory where an APIC may be.
    Store {
        /// The vCPU.
        vcpu: usize,
        /// The physical address.
        address: u32,
        /// How much of `value`.
        size: Size,
        /// The value.
        value: u32,
    },
    /// A guest's load from there.
    Load {
        /// The vCPU.
        vcpu: usize,
        /// The physical address.
        address: u32,
        /// How much.
        size: Size,
    },
    /// MOV to CR8.
    WriteCr8 {
        /// The vCPU.
        vcpu: usize,
        /// 0 to 15.
        value: u8,
    },
    /// A device's message.
    Msi {
        /// Low half of the address.
        address: u32,
        /// The data.
        data: u32,
    },
    /// The vCPU takes its highest deliverable interrupt.
    Take {
        /// The vCPU.
        vcpu: usize,
    },
    /// IRR, ISR, TMR and TPR are replaced by others, as after a migration.
    Restore {
        /// The vCPU.
        vcpu: usize,
        /// Where the contents come from.
        seed: u64,
    },
    /// The timer is programmed, expires or not, and is stopped again.
    Timer {
        /// The vCPU.
        vcpu: usize,
        /// LVT bits 18:17: one-shot, periodic, TSC deadline.
        mode: u8,
        /// LVT bits 7:0.
        vector: u8,
        /// LVT bit 16.
        masked: bool,
        /// The divide configuration.
        divide: u8,
        /// It is to expire; else it is far from it.
        expires: bool,
    },
}

/// How many bytes a guest's access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1
    Byte,
    /// 2
    Word,
    /// 4
    Dword,
}

impl Operation {
    /// The vCPU that does it; none for an MSI.
    #[must_use]
    pub const fn vcpu(&self) -> Option<usize> {
        match *self {
            Self::WriteMsr { vcpu, .. }
            | Self::ReadMsr { vcpu, .. }
            | Self::Store { vcpu, .. }
            | Self::Load { vcpu, .. }
            | Self::WriteCr8 { vcpu, .. }
            | Self::Take { vcpu }
            | Self::Restore { vcpu, .. }
            | Self::Timer { vcpu, .. } => Some(vcpu),
            Self::Msi { .. } => None,
        }
    }
}
