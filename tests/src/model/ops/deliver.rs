//! Evaluation of pending virtual interrupts, and their delivery.

use super::super::guest::{Activity, Guest, Shadow};
use super::super::page::offset;

impl Guest<'_> {
    /// Evaluates pending virtual interrupts. This alone can recognize one; only delivery ends recognition.
    pub(in crate::model) fn evaluate(&mut self) {
        let window_free = !self.controls.interrupt_window_exiting;
        self.recognized = window_free && self.rvi >> 4 > self.page.vppr() >> 4;
    }

    /// Whether an interrupt can be delivered at a boundary here.
    pub(in crate::model) fn interruptible(&self) -> bool {
        let awake = matches!(self.activity, Activity::Active | Activity::Hlt);
        awake && self.interrupt_flag && self.shadow == Shadow::None
    }

    /// Delivers the recognized virtual interrupt and returns its vector.
    pub(in crate::model) fn deliver(&mut self) -> u8 {
        let vector = self.rvi;
        self.page.set_vector(offset::VISR, vector);
        self.svi = vector;
        self.page.store(offset::VPPR, u32::from(vector & 0xf0));
        self.page.clear_vector(offset::VIRR, vector);
        self.rvi = self.page.highest(offset::VIRR).unwrap_or(0);
        self.recognized = false;
        self.enter_handler();
        vector
    }

    /// The guest goes through an interrupt gate of its IDT.
    pub(in crate::model) fn enter_handler(&mut self) {
        self.activity = Activity::Active;
        self.interrupt_flag = false;
        self.shadow = Shadow::None;
    }
}
