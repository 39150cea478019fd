//! What one vCPU's APIC does by itself: an interrupt's way through it, reads, TPR.

use std::hint::black_box;

use vlapic_core::{Register, Trigger};

use crate::contender::Contender;
use crate::floor;
use crate::kernel;
use crate::peer::{PeerWay, peer};
use crate::row::{Contenders, Mode, Row};
use crate::subject::{Memory, Msr, Places, emulated_one, left_to_the_hypervisor, look_at};

pub(super) fn rows() -> Vec<Row> {
    [of::<Memory>(), of::<Msr>()].into_iter().flatten().collect()
}

fn of<W: PeerWay>() -> Vec<Row> {
    vec![
        edge::<W>(),
        level::<W>(),
        read::<W, 0x0F0>("svr", "read SVR"),
        read::<W, 0x110>("isr", "read a word of ISR"),
        read::<W, 0x210>("irr", "read a word of IRR"),
        read::<W, 0x0A0>("ppr", "read PPR").peer_lacks(STALE_PPR),
        read::<W, 0x080>("tpr", "read TPR"),
        tpr::<W>(),
    ]
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
            look_at(W::write(apic, at.eoi, 0));
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
            look_at(W::write(apic, at.eoi, 0));
        });
        let peer = Contender::new("accept_interrupt, handle_eoi", peer::<W>(), move |peer, _| {
            peer.accept_interrupt(black_box(0x61), true);
            black_box(peer.handle_eoi());
        });
        Contenders::ours(ours).floor(floor::locked_or()).peer(peer)
    })
    .peer_lacks("no IRR, no priority check, no atomics; EOI by a call, its register tells nobody")
}

/// A read of the register at `OFFSET`. As in the floor, the place is a constant that the compiler does not know.
fn read<W: PeerWay, const OFFSET: u16>(name: &str, what: &'static str) -> Row {
    Row::new("read", name, W::MODE, what, || {
        let apic = emulated_one(W::MODE);
        apic.slot().page().store(0x110, 2);
        apic.slot().page().store(0x210, 2);
        apic.update_ppr();
        let ours = Contender::new("ours", apic, |apic, index| {
            // Guest time goes by the operations: like a hypervisor's, it is in a register.
            match W::read(apic, W::place_of(OFFSET), u64::from(index)) {
                Ok(value) => {
                    black_box(value);
                }
                Err(_) => left_to_the_hypervisor(0),
            }
        });
        let peer = Contender::new("read", peer::<W>(), |peer, _| {
            let _ = black_box(W::peer_read(peer, W::place_of(OFFSET)));
        });
        let at = W::place_of(OFFSET);
        let kernel = (W::MODE == Mode::X2Apic).then(|| kernel::read(at)).flatten();
        Contenders::ours(ours).floor(floor::page_load()).peer(peer).kernel(kernel)
    })
    .of_floor(2.0)
}

/// 4 ns where a locked OR takes 2.8 ns.
const TPR: f64 = 4.0 / 2.8;

fn tpr<W: PeerWay>() -> Row {
    Row::new("tpr", "write", W::MODE, "write TPR, look at PPR", || {
        let (at, ppr) = (Places::of::<W>(), W::place(Register::Ppr));
        let apic = emulated_one(W::MODE);
        apic.slot().page().store(0x110, 2);
        apic.update_ppr();
        let ours = Contender::new("ours", apic, move |apic, index| {
            look_at(W::write(apic, at.tpr, u64::from(index & 0x70)));
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
