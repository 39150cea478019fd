//! Plain emulation: every access to the APIC exits, and interrupts are injected.

use core::convert::Infallible;

use crate::backend::{Backend, Entry, EntryInput, ExitOutcome, Next, SvrWrites};
use crate::inbox::DirectInbox;
use crate::local::LocalApic;
use crate::slot::Slot;
use crate::vector::Vector;

/// The backend that asks nothing of the processor.
///
/// [`Backend::before_entry`] leaves what is to be programmed in an [`Injection`].
#[derive(Debug)]
pub struct Emulated<'s> {
    apic: LocalApic<'s, DirectInbox>,
    svr_writes: SvrWrites,
}

/// What plain emulation wants of an entry, for the hypervisor to program in its processor's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Inject this vector as an external interrupt. It has moved from IRR to ISR: if the entry
    /// exits before it is delivered, inject it again. It stays here, and nothing else is injected,
    /// until [`Backend::after_exit`] says that an entry was made.
    pub vector: Option<Vector>,
    /// Exit as soon as the guest could take an external interrupt: another one waits.
    pub window: bool,
    /// The guest's CR8, where a processor keeps one of its own.
    pub cr8: u8,
}

impl<'s> Emulated<'s> {
    /// Takes ownership of `slot` and resets its APIC. `bootstrap` makes the vCPU the BSP.
    #[must_use]
    pub fn new(slot: &'s Slot<'s, DirectInbox>, bootstrap: bool) -> Self {
        Self { apic: LocalApic::new(slot, bootstrap), svr_writes: SvrWrites::Exit }
    }

    /// Says how SVR writes come to notice. With anything that lets the guest store to its page
    /// unseen this must not stay at [`SvrWrites::Exit`].
    pub fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.svr_writes = svr_writes;
        self.apic.set_unseen_writes(svr_writes != SvrWrites::Exit);
    }
}

