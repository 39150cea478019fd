//! The exits of a guest as a case sees them.

use spin::Mutex;

use crate::hypervisor::VirtualMachine;
use crate::vmx::{Exit, Reason};

/// One exit that the guest caused, hypercalls left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) vcpu: usize,
    pub(crate) reason: Reason,
    pub(crate) qualification: u64,
    /// RCX at the exit: the register of RDMSR and WRMSR.
    pub(crate) rcx: u64,
}

struct Records {
    first: [Option<Record>; 64],
    total: u64,
}

static RECORDS: Mutex<Records> = Mutex::new(Records { first: [None; 64], total: 0 });

/// For [`Config::on_exit`](crate::hypervisor::Config).
pub(crate) fn observe(_: &VirtualMachine, vcpu: usize, exit: &Exit, rcx: u64) {
    if exit.reason == Reason::Vmcall {
        return;
    }
    let mut records = RECORDS.lock();
    let total = records.total as usize;
    if let Some(slot) = records.first.get_mut(total) {
        let (reason, qualification) = (exit.reason, exit.qualification);
        *slot = Some(Record { vcpu, reason, qualification, rcx });
    }
    records.total += 1;
}

/// Forgets what was seen.
pub(crate) fn clear() {
    *RECORDS.lock() = Records { first: [None; 64], total: 0 };
}

/// How many exits there were since [`clear`].
pub(crate) fn total() -> u64 {
    RECORDS.lock().total
}

/// The exit with this index since [`clear`], of the first 64.
pub(crate) fn get(index: usize) -> Option<Record> {
    RECORDS.lock().first.get(index).copied().flatten()
}
