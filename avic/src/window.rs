//! Whether the guest's register window may be mapped.

use core::sync::atomic::{AtomicU32, Ordering};

/// The register window at guest-physical FEE0_0000, as a set of nested page tables has it.
///
/// xAVIC serves the window only if the nested tables map it, present and writable, to any page: the
/// processor uses the mapping for its permissions and goes to the backing page. The same mapping
/// under a vCPU that runs without xAVIC would send its accesses to that other page, with nobody told.
/// So every such vCPU objects, and the window stays unmapped: accesses fault (#VMEXIT 400) and are
/// emulated, which is right with AVIC as without.
///
/// One for each set of nested tables: shared by the vCPUs of a VM, or each vCPU's own. Until
/// [`map`](Self::map) is called everything works, with an exit for each access.
#[derive(Debug, Default)]
pub struct Window(AtomicU32);

const MAPPED: u32 = 1 << 31;

impl Window {
    /// Not mapped.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Asks for leave to map the window, e.g. after a nested page fault on it. `true`: map it, and
    /// call [`unmapped`](Self::unmapped) when it no longer is. `false`: a vCPU objects; emulate.
    #[must_use]
    pub fn map(&self) -> bool {
        let order = Ordering::SeqCst;
        match self.0.compare_exchange(0, MAPPED, order, order) {
            Ok(_) => true,
            Err(present) => present & MAPPED != 0,
        }
    }

    /// The window has been unmapped, and no CPU holds a translation of it.
    pub fn unmapped(&self) {
        self.0.fetch_and(!MAPPED, Ordering::SeqCst);
    }

    /// Whether it is, or is about to be, mapped.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.0.load(Ordering::SeqCst) & MAPPED != 0
    }

    pub(crate) fn object(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn consent(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_objection_suffices() {
        let window = Window::new();
        assert!(!window.is_mapped());
        assert!(window.map() && window.map());
        window.object();
        window.object();
        assert!(window.is_mapped(), "until the hypervisor has unmapped it");
        window.unmapped();
        assert!(!window.map());
        window.consent();
        assert!(!window.map());
        window.consent();
        assert!(window.map());
    }
}
