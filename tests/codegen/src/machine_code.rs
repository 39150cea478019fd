//! What has its expected machine code in `expected/`.

use apicv::{Post, PostedDescriptor, Posting};
use vlapic_core::{ApicPage, DirectInbox, Effect, Inbox, LocalApic, Slot, Vector};

use crate::entries;

entries! {
    fn code_software_enabled(page: &ApicPage) -> bool {
        page.svr().software_enabled()
    }

    fn code_present(slot: &Slot<'static, DirectInbox>) -> bool {
        slot.present()
    }

    fn code_accepts(slot: &Slot<'static, DirectInbox>) -> bool {
        slot.accepts()
    }

    fn code_delivers(slot: &Slot<'static, DirectInbox>) -> bool {
        slot.delivers()
    }

    fn code_post(descriptor: &PostedDescriptor, vector: Vector) -> Post {
        descriptor.post(vector)
    }

    fn code_sync(posting: &Posting<'static>, page: &ApicPage) {
        posting.collect(page);
    }

    fn code_end_of_interrupt(apic: &mut LocalApic<'static, DirectInbox>) -> Effect {
        apic.end_of_interrupt()
    }
}
