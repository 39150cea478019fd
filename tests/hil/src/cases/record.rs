//! The exits of a guest as a case sees them.
//!
//! Everything is an atomic, so that the guest's program may look as well: it shares the image's memory.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::VirtualMachine;
use crate::vmx::vcpu::Current;
use crate::vmx::{Exit, Reason};

/// One exit that the guest caused, as the processor left it: before anybody has handled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) vcpu: u64,
    pub(crate) reason: Reason,
    pub(crate) qualification: u64,
    /// Of EPT violations.
    pub(crate) guest_physical: u64,
    pub(crate) rip: u64,
    /// What the VMCS says is the instruction's length, whether it means something or not.
    pub(crate) length: u64,
    /// RCX at the exit: the register of RDMSR and WRMSR.
    pub(crate) rcx: u64,
    /// The word of the virtual-APIC page, at the exit, of the register that the exit is about.
    pub(crate) word: u64,
    /// Guest interrupt status: SVI << 8 | RVI. Zero without virtual-interrupt delivery.
    pub(crate) status: u64,
}

/// For [`Config::at_exit`](crate::hypervisor::Config). Hypercalls, and exits that the guest did not cause, are left out.
pub(crate) fn observe(
    machine: &VirtualMachine,
    vcpu: usize,
    exit: &Exit,
    current: &mut Current<'_>,
) {
    let status = interrupt_status(machine, current);
    STATUS.store(status, Ordering::Relaxed);
    let others = [Reason::Vmcall, Reason::ExternalInterrupt, Reason::PreemptionTimer];
    if others.contains(&exit.reason) {
        return;
    }
    let [_, rcx, ..] = *current.general();
    let word = register(exit, rcx).map_or(0, |offset| machine.slots[vcpu].page().load(offset));
    let values = [
        vcpu as u64,
        u64::from(exit.reason.number()),
        exit.qualification,
        exit.guest_physical,
        current.vmcs.get(x86::vmx::vmcs::guest::RIP).unwrap_or(0),
        u64::from(exit.instruction_length),
        rcx,
        u64::from(word),
        status,
    ];
    let index = TOTAL.load(Ordering::Relaxed) as usize;
    if let Some(slot) = FIRST.get(index) {
        for (cell, value) in slot.iter().zip(values) {
            cell.store(value, Ordering::Relaxed);
        }
    }
    // Release: pairs with the Acquire in `total`.
    TOTAL.fetch_add(1, Ordering::Release);
}

/// Forgets what was seen.
pub(crate) fn clear() {
    TOTAL.store(0, Ordering::Release);
}

/// How many exits there were since [`clear`].
pub(crate) fn total() -> u64 {
    TOTAL.load(Ordering::Acquire)
}

/// The exit with this index since [`clear`], of the first 16.
pub(crate) fn get(index: usize) -> Option<Record> {
    if index as u64 >= total() {
        return None;
    }
    let values = FIRST.get(index)?.each_ref().map(|cell| cell.load(Ordering::Relaxed));
    let [vcpu, reason, qualification, guest_physical, rip, length, rcx, word, status] = values;
    let reason = Reason::from(reason as u16);
    Some(Record { vcpu, reason, qualification, guest_physical, rip, length, rcx, word, status })
}

/// Guest interrupt status at the last exit, hypercalls included.
pub(crate) fn last_status() -> u64 {
    STATUS.load(Ordering::Relaxed)
}

/// Guest interrupt status, where the processor has it.
fn interrupt_status(machine: &VirtualMachine, current: &Current<'_>) -> u64 {
    const GUEST_INTERRUPT_STATUS: u32 = 0x810;
    if machine.config.level.delivers() {
        current.vmcs.get(GUEST_INTERRUPT_STATUS).unwrap_or(u64::MAX)
    } else {
        0
    }
}

const FIELDS: usize = 9;

/// One vCPU at a time is observed, so only the total orders anything.
static FIRST: [[AtomicU64; FIELDS]; 16] = [const { [const { AtomicU64::new(0) }; FIELDS] }; 16];
static TOTAL: AtomicU64 = AtomicU64::new(0);
static STATUS: AtomicU64 = AtomicU64::new(0);

/// The offset of the register that an exit is about.
fn register(exit: &Exit, rcx: u64) -> Option<u16> {
    let offset = match exit.reason {
        Reason::ApicAccess | Reason::ApicWrite => exit.qualification & 0xff0,
        Reason::EptViolation => exit.guest_physical & 0xff0,
        Reason::Rdmsr | Reason::Wrmsr => (rcx & 0xff) << 4,
        Reason::VirtualizedEoi => 0xb0,
        Reason::TprBelowThreshold => 0x80,
        _ => return None,
    };
    Some(offset as u16)
}
