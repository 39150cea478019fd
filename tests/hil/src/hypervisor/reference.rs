//! Local APICs in plain emulation, beside a VM that runs under a driver.

use vlapic_core::{ApicPage, DirectInbox, Profile, Slot};

use super::storage;
use crate::guest::MAX_VCPUS;

static PAGES: [ApicPage; MAX_VCPUS] = [const { ApicPage::new() }; MAX_VCPUS];

/// Slots for a VM that is only emulated, with pages of their own. They are those of the next VM that is plainly emulated
/// as well, so they end with this one.
pub(crate) fn reference_slots(profile: Profile) -> &'static [Slot<'static, DirectInbox>] {
    storage::direct_slots(|index| Slot::new(&PAGES[index], index as u32, profile, DirectInbox))
}
