//! One of those that are measured side by side in a row.

/// Something that can be done many times over.
pub(crate) trait Work {
    /// Puts things back to where the operations can be done again; not measured.
    fn reset(&mut self);

    /// Does operations `0..count`.
    fn run(&mut self, count: u32);
}

/// An operation on a state of its own, and who does it.
pub(crate) struct Contender {
    /// What it is, for the table.
    pub(crate) what: String,
    /// After how many operations it has to be reset; `None`: never.
    pub(crate) limit: Option<u32>,
    /// How many things one operation does; the figures are for one of them.
    pub(crate) parts: u32,
    pub(crate) work: Box<dyn Work>,
}

impl Contender {
    /// `operation` can be repeated without end.
    pub(crate) fn new<S: 'static>(
        what: impl Into<String>,
        state: S,
        operation: impl FnMut(&mut S, u32) + 'static,
    ) -> Self {
        let work = Endless { state, operation };
        Self { what: what.into(), limit: None, parts: 1, work: Box::new(work) }
    }

    /// After `limit` operations `reset` is needed before the next.
    pub(crate) fn with_reset<S: 'static>(
        what: impl Into<String>,
        limit: u32,
        state: S,
        reset: impl FnMut(&mut S) + 'static,
        operation: impl FnMut(&mut S, u32) + 'static,
    ) -> Self {
        let work = Resettable { state, reset, operation };
        Self { what: what.into(), limit: Some(limit), parts: 1, work: Box::new(work) }
    }

    /// One operation does `parts` things.
    pub(crate) fn per(self, parts: u32) -> Self {
        Self { parts, ..self }
    }
}

struct Endless<S, O> {
    state: S,
    operation: O,
}

impl<S, O: FnMut(&mut S, u32)> Work for Endless<S, O> {
    fn reset(&mut self) {}

    #[inline(never)]
    fn run(&mut self, count: u32) {
        for index in 0..count {
            (self.operation)(&mut self.state, index);
        }
    }
}

struct Resettable<S, R, O> {
    state: S,
    reset: R,
    operation: O,
}

impl<S, R: FnMut(&mut S), O: FnMut(&mut S, u32)> Work for Resettable<S, R, O> {
    fn reset(&mut self) {
        (self.reset)(&mut self.state);
    }

    #[inline(never)]
    fn run(&mut self, count: u32) {
        for index in 0..count {
            (self.operation)(&mut self.state, index);
        }
    }
}
