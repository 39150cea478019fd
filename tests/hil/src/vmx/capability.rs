//! What this processor's VMX can do, and switching it on.

use x86::controlregs::{self, Cr4};
use x86::msr::{self, rdmsr, wrmsr};
use x86::vmx::vmcs::control::{ExitControls, PinbasedControls, PrimaryControls, SecondaryControls};

use super::VmxError;
use super::vmcs::Region;

/// Puts the calling CPU into VMX operation, unless it is there already, and says what it can do.
///
/// Each CPU of the machine calls this once before it runs a guest.
pub(crate) fn enable() -> Result<Capability, VmxError> {
    let capability = Capability::read()?;
    if !capability.has_ept() {
        return Err(VmxError::NoEpt);
    }
    // SAFETY: the image runs at CPL 0; reading CR4 changes nothing.
    let cr4 = unsafe { controlregs::cr4() };
    if cr4.contains(Cr4::CR4_ENABLE_VMX) {
        return Ok(capability);
    }
    allow_by_feature_control()?;
    // SAFETY: CPUID reported VMX, so CR4.VMXE exists (SDM Vol. 3C 24.7); no other bit changes.
    unsafe { controlregs::cr4_write(cr4 | Cr4::CR4_ENABLE_VMX) };
    Region::new(capability.revision).vmxon()?;
    Ok(capability)
}

/// The capability MSRs that decide what goes into a VMCS (SDM Vol. 3D appendix A).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    /// Goes into the first word of each VMXON and VMCS region.
    pub(crate) revision: u32,
    /// Pin-based VM-execution controls.
    pub(crate) pin: Allowed,
    /// Primary processor-based VM-execution controls.
    pub(crate) primary: Allowed,
    /// Secondary processor-based VM-execution controls; nothing allowed where there are none.
    pub(crate) secondary: Allowed,
    /// VM-exit controls.
    pub(crate) exit: Allowed,
    /// VM-entry controls.
    pub(crate) entry: Allowed,
    /// IA32_VMX_EPT_VPID_CAP, 0 where there is none.
    pub(crate) ept: u64,
    misc: u64,
}

impl Capability {
    /// Reads the MSRs of the calling CPU.
    pub(crate) fn read() -> Result<Self, VmxError> {
        let vmx = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|info| info.has_vmx());
        if !vmx {
            return Err(VmxError::NoVmx);
        }
        // The TRUE MSRs also tell which of the controls that older processors fix to 1 may be 0 (appendix A.2).
        let basic = read(msr::IA32_VMX_BASIC);
        let exact = basic & 1 << 55 != 0;
        let pick = |old, exact_one| Allowed::from(read(if exact { exact_one } else { old }));
        let primary = pick(msr::IA32_VMX_PROCBASED_CTLS, msr::IA32_VMX_TRUE_PROCBASED_CTLS);
        let has_secondary = primary.may_be_one & PrimaryControls::SECONDARY_CONTROLS.bits() != 0;
        let secondary =
            Allowed::from(if has_secondary { read(msr::IA32_VMX_PROCBASED_CTLS2) } else { 0 });
        let has_ept = secondary.may_be_one & SecondaryControls::ENABLE_EPT.bits() != 0;
        Ok(Self {
            revision: (basic & 0x7fff_ffff) as u32,
            pin: pick(msr::IA32_VMX_PINBASED_CTLS, msr::IA32_VMX_TRUE_PINBASED_CTLS),
            primary,
            secondary,
            exit: pick(msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS),
            entry: pick(msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS),
            ept: if has_ept { read(msr::IA32_VMX_EPT_VPID_CAP) } else { 0 },
            misc: read(msr::IA32_VMX_MISC),
        })
    }

    /// EPT with all that [`Ept`](super::ept::Ept) uses: four levels, write-back tables, 2 MiB pages, INVEPT of all contexts.
    fn has_ept(&self) -> bool {
        const USED: u64 = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20 | 1 << 26;
        self.ept & USED == USED
    }

    /// A guest may run with paging off, or in real mode.
    pub(crate) fn unrestricted_guest(&self) -> bool {
        self.secondary.may_be_one & SecondaryControls::UNRESTRICTED_GUEST.bits() != 0
    }

    /// The processor counts down a timer in guest mode and exits at 0.
    pub(crate) fn preemption_timer(&self) -> bool {
        self.pin.may_be_one & PinbasedControls::VMX_PREEMPTION_TIMER.bits() != 0
    }

    /// The preemption timer counts down by 1 each time this bit of the TSC changes (appendix A.6).
    pub(crate) fn preemption_timer_shift(&self) -> u32 {
        (self.misc & 0x1f) as u32
    }

    /// The exit saves what is left of the preemption timer.
    pub(crate) fn saves_preemption_timer(&self) -> bool {
        self.exit.may_be_one & ExitControls::SAVE_VMX_PREEMPTION_TIMER.bits() != 0
    }
}

/// Which bits of one control word must be 1 and which may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) must_be_one: u32,
    pub(crate) may_be_one: u32,
}

impl Allowed {
    /// The control word with `needed` set, `wished` set as far as it is allowed, and what must be 1.
    pub(crate) fn word(self, needed: u32, wished: u32) -> Result<u32, VmxError> {
        let missing = needed & !self.may_be_one;
        if missing != 0 {
            return Err(VmxError::ControlsMissing { allowed: self, missing });
        }
        Ok((needed | wished | self.must_be_one) & self.may_be_one)
    }
}

impl From<u64> for Allowed {
    fn from(msr: u64) -> Self {
        Self { must_be_one: msr as u32, may_be_one: (msr >> 32) as u32 }
    }
}

/// Firmware sets and locks IA32_FEATURE_CONTROL, on some machines (and in Bochs) on the first CPU only.
fn allow_by_feature_control() -> Result<(), VmxError> {
    const LOCKED: u64 = 1 << 0;
    const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    let now = read(msr::IA32_FEATURE_CONTROL);
    if now & LOCKED == 0 {
        // SAFETY: the register exists with VMX (SDM Vol. 3C 24.7), is not locked, and both bits are defined.
        unsafe { wrmsr(msr::IA32_FEATURE_CONTROL, now | LOCKED | VMX_OUTSIDE_SMX) };
        Ok(())
    } else if now & VMX_OUTSIDE_SMX != 0 {
        Ok(())
    } else {
        Err(VmxError::LockedByFirmware)
    }
}

/// Reads one of the registers named above.
fn read(register: u32) -> u64 {
    // SAFETY: at CPL 0, and callers ask only for registers whose presence CPUID or another capability MSR has shown
    // (SDM Vol. 3D appendix A); reading them has no effect.
    unsafe { rdmsr(register) }
}
