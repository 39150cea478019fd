//! Where other CPUs can act in the middle of a micro-operation.

use std::fmt;

/// A place inside a micro-operation at which memory is as another CPU could see it.
///
/// A core runs no other core's code by itself; a test that wants a post or a poll to fall between two steps of the
/// processor hands [`Core::interleave`](super::Core::interleave) a function that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// Posted-interrupt processing is about to clear ON.
    BeforeOnIsCleared,
    /// Posted-interrupt processing cleared ON and has not read PIR.
    AfterOnIsCleared,
    /// Posted-interrupt processing read and cleared this 64-bit group of PIR and did not yet merge it into VIRR.
    PirGroupTaken(u8),
    /// Posted-interrupt processing is done with PIR and did not yet evaluate.
    BeforeEvaluation,
    /// IPI virtualization set PIR and did not yet look at ON and SN.
    IpiPosted,
    /// IPI virtualization set ON and did not yet send the notification.
    IpiAnnounced,
}

/// The function a test wants called at each [`Point`].
#[derive(Default)]
pub(super) struct Interleaving<'m>(Option<Box<dyn FnMut(Point) + Send + 'm>>);

impl<'m> Interleaving<'m> {
    pub(super) fn new(others: impl FnMut(Point) + Send + 'm) -> Self {
        Interleaving(Some(Box::new(others)))
    }

    pub(super) fn reach(&mut self, point: Point) {
        if let Some(others) = &mut self.0 {
            others(point);
        }
    }
}

impl fmt::Debug for Interleaving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Interleaving(set)" } else { "Interleaving(none)" })
    }
}
