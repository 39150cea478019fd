//! What one vCPU's APIC does by itself: an interrupt's way through it, reads, TPR.

use std::hint::black_box;

use vlapic_core::{Bank, Register, Trigger};

use crate::contender::Contender;
use crate::floor;
use crate::kernel;
use crate::peer::{PeerWay, peer};
use crate::row::{Contenders, Mode, Row};
use crate::subject::{Memory, Msr, Places, emulated_one};

pub(super) fn rows() -> Vec<Row> {
    [of::<Memory>(), of::<Msr>()].into_iter().flatten().collect()
}

fn of<W: PeerWay>() -> Vec<Row> {
    let mut rows = vec![edge::<W>(), level::<W>()];
    for (name, register, what) in [
        ("svr", Register::Svr, "read SVR"),
        ("isr", Register::Isr(Bank::new(1)), "read a word of ISR"),
        ("irr", Register::Irr(Bank::new(1)), "read a word of IRR"),
        ("ppr", Register::Ppr, "read PPR"),
        ("tpr", Register::Tpr, "read TPR"),
    ] {
        rows.push(read::<W>(name, register, what));
    }
    rows.push(tpr::<W>());
    rows
}

/// What the peer leaves out of its PPR.
const STALE_PPR: &str = "PPR does not follow TPR";

/// 14 ns where a locked OR takes 2.8 ns.
const EDGE: f64 = 5.0;

fn edge<W: PeerWay>() -> Row {
    let what = "edge interrupt: request, nominate, commit, EOI";
    Row::new("interrupt", "edge", W::MODE, what, || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated_one(W::MODE), move |apic, _| {
            let _ = black_box(apic.slot().request(black_box(0x61), Trigger::Edge));
            if let Some(vector) = apic.nominate() {
                black_box(apic.commit(vector));
            }
            let _ = black_box(W::write(apic, at.eoi, 0));
        });
        let peer = Contender::new("accept_interrupt, EOI", peer::<W>(), move |peer, _| {
            peer.accept_interrupt(black_box(0x61), false);
            let _ = black_box(W::peer_write(peer, at.eoi, 0));
        });
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .of_floor(EDGE)
    .peer_lacks("no IRR, no priority check, no atomics")
}

fn level<W: PeerWay>() -> Row {
    let what = "level interrupt: request, nominate, commit, EOI with its broadcast";
    Row::new("interrupt", "level", W::MODE, what, || {
        let at = Places::of::<W>();
        let ours = Contender::new("ours", emulated_one(W::MODE), move |apic, _| {
            let _ = black_box(apic.slot().request(black_box(0x61), Trigger::Level));
            if let Some(vector) = apic.nominate() {
                black_box(apic.commit(vector));
            }
            let _ = black_box(W::write(apic, at.eoi, 0));
        });
        let peer = Contender::new("accept_interrupt, handle_eoi", peer::<W>(), move |peer, _| {
            peer.accept_interrupt(black_box(0x61), true);
            black_box(peer.handle_eoi());
        });
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .peer_lacks("no IRR, no priority check, no atomics; EOI by a call, its register tells nobody")
}

fn read<W: PeerWay>(name: &str, register: Register, what: &'static str) -> Row {
    let row = Row::new("read", name, W::MODE, what, move || {
        let place = W::place(register);
        let apic = emulated_one(W::MODE);
        apic.slot().page().store(0x110, 2);
        apic.slot().page().store(0x210, 2);
        let ours = Contender::new("ours", apic, move |apic, _| {
            let _ = black_box(W::read(apic, place));
        });
        let peer = Contender::new("read", peer::<W>(), move |peer, _| {
            let _ = black_box(W::peer_read(peer, place));
        });
        let kernel = (W::MODE == Mode::X2Apic).then(|| kernel::read(place)).flatten();
        Contenders::ours(ours).floor(floor::page_load()).peer(peer).kernel(kernel)
    })
    .of_floor(2.0);
    if register == Register::Ppr { row.peer_lacks(STALE_PPR) } else { row }
}

/// 4 ns where a locked OR takes 2.8 ns.
const TPR: f64 = 4.0 / 2.8;

fn tpr<W: PeerWay>() -> Row {
    Row::new("tpr", "write", W::MODE, "write TPR, look at PPR", || {
        let (at, ppr) = (Places::of::<W>(), W::place(Register::Ppr));
        let apic = emulated_one(W::MODE);
        apic.slot().page().store(0x110, 2);
        let ours = Contender::new("ours", apic, move |apic, index| {
            let _ = black_box(W::write(apic, at.tpr, u64::from(index & 0x70)));
            black_box(apic.slot().page().read(Register::Ppr));
        });
        let peer = Contender::new("write, read PPR", peer::<W>(), move |peer, index| {
            let _ = black_box(W::peer_write(peer, at.tpr, u64::from(index & 0x70)));
            let _ = black_box(W::peer_read(peer, ppr));
        });
        let kernel = (W::MODE == Mode::X2Apic).then(|| kernel::write(at.tpr, 0x20)).flatten();
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer).kernel(kernel)
    })
    .of_floor(TPR)
    .peer_lacks(STALE_PPR)
}
