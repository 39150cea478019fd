//! What the guests of a storm do.

use std::collections::VecDeque;

use vlapic_core::{Mode, Register, SvrWrites};

use super::Storm;
use crate::avic_model::GuestOp;

/// The vector of a vCPU's IPIs to one, and that of its IPIs to many.
pub(super) const ONE: u8 = 0x20;
pub(super) const MANY: u8 = 0xa0;
/// What the IOMMU posts, what software posts, and a level-triggered one.
pub(super) const POSTED: u8 = 0x60;
pub(super) const REQUESTED: u8 = 0x78;
pub(super) const LEVEL: u8 = 0x90;
pub(super) const UPCALL: u8 = 0xe8;

const CLUSTER: u32 = 0x0fff_ffff;
const FLAT: u32 = u32::MAX;

/// The program of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) next: VecDeque<Act>,
    pub(super) in_service: Vec<u8>,
    /// The instruction under way.
    pub(super) current: Option<GuestOp>,
    /// The IPI under way: the vector, and who must and who may get it.
    pub(super) sending: Option<(u8, u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    Op(GuestOp),
    /// An IPI with this vector, to all of the first set and maybe to some of the second.
    Ipi(GuestOp, u8, u64, u64),
    /// An INIT for this vCPU.
    Init(GuestOp, usize),
    /// From here on no logical destination is this one, or it may be again.
    Narrow(bool),
    /// From here on others may count on it.
    Settle,
    /// And from here on not.
    Unsettle,
    /// Nothing is in service any more.
    Forget,
}

/// What a vCPU is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// Is put through INIT again and again.
    Restarted,
    /// Changes LDR and DFR; in x2APIC mode, where it cannot, leaves the mode and comes back.
    Renamed,
    /// Software-disabled most of the time, and with no logical ID.
    Dormant,
}

pub(super) fn role(vcpu: usize) -> Role {
    match vcpu {
        60.. => Role::Dormant,
        _ if vcpu % 8 == 3 => Role::Restarted,
        _ if vcpu % 8 == 5 => Role::Renamed,
        _ => Role::Plain,
    }
}

impl Storm<'_, '_> {
    fn register(&self, vcpu: usize, register: Register, value: u32) -> GuestOp {
        if self.hypervisor.slot(vcpu).mode() == Mode::X2Apic {
            return GuestOp::Wrmsr { msr: register.msr(), value: value.into() };
        }
        let address = super::WINDOW + u64::from(register.offset());
        GuestOp::Write { address, width: 4, value: value.into() }
    }

    fn plan(&mut self, vcpu: usize, register: Register, value: u32) {
        let op = self.register(vcpu, register, value);
        self.programs[vcpu].next.push_back(Act::Op(op));
    }

    fn is_xapic(&self) -> bool {
        self.hypervisor.config().mode == Mode::XApic
    }

    /// The guest starts: it sets its APIC up.
    pub(super) fn boot(&mut self, vcpu: usize) {
        self.ledger.unsettle(vcpu);
        self.level[vcpu] = false;
        if let Some((vector, all, _)) = self.programs[vcpu].sending {
            // INIT came before the instruction was done.
            bits(all).for_each(|target| self.ledger.doubt(target, vector));
        }
        self.programs[vcpu] = Program::default();
        if self.is_xapic() {
            self.plan(vcpu, Register::Dfr, CLUSTER);
            if role(vcpu) == Role::Dormant {
                return;
            }
            self.plan(vcpu, Register::Ldr, logical_id(vcpu) << 24);
        }
        self.plan(vcpu, Register::Svr, 0x1ff);
        self.programs[vcpu].next.push_back(Act::Settle);
    }

