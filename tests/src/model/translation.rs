//! What a core remembers of where guest addresses lead.

use std::collections::BTreeMap;

use super::controls::Controls;
use super::guest::Window;

/// The translations of one core, by address space and guest page.
///
/// Whether a page is the APIC-access page is decided when its translation is made. What changes later, mapping or
/// controls, counts only after a flush (SDM Vol. 3C 29.4.5); until then the model believes what it remembers.
#[derive(Debug, Clone, Default)]
pub(super) struct Translations(BTreeMap<(u64, GuestPage), Translation>);

/// A guest page that the model tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum GuestPage {
    /// The register window.
    Window,
    /// A second mapping, to this host page.
    Other(u64),
}

/// Where a guest page leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Translation {
    /// Host-physical address of the page.
    pub(super) base: u64,
    /// Accesses are virtualized.
    pub(super) apic_access: bool,
}

impl Translations {
    /// Where accesses to `window` lead now; `None` is an EPT violation, and nothing is remembered of it.
    pub(super) fn look_up(
        &mut self,
        space: u64,
        window: Window,
        controls: &Controls,
    ) -> Option<Translation> {
        let page = match window {
            Window::Memory(base) => GuestPage::Other(base),
            _ => GuestPage::Window,
        };
        if let Some(&known) = self.0.get(&(space, page)) {
            return Some(known);
        }
        let made = walk(window, controls)?;
        self.0.insert((space, page), made);
        Some(made)
    }

    /// Forgets everything.
    pub(super) fn flush(&mut self) {
        self.0.clear();
    }
}

/// What the page tables and the controls say.
fn walk(window: Window, controls: &Controls) -> Option<Translation> {
    let on = controls.virtualize_apic_accesses;
    let base = match window {
        Window::NotPresent => return None,
        Window::ApicAccessPage => on.then_some(controls.apic_access_address)?,
        Window::Mapped(base) | Window::Memory(base) => base,
    };
    Some(Translation { base, apic_access: on && base == controls.apic_access_address })
}
