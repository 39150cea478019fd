//! The local APICs of a VM. Where their accepted vectors wait depends on how the vCPUs are run.

use apicv::{HostMode, PostedDescriptor, Posting};
use vlapic_core::{
    ApicPage, DirectInbox, Inbox, Message, Notify, Outcome, Slot, Trigger, Vector, Vm,
};

use super::vm::{Config, VECTORS, VirtualMachine};
use super::{HypervisorError, Level, storage};
use crate::guest::MAX_VCPUS;
use crate::machine::apic;

/// A descriptor in a page of its own, which Bochs 3.0 asks for (defect D4).
#[repr(align(4096))]
pub(super) struct OwnPage(pub(super) PostedDescriptor);

pub(super) static PAGES: [ApicPage; MAX_VCPUS] = [const { ApicPage::new() }; MAX_VCPUS];
pub(super) static DESCRIPTORS: [OwnPage; MAX_VCPUS] =
    [const { OwnPage(PostedDescriptor::new()) }; MAX_VCPUS];

/// The slots of a VM, by APIC ID, and the routes between them.
pub(super) enum Apics {
    /// Under `apicv`.
    Posted(Group<Posting<'static>>),
    /// Under plain emulation.
    Direct(Group<DirectInbox>),
}

/// Slots of one kind.
pub(super) struct Group<I: Inbox + 'static> {
    pub(super) slots: &'static [Slot<'static, I>],
    routes: Vm<'static, I>,
}

impl Apics {
    /// APICs that no vCPU owns yet.
    pub(super) fn new(config: &Config) -> Result<Self, HypervisorError> {
        let vcpus = config.vcpus.min(MAX_VCPUS);
        if config.level == Level::Emulated {
            let slots = storage::direct_slots(|index| slot(config, index, DirectInbox));
            return Ok(Self::Direct(Group::new(&slots[..vcpus])?));
        }
        let host = match apic::mode() {
            apic::Mode::X2Apic => HostMode::X2Apic,
            _ => HostMode::XApic,
        };
        let slots = storage::slots(|index| {
            slot(config, index, Posting::new(&DESCRIPTORS[index].0, VECTORS, host))
        });
        Ok(Self::Posted(Group::new(&slots[..vcpus])?))
    }

    /// The slots of a VM under `apicv`; none of any other.
    pub(super) fn posted(&self) -> &'static [Slot<'static, Posting<'static>>] {
        match self {
            Self::Posted(group) => group.slots,
            Self::Direct(_) => &[],
        }
    }
}

fn slot<I: Inbox>(config: &Config, index: usize, inbox: I) -> Slot<'static, I> {
    Slot::new(&PAGES[index], index as u32, config.profile, inbox)
        .with_refused_upcall(config.refused_upcall)
}

impl<I: Inbox> Group<I> {
    /// Slots are numbered by ID, so the order is right.
    fn new(slots: &'static [Slot<'static, I>]) -> Result<Self, HypervisorError> {
        let routes = Vm::new(slots).map_err(|_| HypervisorError::Stopped)?;
        Ok(Self { slots, routes })
    }

    /// Sends `message`, carries out with `tell` what it asks for, and says how many APICs accepted it.
    fn send(
        &self,
        message: &Message,
        sender: Option<usize>,
        tell: impl Fn(usize, Notify),
    ) -> usize {
        let mut accepted = 0;
        for (index, receipt) in self.routes.send(message, sender) {
            accepted += usize::from(receipt.outcome == Outcome::Accepted);
            tell(index, receipt.notify);
        }
        accepted
    }
}

/// Does the same with the slot of a vCPU, whatever its inbox.
macro_rules! with_slot {
    ($machine:expr, $vcpu:expr, $slot:ident => $body:expr) => {
        match &$machine.apics {
            Apics::Posted(Group { slots, .. }) => {
                let $slot = &slots[$vcpu];
                $body
            }
            Apics::Direct(Group { slots, .. }) => {
                let $slot = &slots[$vcpu];
                $body
            }
        }
    };
}

impl VirtualMachine {
    /// Sends `message` for vCPU `sender`, or for a device.
    pub(crate) fn send(&self, message: &Message, sender: Option<usize>) -> usize {
        let tell = |index, notify| self.notify(index, notify);
        match &self.apics {
            Apics::Posted(group) => group.send(message, sender, tell),
            Apics::Direct(group) => group.send(message, sender, tell),
        }
    }

    /// The APIC page of a vCPU.
    pub(crate) fn page(&self, vcpu: usize) -> &'static ApicPage {
        with_slot!(self, vcpu, slot => slot.page())
    }

    /// Whether a vCPU's APIC has had its RESET: from then on it receives messages.
    pub(crate) fn is_present(&self, vcpu: usize) -> bool {
        with_slot!(self, vcpu, slot => slot.present())
    }

    /// Registers the vector of a vCPU's upcalls. One that is illegal changes nothing.
    pub(crate) fn register_upcall(&self, vcpu: usize, vector: u8) {
        let pending = &self.pending[vcpu];
        let registered = with_slot!(self, vcpu, slot => slot.register_upcall(vector, pending));
        if let Ok(notify) = registered {
            self.notify(vcpu, notify);
        }
    }

    /// An event for a vCPU: an upcall follows if none was pending.
    pub(crate) fn notify_upcall(&self, vcpu: usize) {
        let pending = &self.pending[vcpu];
        self.notify(vcpu, with_slot!(self, vcpu, slot => slot.notify_upcall(pending)));
    }

    /// Puts an edge-triggered vector into the inbox of a vCPU, without asking its APIC.
    pub(crate) fn post_unasked(&self, vcpu: usize, vector: Vector) {
        let notify = with_slot!(self, vcpu, slot => {
            slot.inbox().post(slot.page(), vector, Trigger::Edge)
        });
        self.notify(vcpu, notify);
    }
}
