//! How much hardware help a VM asks for.

use apicv::Wanted;

/// How much help a VM has, from least to most: nothing but nested paging, or a level of VT-x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Plain emulation, on SVM: each access to the register window is a nested page fault, each MSR and CR8 access exits.
    Emulated,
    /// Nothing but the TPR shadow: each access to the register window is an EPT violation, each MSR access exits.
    TprShadow,
    /// Virtualized APIC accesses: TPR is in the page, the rest are APIC-access exits.
    ApicAccess,
    /// Register virtualization: reads come from the page, writes exit after the store.
    RegisterVirtualization,
    /// Virtual-interrupt delivery without posted interrupts.
    VirtualInterruptDelivery,
    /// Posted interrupts as well.
    Posted,
}

impl Level {
    /// Those of VT-x.
    pub(crate) const ALL: [Self; 5] = [
        Self::TprShadow,
        Self::ApicAccess,
        Self::RegisterVirtualization,
        Self::VirtualInterruptDelivery,
        Self::Posted,
    ];

    /// As in the records on the serial line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::TprShadow => "tpr-shadow",
            Self::ApicAccess => "apic-access",
            Self::RegisterVirtualization => "register-virt",
            Self::VirtualInterruptDelivery => "vid",
            Self::Posted => "posted",
        }
    }

    /// What the driver of VT-x is asked for.
    pub(crate) const fn wanted(self) -> Wanted {
        match self {
            Self::Emulated => Wanted::NONE,
            Self::TprShadow => Wanted::TPR_SHADOW,
            Self::ApicAccess => Wanted::APIC_ACCESS,
            Self::RegisterVirtualization => Wanted::REGISTER_VIRTUALIZATION,
            Self::VirtualInterruptDelivery => Wanted::VIRTUAL_INTERRUPT_DELIVERY,
            Self::Posted => Wanted::POSTED_INTERRUPTS,
        }
    }

    /// Whether the processor delivers virtual interrupts by itself.
    pub(crate) fn delivers(self) -> bool {
        self >= Self::VirtualInterruptDelivery
    }
}
