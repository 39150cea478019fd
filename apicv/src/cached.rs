//! What CPUs have cached of the register window, and when it has to be flushed.

use crate::program::Translations;

/// Whether a CPU may hold translations of the guest's register window from before accesses to it were
/// virtualized, or from after.
///
/// After "virtualize APIC accesses" was turned on, translations that a CPU has from before do not lead to
/// virtualized accesses (SDM Vol. 3C 28.3.3.4 and 29.4). Which CPUs have some nobody records: from then on
/// the vCPU's coming to another CPU asks for a flush there. After it was turned off, one flush where the
/// vCPU is suffices: elsewhere a translation leads to the same page as a new one would.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cached {
    state: State,
    /// From before the accesses were virtualized, wherever the vCPU has been.
    elsewhere: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest has not run, so there is nothing.
    Nothing,
    Right,
    Stale,
}

impl Cached {
    pub(crate) const fn new() -> Self {
        Self { state: State::Nothing, elsewhere: false }
    }

    /// The control words were set; `virtualized` says whether accesses to the window are now.
    pub(crate) fn controls_set(&mut self, translations: Translations, virtualized: bool) {
        if translations == Translations::Stale && self.state != State::Nothing {
            self.state = State::Stale;
            self.elsewhere = virtualized;
        }
    }

    /// The vCPU has come to another CPU.
    pub(crate) fn moved(&mut self) {
        if self.elsewhere {
            self.state = State::Stale;
        }
    }

    /// Before an entry: whether it has to flush. Says so again until the entry is made.
    #[inline]
    pub(crate) fn needs_flush(&self) -> bool {
        self.state == State::Stale
    }

    /// An entry was made, with the flush that it needed.
    #[inline]
    pub(crate) const fn entered(&mut self) {
        self.state = State::Right;
    }
}