    /// The guest's next instruction.
    pub(super) fn next_op(&mut self, vcpu: usize) -> Option<GuestOp> {
        loop {
            match self.programs[vcpu].next.pop_front() {
                Some(Act::Op(op)) => return Some(op),
                Some(Act::Ipi(op, vector, all, some)) => {
                    let passed_by = |&v: &usize| is_logical(op) && self.ledger.is_narrow(v);
                    let passed_by = bits(all).filter(passed_by).fold(0, |set, v| set | 1 << v);
                    let all = all & !passed_by;
                    bits(all).for_each(|target| self.ledger.send(target, vector));
                    bits(some).for_each(|target| self.ledger.try_send(target, vector));
                    self.programs[vcpu].sending = Some((vector, all, some));
                    return Some(op);
                }
                Some(Act::Init(op, target)) => {
                    self.ledger.unsettle(target);
                    self.level[target] = false;
                    self.starting.push(target);
                    return Some(op);
                }
                Some(Act::Narrow(narrow)) => self.set_narrow(vcpu, narrow),
                // Another INIT is on its way.
                Some(Act::Settle) if self.starting.contains(&vcpu) => {}
                Some(Act::Settle) => self.ledger.settle(vcpu),
                Some(Act::Unsettle) => {
                    self.ledger.unsettle(vcpu);
                    self.level[vcpu] = false;
                }
                Some(Act::Forget) => self.programs[vcpu].in_service.clear(),
                None => break,
            }
        }
        let busy = !self.programs[vcpu].in_service.is_empty();
        if busy && (!self.sends || self.pick(3) != 0) {
            self.programs[vcpu].in_service.pop();
            return Some(self.register(vcpu, Register::Eoi, 0));
        }
        let priority =
            self.core_of(vcpu).and_then(|core| self.hypervisor.machine.cores[core].v_tpr());
        let raised = priority != Some(0);
        match self.pick(16) {
            0..7 if self.sends => self.plan_ipi(vcpu),
            7 if self.sends => {
                let value = self.pick(16) as u64;
                return Some(GuestOp::WriteCr8 { value });
            }
            8 if self.sends => {
                let value = self.pick(16) as u32;
                return Some(self.register(vcpu, Register::Tpr, value << 4));
            }
            9 if self.sends => self.plan_oddity(vcpu),
            _ if raised => return Some(self.register(vcpu, Register::Tpr, 0)),
            _ if !busy => return Some(GuestOp::Hlt),
            _ => {}
        }
        None
    }

    /// What only some guests do.
    fn plan_oddity(&mut self, vcpu: usize) {
        match role(vcpu) {
            Role::Renamed if self.is_xapic() => {
                let others: Vec<_> = (0..60).filter(|&v| role(v) == Role::Renamed).collect();
                let of = if self.pick(2) == 0 { others[self.pick(others.len())] } else { vcpu };
                match self.pick(3) {
                    0 => {
                        self.plan(vcpu, Register::Dfr, FLAT);
                        self.plan(vcpu, Register::Dfr, CLUSTER);
                    }
                    _ => self.plan(vcpu, Register::Ldr, logical_id(of) << 24),
                }
            }
            Role::Renamed if self.ledger.is_settled(vcpu) && self.pick(4) == 0 => {
                self.plan_round_of_modes(vcpu);
            }
            Role::Dormant if self.ledger.is_settled(vcpu) && self.is_xapic() => {
                self.programs[vcpu].next.push_back(Act::Unsettle);
                self.plan(vcpu, Register::Svr, 0xff);
            }
            Role::Plain => {
                let target = 8 * self.pick(7) + 3;
                if target < self.programs.len() && role(target) == Role::Restarted {
                    self.plan_init(vcpu, target);
                }
            }
            _ => {}
        }
    }

    /// From x2APIC mode to none, to xAPIC mode, in which one that accepts has nobody accelerated, and back.
    fn plan_round_of_modes(&mut self, vcpu: usize) {
        let base = self.hypervisor.slot(vcpu).base().bits() & !0xc00;
        let write =
            |mode| Act::Op(GuestOp::Wrmsr { msr: vlapic_core::IA32_APIC_BASE, value: base | mode });
        self.programs[vcpu].next.extend([Act::Unsettle, write(0), Act::Forget]);
        let address = super::WINDOW + u64::from(Register::Svr.offset());
        let enable = Act::Op(GuestOp::Write { address, width: 4, value: 0x1ff });
        self.programs[vcpu].next.extend([write(0x800), enable]);
        if self.hypervisor.config().svr_writes == SvrWrites::Exit {
            let linger = Act::Op(GuestOp::WriteCr8 { value: 0 });
            self.programs[vcpu].next.push_back(Act::Narrow(true));
            self.programs[vcpu].next.extend([linger; 16]);
            self.programs[vcpu].next.push_back(Act::Narrow(false));
        }
        self.programs[vcpu].next.extend([write(0xc00), Act::Settle]);
    }

    /// The others have exited since the vCPU is in xAPIC mode: what they send from here on passes it by if logical.
    fn set_narrow(&mut self, vcpu: usize, narrow: bool) {
        let page = self.hypervisor.slot(vcpu).page();
        let is_under_way = |vector| {
            let of = |program: &Program| {
                program.sending.is_some_and(|(sent, all, _)| sent == vector && all >> vcpu & 1 != 0)
            };
            vector < MANY || self.programs.iter().any(of)
        };
        let may_come = |vector| {
            let requested = page.irr().iter().any(|requested| requested.get() == vector);
            requested || is_under_way(vector)
        };
        self.ledger.set_narrow(vcpu, narrow, may_come);
    }

    /// A dormant vCPU was woken by an NMI.
    pub(super) fn plan_waking(&mut self, vcpu: usize) {
        if !self.ledger.is_settled(vcpu) && self.programs[vcpu].next.is_empty() {
            self.plan(vcpu, Register::Svr, 0x1ff);
            self.programs[vcpu].next.push_back(Act::Settle);
        }
    }

