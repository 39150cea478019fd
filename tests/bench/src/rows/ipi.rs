//! Interrupts that a vCPU sends: ICR and SELF IPI, to where the vector is pending, and up to its EOI.

use std::hint::black_box;

use vlapic_core::DirectInbox;

use crate::contender::Contender;
use crate::floor;
use crate::kernel;
use crate::peer::{Peer, PeerWay, peer};
use crate::row::{Contenders, Mode, Row};
use crate::subject::{Machine, Memory, Msr, Places, Way, carry_out, emulated};

/// Fixed, edge, asserted, vector 61.
const COMMAND: u64 = 0x4061;
/// What the peer leaves out of an interrupt to itself.
const NOT_ASKED: &str = "whether the APIC accepts it is not asked";
const SELF: u64 = 1 << 18;
const ALL_BUT_SELF: u64 = 3 << 18;

pub(super) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = [of::<Memory>(), of::<Msr>()].into_iter().flatten().collect();
    rows.extend(self_ipi_register());
    rows
}

fn of<W: PeerWay>() -> Vec<Row> {
    vec![pending::<W>(), taken::<W>(), self_ipi::<W>(), broadcast::<W>()]
}

/// A locked OR takes 2.8 ns where these nanoseconds were measured.
const fn at_scale(nanoseconds: f64) -> f64 {
    nanoseconds / 2.8
}

fn pending<W: PeerWay>() -> Row {
    let what = match W::MODE {
        Mode::XApic => "ICR (2 writes) to another vCPU, pending there",
        _ => "ICR to another vCPU, pending there",
    };
    Row::new("ipi", "pending", W::MODE, what, || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated(2, W::MODE), move |machine, _| {
            send::<W>(machine, at, 1);
        });
        let peer = Contender::new("ICR", peer::<W>(), move |peer, _| peer_send::<W>(peer, at, 1));
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .of_floor(at_scale(8.0))
    .peer_lacks("target neither looked up nor asked whether it accepts")
}

fn taken<W: PeerWay>() -> Row {
    let what = "ICR to another vCPU, which takes it, EOI";
    Row::new("ipi", "taken", W::MODE, what, || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated(2, W::MODE), move |machine, _| {
            send::<W>(machine, at, 1);
            take::<W>(machine, 1, at);
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
    .of_floor(at_scale(25.0))
}

fn self_ipi<W: PeerWay>() -> Row {
    let what = "ICR with shorthand self, pending";
    Row::new("ipi", "self-by-icr", W::MODE, what, || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated(2, W::MODE), move |machine, _| {
            // The high half says nothing here, and guests do not write it.
            let effect = W::write(&mut machine.apics[0], at.icr_low, COMMAND | SELF);
            carry_out(&machine.vm, effect, 0);
        });
        let peer = Contender::new("ICR", peer::<W>(), move |peer, _| {
            let _ = black_box(W::peer_write(peer, at.icr_low, COMMAND | SELF));
        });
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .of_floor(at_scale(6.0))
    .peer_lacks(NOT_ASKED)
}

fn self_ipi_register() -> [Row; 2] {
    let pending = Row::new("ipi", "self", Mode::X2Apic, "SELF IPI, pending", || {
        let at = Places::of::<Msr>();
        let ours = Contender::new("ours", emulated(2, Mode::X2Apic), move |machine, _| {
            let effect = Msr::write(&mut machine.apics[0], at.self_ipi, 0x61);
            carry_out(&machine.vm, effect, 0);
        });
        let peer = Contender::new("SELF IPI", peer::<Msr>(), move |peer, _| {
            let _ = black_box(Msr::peer_write(peer, at.self_ipi, 0x61));
        });
        let kernel = kernel::write(at.self_ipi, 0x61);
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer).kernel(kernel)
    })
    .of_floor(at_scale(6.0))
    .peer_lacks(NOT_ASKED);
    let taken = Row::new("ipi", "self-taken", Mode::X2Apic, "SELF IPI, taken, EOI", || {
        let at = Places::of::<Msr>();
        let ours = Contender::new("ours", emulated(2, Mode::X2Apic), move |machine, _| {
            let effect = Msr::write(&mut machine.apics[0], at.self_ipi, 0x61);
            carry_out(&machine.vm, effect, 0);
            take::<Msr>(machine, 0, at);
        });
        Contenders::ours(ours).floor(floor::locked_or())
    });
    [pending, taken]
}

fn broadcast<W: PeerWay>() -> Row {
    Row::new("ipi", "broadcast", W::MODE, "ICR to all but self, 7 vCPUs, pending", || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated(8, W::MODE), move |machine, _| {
            let effect = W::write(&mut machine.apics[0], at.icr_low, COMMAND | ALL_BUT_SELF);
            carry_out(&machine.vm, effect, 0);
        });
        let peer = Contender::new("ICR", peer::<W>(), move |peer, _| {
            let _ = black_box(W::peer_write(peer, at.icr_low, COMMAND | ALL_BUT_SELF));
        });
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .of_floor(at_scale(22.0))
    .peer_lacks("targets neither looked up nor asked whether they accept")
}

/// vCPU 0 sends: one write in x2APIC mode, two in xAPIC mode. The hypervisor looks at what each leaves to do.
#[inline(always)]
fn send<W: PeerWay>(machine: &mut Machine<DirectInbox>, at: Places, destination: u64) {
    let command = if W::MODE == Mode::X2Apic {
        destination << 32 | COMMAND
    } else {
        let effect = W::write(&mut machine.apics[0], at.icr_high, destination << 24);
        carry_out(&machine.vm, effect, 0);
        COMMAND
    };
    let effect = W::write(&mut machine.apics[0], at.icr_low, command);
    carry_out(&machine.vm, effect, 0);
}

#[inline(always)]
fn peer_send<W: PeerWay>(peer: &Peer, at: Places, destination: u64) {
    if W::MODE == Mode::X2Apic {
        let _ = black_box(W::peer_write(peer, at.icr_low, destination << 32 | COMMAND));
        return;
    }
    let _ = black_box(W::peer_write(peer, at.icr_high, destination << 24));
    let _ = black_box(W::peer_write(peer, at.icr_low, COMMAND));
}

#[inline(always)]
fn take<W: PeerWay>(machine: &mut Machine<DirectInbox>, vcpu: usize, at: Places) {
    let apic = &mut machine.apics[vcpu];
    if let Some(vector) = apic.nominate() {
        black_box(apic.commit(vector));
    }
    let effect = W::write(apic, at.eoi, 0);
    carry_out(&machine.vm, effect, vcpu);
}
