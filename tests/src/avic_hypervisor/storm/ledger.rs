//! Who was sent what, and has not taken it.

/// The books of a storm.
///
/// A vector that a settled vCPU was sent has to be taken once; the next is sent only then, so that none coalesce. What
/// is sent to an APIC that may be off, in INIT or about to change its logical ID may be taken, but not more often than
/// it was sent.
#[derive(Debug)]
pub(super) struct Ledger {
    owed: Vec<[bool; 256]>,
    possible: Vec<[u16; 256]>,
    settled: Vec<bool>,
    narrow: Vec<bool>,
    upcalls: Vec<bool>,
    pub(super) sent: usize,
    pub(super) taken: usize,
    /// Sent with no promise that it arrives.
    pub(super) uncertain: usize,
}

impl Ledger {
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            owed: vec![[false; 256]; vcpus],
            possible: vec![[0; 256]; vcpus],
            settled: vec![false; vcpus],
            narrow: vec![false; vcpus],
            upcalls: vec![false; vcpus],
            sent: 0,
            taken: 0,
            uncertain: 0,
        }
    }

    /// Whether the vCPU may be sent the vector.
    pub(super) fn is_free(&self, vcpu: usize, vector: u8) -> bool {
        !self.owed[vcpu][usize::from(vector)]
    }

    pub(super) fn is_settled(&self, vcpu: usize) -> bool {
        self.settled[vcpu]
    }

    pub(super) fn send(&mut self, vcpu: usize, vector: u8) {
        if self.settled[vcpu] {
            self.owed[vcpu][usize::from(vector)] = true;
            self.sent += 1;
        } else {
            self.try_send(vcpu, vector);
        }
    }

    pub(super) fn try_send(&mut self, vcpu: usize, vector: u8) {
        self.possible[vcpu][usize::from(vector)] += 1;
        self.uncertain += 1;
    }

    /// # Panics
    /// If nobody sent it.
    pub(super) fn take(&mut self, vcpu: usize, vector: u8) {
        let place = usize::from(vector);
        if std::mem::take(&mut self.owed[vcpu][place]) {
            self.taken += 1;
        } else if self.possible[vcpu][place] > 0 {
            self.possible[vcpu][place] -= 1;
        } else {
            unreachable!("vCPU {vcpu} took {vector:#x}, which nobody sent");
        }
    }

    pub(super) fn upcall_is_due(&self, vcpu: usize) -> bool {
        self.upcalls[vcpu]
    }

    pub(super) fn send_upcall(&mut self, vcpu: usize) {
        self.upcalls[vcpu] = true;
    }

    /// # Panics
    /// If there was no event.
    pub(super) fn take_upcall(&mut self, vcpu: usize) {
        assert!(std::mem::take(&mut self.upcalls[vcpu]), "vCPU {vcpu}: an upcall for nothing");
    }

    /// From here on nothing is certain to be taken, not even what was sent before.
    pub(super) fn unsettle(&mut self, vcpu: usize) {
        self.settled[vcpu] = false;
        self.narrow[vcpu] = false;
        (0..=255).for_each(|vector| self.doubt(vcpu, vector));
    }

    /// It is not certain that the vector was sent.
    pub(super) fn doubt(&mut self, vcpu: usize, vector: u8) {
        if std::mem::take(&mut self.owed[vcpu][usize::from(vector)]) {
            self.sent -= 1;
            self.try_send(vcpu, vector);
        }
    }

    /// In xAPIC mode, with no logical ID, among others in x2APIC mode.
    pub(super) fn is_narrow(&self, vcpu: usize) -> bool {
        self.narrow[vcpu]
    }

    /// From here on no logical destination is the vCPU, or it may be again. Of the vectors that were sent before so
    /// `may_come` says which are not there yet.
    pub(super) fn set_narrow(&mut self, vcpu: usize, narrow: bool, may_come: impl Fn(u8) -> bool) {
        self.narrow[vcpu] = narrow;
        for vector in (0..=255).filter(|&vector| narrow && !may_come(vector)) {
            self.possible[vcpu][usize::from(vector)] = 0;
        }
    }

    pub(super) fn settle(&mut self, vcpu: usize) {
        self.settled[vcpu] = true;
    }

    /// Nothing is under way any more: what was not owed will not come.
    pub(super) fn close(&mut self) {
        for possible in &mut self.possible {
            *possible = [0; 256];
        }
    }

    /// What is owed to whom.
    pub(super) fn owed(&self) -> Vec<(usize, u8)> {
        let all = self.owed.iter().enumerate();
        all.flat_map(|(vcpu, owed)| {
            (0..=255).filter(|&v| owed[usize::from(v)]).map(move |v| (vcpu, v))
        })
        .collect()
    }
}