    fn plan_init(&mut self, vcpu: usize, target: usize) {
        if self.pick(4) == 0 {
            self.plan_icr(vcpu, target as u32, 0x4500);
            if let Some(Act::Op(op)) = self.programs[vcpu].next.pop_back() {
                self.programs[vcpu].next.push_back(Act::Init(op, target));
            }
        }
    }

    fn plan_icr(&mut self, vcpu: usize, destination: u32, command: u32) {
        if self.hypervisor.slot(vcpu).mode() == Mode::X2Apic {
            let value = u64::from(destination) << 32 | u64::from(command);
            self.programs[vcpu].next.push_back(Act::Op(GuestOp::Wrmsr { msr: 0x830, value }));
        } else {
            self.plan(vcpu, Register::IcrHigh, destination << 24);
            self.plan(vcpu, Register::IcrLow, command);
        }
    }

    fn plan_ipi(&mut self, vcpu: usize) {
        let vcpus = self.programs.len();
        let one = self.pick(vcpus);
        let broadcast = if self.is_xapic() { 0xff } else { u32::MAX };
        let everyone = || (0..vcpus).collect::<Vec<_>>();
        let (targets, destination, command) = match self.pick(24) {
            0 => (everyone(), 0, 2 << 18),
            1 => (everyone().into_iter().filter(|&v| v != vcpu).collect(), 0, 3 << 18),
            2 => (everyone(), broadcast, 0),
            3..5 => (vec![vcpu], 0, 1 << 18),
            5..12 => {
                let (targets, destination) = self.logical_targets();
                (targets, destination, 1 << 11)
            }
            _ => (vec![one], one as u32, 0),
        };
        let logical = command == 1 << 11;
        let vector = if targets.len() == 1 && !logical { ONE } else { MANY } + vcpu as u8;
        if targets.is_empty() || targets.iter().any(|&t| !self.ledger.is_free(t, vector)) {
            return;
        }
        // Those that change their logical IDs may be meant or not, whatever the destination.
        let doubtful = |target: usize, xapic| logical && xapic && role(target) == Role::Renamed;
        let xapic = self.is_xapic();
        // A processor that has got to some before it finds one that it cannot reach, and one that sends to the sender.
        let knobs = self.hypervisor.config().knobs;
        let delivers_twice = logical && !knobs.logical_lookups_come_first;
        let twice = if delivers_twice { targets.clone() } else { Vec::new() };
        let to_others = command == 3 << 18;
        let too_far = |target| to_others && !knobs.others_excludes_self && target == vcpu;
        let set = |targets: &mut dyn Iterator<Item = usize>| targets.fold(0, |set, v| set | 1 << v);
        let may = |target| doubtful(target, xapic) || twice.contains(&target) || too_far(target);
        let some = set(&mut (0..vcpus).filter(|&target| may(target)));
        let all = set(&mut targets.into_iter().filter(|&target| !doubtful(target, xapic)));
        self.plan_icr(vcpu, destination, command | u32::from(vector));
        if let Some(Act::Op(op)) = self.programs[vcpu].next.pop_back() {
            self.programs[vcpu].next.push_back(Act::Ipi(op, vector, all, some));
        }
    }

    /// A logical destination, and whom it means.
    fn logical_targets(&mut self) -> (Vec<usize>, u32) {
        let width = if self.is_xapic() { 4 } else { 16 };
        let placed =
            if self.is_xapic() { self.programs.len().min(60) } else { self.programs.len() };
        let cluster = self.pick(placed.div_ceil(width));
        let mask = 1 + self.pick((1 << width) - 1);
        // One that hardware must not find is looked for.
        let narrow = (0..placed).find(|&vcpu| self.ledger.is_narrow(vcpu));
        let (cluster, mask) =
            narrow.map_or((cluster, mask), |v| (v / width, mask | 1 << (v % width)));
        // Nobody has the other bits; hardware would exit, and nothing is wrong with that.
        let meant = |&v: &usize| v / width == cluster && mask >> (v % width) & 1 != 0;
        let targets = (0..placed).filter(meant).collect();
        let shift = if self.is_xapic() { 4 } else { 16 };
        (targets, (cluster << shift | mask) as u32)
    }
}

/// Cluster and bit, of which xAPIC mode has sixty.
fn logical_id(vcpu: usize) -> u32 {
    ((vcpu / 4) << 4 | 1 << (vcpu % 4)) as u32
}

/// Whether it is an IPI of x2APIC mode to a logical destination.
fn is_logical(op: GuestOp) -> bool {
    matches!(op, GuestOp::Wrmsr { msr: 0x830, value } if value & 1 << 11 != 0)
}

fn bits(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |&bit| set >> bit & 1 != 0)
}