impl<'s> Backend<'s, Injection> for Emulated<'s> {
    type Inbox = DirectInbox;
    /// No exit is the APIC's own: accesses are the hypervisor's to decode.
    type Exit = ();
    type Error = Infallible;

    fn apic(&self) -> &LocalApic<'s, DirectInbox> {
        &self.apic
    }

    fn apic_mut(&mut self) -> &mut LocalApic<'s, DirectInbox> {
        &mut self.apic
    }

    fn before_entry(
        &mut self,
        injection: &mut Injection,
        input: EntryInput,
    ) -> Result<Entry, Infallible> {
        let prepared = self.apic.prepare(input.now);
        let injecting = input.injecting || injection.vector.is_some();
        let next = prepared.next(injecting);
        let injects = next == Next::Enter && input.interruptible && !injecting;
        let injected = self.apic.nominate().filter(|&vector| {
            // Looking consumes nothing; only what is certain to be injected is committed.
            injects && self.apic.commit(vector)
        });
        let window = self.apic.nominate().is_some();
        let cr8 = self.apic.read_cr8() as u8;
        *injection = Injection { vector: injected.or(injection.vector), window, cr8 };
        Ok(Entry::new(prepared, next, injected, self.svr_writes, input.now))
    }

    fn after_exit(
        &mut self,
        injection: &mut Injection,
        (): &(),
        _: u64,
    ) -> Result<ExitOutcome, Infallible> {
        injection.vector = None;
        Ok(ExitOutcome::NotOurs)
    }

    fn block(&mut self, input: EntryInput) -> bool {
        let prepared = self.apic.prepare(input.now);
        let interrupted = input.interruptible && self.apic.nominate().is_some();
        !prepared.event && !interrupted
    }

    fn preempt(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApicPage, Delivery, Event, Profile, Register, Trigger};

    #[test]
    fn injects_one_and_asks_for_a_window_for_the_next() {
        let page = ApicPage::new();
        let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
        let mut vcpu = Emulated::new(&slot, true);
        page.write(Register::Svr, 0x1FF);
        let _ = slot.request(0x41, Trigger::Edge);
        let _ = slot.request(0x92, Trigger::Edge);
        let mut injection = Injection::default();
        let mut input = EntryInput { now: 0, cpu: 0, interruptible: false, injecting: false };

        let entry = vcpu.before_entry(&mut injection, input).unwrap();
        assert_eq!((entry.injected, injection.vector, injection.window), (None, None, true));
        assert!(vcpu.block(input), "with IF clear no interrupt ends HLT");

        input.interruptible = true;
        assert!(!vcpu.block(input));
        let entry = vcpu.before_entry(&mut injection, input).unwrap();
        assert_eq!(entry.injected, Vector::new(0x92));
        assert_eq!((injection.vector, injection.window), (Vector::new(0x92), false));
        assert_eq!(page.isr().highest(), Vector::new(0x92));

        let _ = vcpu.apic_mut().end_of_interrupt();
        input.interruptible = false;
        let _ = vcpu.before_entry(&mut injection, input).unwrap();
        assert!(injection.window, "the lower one is deliverable now");
    }

    #[test]
    fn events_wait_for_what_is_injected() {
        let page = ApicPage::new();
        let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
        let mut vcpu = Emulated::new(&slot, false);
        let mut injection = Injection::default();
        let mut entry = |vcpu: &mut Emulated<'_>, injecting| {
            let input = EntryInput { now: 700, cpu: 0, interruptible: true, injecting };
            let entry = vcpu.before_entry(&mut injection, input).unwrap();
            (entry.next, entry.injected, entry.exit_by)
        };
        assert_eq!(entry(&mut vcpu, false), (Next::AwaitStartup, None, None));
        let _ = slot.receive(Delivery::Startup { page: 8 });
        assert_eq!(entry(&mut vcpu, false).0, Next::TakeEvent);
        assert_eq!(vcpu.apic_mut().take_event(), Some(Event::Startup { page: 8 }));
        page.write(Register::Svr, 0x1FF);
        let _ = slot.request(0x41, Trigger::Edge);
        let _ = slot.receive(Delivery::Nmi);
        assert_eq!(entry(&mut vcpu, false).0, Next::TakeEvent);
        assert_eq!(entry(&mut vcpu, true), (Next::Enter, None, Some(700)), "at once, after it");
        assert_eq!(vcpu.apic_mut().take_event(), Some(Event::Nmi));
        assert_eq!(entry(&mut vcpu, true), (Next::Enter, None, None), "the NMI itself");
        assert_eq!(entry(&mut vcpu, false), (Next::Enter, Vector::new(0x41), None));
    }

    #[test]
    fn an_injection_waits_for_its_entry() {
        let page = ApicPage::new();
        let slot = Slot::new(&page, 0, Profile::intel(), DirectInbox);
        let mut vcpu = Emulated::new(&slot, true);
        let mut injection = Injection::default();
        let input = EntryInput { now: 0, cpu: 0, interruptible: true, injecting: false };
        page.write(Register::Svr, 0x1FF);
        let _ = slot.request(0x41, Trigger::Edge);
        assert_eq!(vcpu.before_entry(&mut injection, input).unwrap().injected, Vector::new(0x41));
        // The entry is not made; meanwhile there is more.
        let _ = slot.request(0x92, Trigger::Edge);
        let _ = slot.receive(Delivery::Nmi);
        let entry = vcpu.before_entry(&mut injection, input).unwrap();
        assert_eq!((entry.next, entry.injected, entry.exit_by), (Next::Enter, None, Some(0)));
        assert_eq!((injection.vector, injection.window), (Vector::new(0x41), true));
        assert_eq!(vcpu.after_exit(&mut injection, &(), 0), Ok(ExitOutcome::NotOurs));
        assert_eq!(injection.vector, None, "it was made");
        assert_eq!(vcpu.before_entry(&mut injection, input).unwrap().next, Next::TakeEvent);
    }
}
