//! How much hardware help a VM asks for.

use apicv::{Feature, Wanted};

/// How much help a VM has: a level of SVM or one of VT-x, each from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Plain emulation, on SVM: each access to the register window is a nested page fault, each MSR and CR8 access exits.
    Emulated,
    /// The driver of AVIC with nothing granted: it emulates, through the VMCB, as it does for as long as AVIC is inhibited.
    AvicOff,
    /// AVIC; in x2APIC mode x2AVIC.
    Avic,
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
    /// Those of SVM.
    pub(crate) const SVM: [Self; 3] = [Self::Emulated, Self::AvicOff, Self::Avic];

    /// Those of VT-x.
    pub(crate) const VT_X: [Self; 5] = [
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
            Self::AvicOff => "avic-off",
            Self::Avic => "avic",
            Self::TprShadow => "tpr-shadow",
            Self::ApicAccess => "apic-access",
            Self::RegisterVirtualization => "register-virt",
            Self::VirtualInterruptDelivery => "vid",
            Self::Posted => "posted",
        }
    }

    /// What the driver of VT-x is asked for.
    pub(crate) fn wanted(self) -> Wanted {
        match self {
            Self::Emulated | Self::AvicOff | Self::Avic => Wanted::NONE,
            Self::TprShadow => Wanted::up_to(Feature::TprShadow),
            Self::ApicAccess => Wanted::up_to(Feature::X2Apic),
            Self::RegisterVirtualization => Wanted::up_to(Feature::RegisterVirtualization),
            Self::VirtualInterruptDelivery => Wanted::up_to(Feature::VirtualInterruptDelivery),
            Self::Posted => Wanted::up_to(Feature::PostedInterrupts),
        }
    }

    /// Whether the processor delivers virtual interrupts by itself.
    pub(crate) fn delivers(self) -> bool {
        self == Self::Avic || self >= Self::VirtualInterruptDelivery
    }

    /// Whether it is one of SVM.
    pub(crate) fn is_svm(self) -> bool {
        Self::SVM.contains(&self)
    }

    /// Whether the processor does nothing for the APIC.
    pub(crate) fn is_emulated(self) -> bool {
        matches!(self, Self::Emulated | Self::AvicOff)
    }
}
