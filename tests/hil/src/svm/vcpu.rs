//! One virtual CPU, and the CPU that has it loaded.

use core::marker::PhantomData;

use super::exit::Reason;
use super::msr_permissions::MsrPermissions;
use super::run::GuestRegisters;
use super::state::{self, Options};
use super::vmcb::{OwnedVmcb, Vmcb};
use super::{Capability, turn};

/// One virtual CPU that is not loaded anywhere. It can be moved to another CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(super) vmcb: OwnedVmcb,
    /// What VMLOAD and VMSAVE switch of the host, while the guest has it.
    pub(super) host: OwnedVmcb,
    pub(super) capability: Capability,
    pub(super) registers: GuestRegisters,
    pub(super) msr_permissions: MsrPermissions,
    pub(super) exits: Exits,
    /// The longest that one entry may last, in TSC ticks.
    pub(super) turn: Option<u64>,
}

impl Vcpu {
    /// A vCPU whose physical memory is what the tables at `nested_cr3` say, with its controls written and no guest state yet.
    pub(crate) fn new(capability: Capability, nested_cr3: u64, options: Options) -> Self {
        let mut vmcb = OwnedVmcb::new();
        let msr_permissions = MsrPermissions::new();
        let address = msr_permissions.address();
        state::write_controls(&mut vmcb, nested_cr3, address, options);
        Self {
            vmcb,
            host: OwnedVmcb::new(),
            capability,
            registers: GuestRegisters::new(),
            msr_permissions,
            exits: Exits::new(),
            turn: None,
        }
    }

    /// Makes the vCPU the one that the calling CPU runs, until the result is dropped. The CPU has
    /// [`enable`](super::capability::enable)d SVM.
    pub(crate) fn load(&mut self) -> Current<'_> {
        turn::calibrate();
        let mut current = Current { vcpu: self, this_cpu: PhantomData };
        // Another guest, or this one's past, may have used the address space on this CPU.
        current.flush_translations();
        current
    }

    /// The exits so far, by reason.
    pub(crate) fn exits(&self) -> &Exits {
        &self.exits
    }
}

/// A vCPU that the calling CPU runs.
#[derive(Debug)]
pub(crate) struct Current<'v> {
    pub(super) vcpu: &'v mut Vcpu,
    /// Stays on its CPU, which it has told to flush.
    this_cpu: PhantomData<*mut ()>,
}

impl Current<'_> {
    /// The general-purpose registers as the guest has them, in the order of their encoding. RAX and RSP are among them.
    pub(crate) fn general(&mut self) -> &mut [u64; 16] {
        &mut self.vcpu.registers.general
    }

    /// The control block, but for RAX and RSP.
    pub(crate) fn vmcb(&mut self) -> &mut Vmcb {
        &mut self.vcpu.vmcb
    }

    /// The same, by its words.
    pub(crate) fn words(&mut self) -> &mut OwnedVmcb {
        &mut self.vcpu.vmcb
    }

    /// Which RDMSR and WRMSR exit.
    pub(crate) fn msr_permissions(&mut self) -> &mut MsrPermissions {
        &mut self.vcpu.msr_permissions
    }

    /// The exits so far, by reason.
    pub(crate) fn exits(&self) -> &Exits {
        &self.vcpu.exits
    }

    /// Makes the next entry drop what the calling CPU has cached of the guest's physical memory (APM Vol. 2 15.16.1).
    pub(crate) fn flush_translations(&mut self) {
        const ALL: u32 = 1;
        const THIS_ADDRESS_SPACE: u32 = 3;
        let confined = self.vcpu.capability.flush_by_asid;
        self.vcpu.vmcb.control.tlb_control = if confined { THIS_ADDRESS_SPACE } else { ALL };
    }
}

/// How often each exit reason was seen.
#[derive(Clone, Debug)]
pub(crate) struct Exits {
    /// Codes 000 to 0FF, and 400 to 40F behind them.
    counts: [u32; 0x110],
}

impl Exits {
    fn new() -> Self {
        Self { counts: [0; 0x110] }
    }

    pub(super) fn count(&mut self, reason: Reason) {
        if let Some(count) = place(reason).and_then(|place| self.counts.get_mut(place)) {
            *count = count.wrapping_add(1);
        }
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().copied().map(u64::from).sum()
    }

    /// Those for one reason.
    pub(crate) fn of(&self, reason: Reason) -> u64 {
        place(reason).and_then(|place| self.counts.get(place)).copied().map_or(0, u64::from)
    }
}

fn place(reason: Reason) -> Option<usize> {
    match reason.code() {
        code @ 0..0x100 => Some(code as usize),
        code @ 0x400..0x410 => Some(code as usize - 0x300),
        _ => None,
    }
}
