//! Upcalls, and what entry work costs where none is owed.

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};

use vlapic_core::{DirectInbox, LocalApic, Register};

use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{NOW, emulated_one, leak};

const VECTOR: u8 = 0x61;

pub(super) fn rows() -> Vec<Row> {
    vec![accepted(), refused(), already_set(), recheck(), prepare(), prepare_owed()]
}

fn accepted() -> Row {
    let what = "notify an upcall, accepted; byte and IRR cleared";
    Row::new("upcall", "accepted", Mode::None, what, || {
        let ours = Contender::new("ours", subject(), |(apic, pending), _| {
            let _ = black_box(apic.slot().notify_upcall(pending));
            pending.store(0, Ordering::Relaxed);
            apic.slot().page().store(0x230, 0);
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
}

fn refused() -> Row {
    let what = "notify an upcall, refused and owed; byte cleared";
    Row::new("upcall", "refused", Mode::None, what, || {
        let (apic, pending) = subject();
        apic.slot().page().write(Register::Svr, 0xFF);
        let ours = Contender::new("ours", (apic, pending), |(apic, pending), _| {
            let _ = black_box(apic.slot().notify_upcall(pending));
            pending.store(0, Ordering::Relaxed);
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
}

fn already_set() -> Row {
    let what = "notify an upcall, the byte is set";
    Row::new("upcall", "already-set", Mode::None, what, || {
        let (apic, pending) = subject();
        pending.store(1, Ordering::Relaxed);
        let ours = Contender::new("ours", (apic, pending), |(apic, pending), _| {
            let _ = black_box(apic.slot().notify_upcall(pending));
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
}

fn recheck() -> Row {
    let what = "re-check of an upcall, nothing owed";
    Row::new("upcall", "recheck", Mode::None, what, || {
        let ours = Contender::new("ours", subject(), |(apic, _), _| {
            black_box(black_box(apic).recheck_upcall());
        });
        Contenders::ours(ours).floor(floor::page_load())
    })
    .of_floor(1.2)
}

/// The APIC's whole part of entry work.
fn prepare() -> Row {
    let what = "entry work: time, LDR and SVR, pins and events, upcall; nothing due";
    Row::new("upcall", "prepare", Mode::None, what, || {
        let ours = Contender::new("ours", subject(), |(apic, _), _| {
            let _ = black_box(apic.prepare(black_box(NOW)));
        });
        Contenders::ours(ours).floor(floor::looks_of_entry_work())
    })
}

fn prepare_owed() -> Row {
    let what = "entry work with an upcall owed, APIC software-disabled";
    Row::new("upcall", "prepare-owed", Mode::None, what, || {
        let (apic, pending) = subject();
        apic.slot().page().write(Register::Svr, 0xFF);
        let _ = apic.slot().notify_upcall(pending);
        let ours = Contender::new("ours", (apic, pending), |(apic, _), _| {
            let _ = black_box(apic.prepare(black_box(NOW)));
        });
        Contenders::ours(ours).floor(floor::fence_seq_cst())
    })
}

/// A vCPU that has nothing owed, and its pending byte.
fn subject() -> (LocalApic<'static, DirectInbox>, &'static AtomicU8) {
    let mut apic = emulated_one(Mode::X2Apic);
    let pending: &'static AtomicU8 = leak(AtomicU8::new(0));
    let registered = apic.register_upcall(VECTOR, pending);
    assert_eq!(registered, Ok(()));
    let prepared = apic.prepare(NOW);
    assert!(!prepared.upcall_owed);
    (apic, pending)
}
