//! The local APICs of a VM. Where their accepted vectors wait depends on how the vCPUs are run.

use core::sync::atomic::AtomicU8;

use apicv::{HostMode, PostedDescriptor, Posting};
use avic::{Backing, Inhibit, Whereabouts};
use vlapic_core::{
    ApicPage, Destination, DirectInbox, IllegalUpcallVector, Inbox, Message, Notify, Outcome, Pin,
    Receipt, Slot, Trigger, Vector, Vm,
};

use super::vm::{Config, VECTORS, VirtualMachine};
use super::{HypervisorError, Level, meter, storage};
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
    /// Under `avic`.
    Backed(Group<Backing>),
}

/// Slots of one kind.
pub(super) struct Group<I: Inbox + 'static> {
    pub(super) slots: &'static [Slot<'static, I>],
    pub(super) routes: Vm<'static, I>,
}

impl Apics {
    /// APICs that no vCPU owns yet.
    pub(super) fn new(config: &Config) -> Result<Self, HypervisorError> {
        let vcpus = config.vcpus.min(MAX_VCPUS);
        match config.level {
            Level::Emulated => {
                let slots = storage::direct_slots(|index| slot(config, index, DirectInbox));
                return Ok(Self::Direct(Group::new(&slots[..vcpus])?));
            }
            Level::AvicOff | Level::Avic => {
                let slots = storage::backed_slots(|index| slot(config, index, Backing::new()));
                return Ok(Self::Backed(Group::new(&slots[..vcpus])?));
            }
            _ => {}
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
            Self::Direct(_) | Self::Backed(_) => &[],
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
        let mut deliveries = self.routes.send(message, sender);
        while let Some((index, receipt)) = meter::measured(|| deliveries.next()) {
            accepted += usize::from(receipt.outcome == Outcome::Accepted);
            tell(index, receipt.notify);
        }
        accepted
    }
}

/// What any CPU may touch of one vCPU's APIC, whatever its inbox.
#[derive(Clone, Copy)]
pub(crate) enum AnySlot {
    Posted(&'static Slot<'static, Posting<'static>>),
    Direct(&'static Slot<'static, DirectInbox>),
    Backed(&'static Slot<'static, Backing>),
}

/// Asks the same of the slot inside.
macro_rules! either {
    ($this:expr, $slot:ident => $body:expr) => {
        match $this {
            AnySlot::Posted($slot) => $body,
            AnySlot::Direct($slot) => $body,
            AnySlot::Backed($slot) => $body,
        }
    };
}

impl AnySlot {
    /// The APIC page.
    pub(crate) fn page(self) -> &'static ApicPage {
        either!(self, slot => slot.page())
    }

    /// As [`Slot::present`]: after RESET it receives messages.
    pub(crate) fn present(self) -> bool {
        either!(self, slot => slot.present())
    }

    /// As [`Slot::accepts`].
    pub(crate) fn accepts(self) -> bool {
        either!(self, slot => slot.accepts())
    }

    /// As [`Slot::online`].
    pub(crate) fn online(self) -> bool {
        either!(self, slot => slot.online())
    }

    /// As [`Slot::request`].
    pub(crate) fn request(self, vector: u8, trigger: Trigger) -> Receipt {
        either!(self, slot => slot.request(vector, trigger))
    }

    /// As [`Slot::set_lint`].
    pub(crate) fn set_lint(self, pin: Pin, asserted: bool) -> Notify {
        either!(self, slot => slot.set_lint(pin, asserted))
    }

    /// As [`Slot::register_upcall`].
    pub(crate) fn register_upcall(
        self,
        vector: u8,
        pending: &AtomicU8,
    ) -> Result<Notify, IllegalUpcallVector> {
        either!(self, slot => slot.register_upcall(vector, pending))
    }

    /// As [`Slot::notify_upcall`].
    pub(crate) fn notify_upcall(self, pending: &AtomicU8) -> Notify {
        either!(self, slot => slot.notify_upcall(pending))
    }

    /// Puts an edge-triggered vector into the inbox, without asking the APIC.
    pub(crate) fn post_unasked(self, vector: Vector) -> Notify {
        either!(self, slot => slot.inbox().post(slot.page(), vector, Trigger::Edge))
    }

    /// Whether a vCPU under `avic` sleeps.
    pub(crate) fn is_blocked(self) -> bool {
        match self {
            Self::Backed(slot) => slot.inbox().whereabouts() == Whereabouts::Blocked,
            _ => false,
        }
    }

    /// The inbox of a VM under `apicv`.
    pub(crate) fn posting(self) -> Option<&'static Posting<'static>> {
        match self {
            Self::Posted(slot) => Some(slot.inbox()),
            Self::Direct(_) | Self::Backed(_) => None,
        }
    }
}

impl VirtualMachine {
    /// The slot of a vCPU.
    pub(crate) fn slot(&self, vcpu: usize) -> AnySlot {
        match &self.apics {
            Apics::Posted(group) => AnySlot::Posted(&group.slots[vcpu]),
            Apics::Direct(group) => AnySlot::Direct(&group.slots[vcpu]),
            Apics::Backed(group) => AnySlot::Backed(&group.slots[vcpu]),
        }
    }

    /// Sends `message` for vCPU `sender`, or for a device.
    pub(crate) fn send(&self, message: &Message, sender: Option<usize>) -> usize {
        let tell = |index, notify| self.notify(index, notify);
        match &self.apics {
            Apics::Posted(group) => group.send(message, sender, tell),
            Apics::Direct(group) => group.send(message, sender, tell),
            Apics::Backed(group) => group.send(message, sender, tell),
        }
    }

    /// Turns AVIC off for the VM, or lets it come back.
    pub(crate) fn inhibit_avic(&self, on: bool) {
        let Some(tables) = &self.tables else { return };
        if !on {
            tables.shared.allow(Inhibit::Disabled);
            return;
        }
        for (index, notify) in tables.shared.inhibit(Inhibit::Disabled) {
            self.notify(index, notify);
        }
    }

    /// Tells the targets of an IPI that AVIC has put into their IRR.
    pub(super) fn announce(&self, destination: Destination, sender: usize) {
        if let Apics::Backed(group) = &self.apics {
            for (index, notify) in group.routes.announce(destination, Some(sender)) {
                self.notify(index, notify);
            }
        }
    }
}
