//! One virtual CPU, and the CPU that has it loaded.

use super::exit::Reason;
use super::msr_bitmap::MsrBitmap;
use super::run::GuestRegisters;
use super::state::{self, Options};
use super::vmcs::{Fields, Region};
use super::{Capability, VmxError, ept};

/// One virtual CPU that is not loaded anywhere. It can be moved to another CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    region: Region,
    pub(super) capability: Capability,
    ept_pointer: u64,
    pub(super) registers: GuestRegisters,
    pub(super) msr_bitmap: MsrBitmap,
    /// The next entry is a VMRESUME.
    pub(super) launched: bool,
    pub(super) exits: Exits,
}

impl Vcpu {
    /// A vCPU whose physical memory is what `ept_pointer` says, with its controls written and no guest state yet.
    ///
    /// Runs on a CPU that [`enable`](super::capability::enable)d VMX and has no vCPU loaded.
    pub(crate) fn new(
        capability: Capability,
        ept_pointer: u64,
        options: Options,
    ) -> Result<Self, VmxError> {
        let mut vcpu = Self {
            region: Region::new(capability.revision),
            capability,
            ept_pointer,
            registers: GuestRegisters::new(),
            msr_bitmap: MsrBitmap::new(),
            launched: false,
            exits: Exits::new(),
        };
        vcpu.region.clear()?;
        let bitmap = vcpu.msr_bitmap.address();
        let mut current = vcpu.load()?;
        state::write_controls(&mut current.vmcs, &capability, ept_pointer, bitmap, options)?;
        drop(current);
        Ok(vcpu)
    }

    /// Makes the vCPU the one that the calling CPU runs, until the result is dropped.
    pub(crate) fn load(&mut self) -> Result<Current<'_>, VmxError> {
        self.region.make_current()?;
        // SAFETY: at CPL 0 in VMX operation, since `make_current` succeeded. `Current` keeps the VMCS current for its life:
        // `make_current` refuses while any other is, and only the drop of `Current` clears it. It is not `Send`. The host
        // state is written next, and the physical addresses written come from owned frames.
        let vmcs = unsafe { Fields::new() };
        // The tables may lie where this CPU knew others.
        ept::invalidate(&self.capability, self.ept_pointer);
        let mut current = Current { vcpu: self, vmcs };
        state::write_host(&mut current.vmcs)?;
        Ok(current)
    }

    /// The exits so far, by reason.
    pub(crate) fn exits(&self) -> &Exits {
        &self.exits
    }
}

/// A vCPU whose VMCS is current on the calling CPU. Dropping it writes the VMCS back to memory.
#[derive(Debug)]
pub(crate) struct Current<'v> {
    pub(super) vcpu: &'v mut Vcpu,
    /// The fields of its VMCS.
    pub(crate) vmcs: Fields,
}

impl Current<'_> {
    /// The general-purpose registers as the guest has them, in the order of their encoding. RSP is among them.
    pub(crate) fn general(&mut self) -> &mut [u64; 16] {
        &mut self.vcpu.registers.general
    }

    /// Which RDMSR and WRMSR exit.
    pub(crate) fn msr_bitmap(&mut self) -> &mut MsrBitmap {
        &mut self.vcpu.msr_bitmap
    }

    /// The exits so far, by reason.
    pub(crate) fn exits(&self) -> &Exits {
        &self.vcpu.exits
    }

    /// Drops what the calling CPU has cached of the guest's physical memory.
    pub(crate) fn invalidate_translations(&self) {
        ept::invalidate(&self.vcpu.capability, self.vcpu.ept_pointer);
    }

    /// What the processor can do.
    pub(crate) fn capability(&self) -> &Capability {
        &self.vcpu.capability
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        // VMCLEAR can fail only for a bad address, and this one was good enough for VMPTRLD.
        let _ = self.vcpu.region.clear();
        self.vcpu.launched = false;
    }
}

/// How often each basic exit reason was seen.
#[derive(Clone, Debug)]
pub(crate) struct Exits {
    counts: [u64; Self::REASONS],
}

impl Exits {
    /// Basic exit reasons known to the SDM stay below this.
    const REASONS: usize = 96;

    fn new() -> Self {
        Self { counts: [0; Self::REASONS] }
    }

    pub(super) fn count(&mut self, reason: u16) {
        if let Some(count) = self.counts.get_mut(usize::from(reason)) {
            *count += 1;
        }
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Those for one reason.
    pub(crate) fn of(&self, reason: Reason) -> u64 {
        self.counts.get(usize::from(reason.number())).copied().unwrap_or(0)
    }
}
