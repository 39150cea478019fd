//! Frames that are used again: each case builds its machine anew, and memory is small.

use core::fmt;

use spin::Mutex;

use super::memory::{self, Frame};

/// A zeroed frame with one owner, given back when dropped.
pub(crate) struct OwnedFrame(Option<&'static mut Frame>);

static FREE: Mutex<[Option<&'static mut Frame>; 256]> = Mutex::new([const { None }; 256]);

impl OwnedFrame {
    /// A frame given back before, or a new one.
    pub(crate) fn new() -> Self {
        let used = FREE.lock().iter_mut().find_map(Option::take);
        Self(Some(used.unwrap_or_else(memory::alloc_frame)))
    }

    /// Where it is, for the processor.
    pub(crate) fn physical_address(&self) -> u64 {
        self.0.as_ref().map_or(0, |frame| frame.physical_address())
    }

    /// Where its bytes begin.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.as_ref().map_or(core::ptr::null(), |frame| frame.0.as_ptr())
    }

    /// The eight bytes from `offset` on, as one little-endian word; 0 beyond the end.
    pub(crate) fn word(&self, offset: usize) -> u64 {
        let bytes = self.0.as_ref().and_then(|frame| frame.0.get(offset..)?.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Stores a word; nothing beyond the end.
    pub(crate) fn set_word(&mut self, offset: usize, value: u64) {
        let frame = self.0.as_mut();
        if let Some(bytes) = frame.and_then(|frame| frame.0.get_mut(offset..)?.first_chunk_mut()) {
            *bytes = value.to_le_bytes();
        }
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |frame| &mut frame.0)
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        let Some(frame) = self.0.take() else { return };
        frame.0.fill(0);
        // If there is no room to remember it, the frame is lost.
        if let Some(slot) = FREE.lock().iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(frame);
        }
    }
}

impl fmt::Debug for OwnedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedFrame({:#x})", self.physical_address())
    }
}
