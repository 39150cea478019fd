//! Two real threads: one posts, and is measured; the other takes what is posted, as fast as it can.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use apicv::{HostMode, PostedDescriptor, Posting};
use avic::Backing;
use vlapic_core::{ApicPage, Inbox, LocalApic, Profile, Slot, Trigger};

use super::posting::VECTORS;
use crate::contender::Contender;
use crate::opponent::{self, Opponent};
use crate::row::{Contenders, Mode, Row};
use crate::subject::{NOW, enable, leak};

/// Posts between two rests of the opponent.
const POSTS: u32 = 4000;

pub(super) fn rows() -> Vec<Row> {
    if opponent::unavailable().is_some() {
        return Vec::new();
    }
    vec![descriptor(), backing_page()]
}

fn descriptor() -> Row {
    let what = "request into one descriptor, a consumer drains it";
    Row::new("threads", "descriptor", Mode::None, what, || {
        let posting = Posting::new(leak(PostedDescriptor::new()), VECTORS, HostMode::X2Apic);
        let slot = leak(Slot::new(leak(ApicPage::new()), 0, Profile::intel(), posting));
        let mut apic = LocalApic::new(slot, true);
        enable(&mut apic, Mode::X2Apic);
        let consumer = Opponent::new(move || {
            let _ = black_box(apic.prepare(NOW));
        });
        Contenders::ours(poster(slot, consumer)).floor(floor())
    })
    .not_gated()
}

fn backing_page() -> Row {
    let what = "request into one backing page, a consumer takes the highest";
    Row::new("threads", "backing-page", Mode::None, what, || {
        let slot = leak(Slot::new(leak(ApicPage::new()), 0, Profile::amd(), Backing::new()));
        let mut apic = LocalApic::new(slot, true);
        enable(&mut apic, Mode::X2Apic);
        let consumer = Opponent::new(move || {
            if let Some(vector) = apic.nominate() {
                black_box(apic.commit(vector));
                let _ = black_box(apic.end_of_interrupt());
            }
        });
        Contenders::ours(poster(slot, consumer)).floor(floor())
    })
    .not_gated()
}

fn poster<I: Inbox + 'static>(slot: &'static Slot<'static, I>, consumer: Opponent) -> Contender {
    Contender::with_reset(
        "ours",
        POSTS,
        (slot, consumer),
        |(_, consumer)| consumer.start(),
        |(slot, consumer), index| {
            let vector = 0x40 + (index as u8 & 0x3F);
            let _ = black_box(slot.request(black_box(vector), Trigger::Edge));
            if index == POSTS - 1 {
                consumer.stop();
            }
        },
    )
}

/// A bare locked OR, and a consumer that exchanges the word for zero.
fn floor() -> Contender {
    let word: &'static AtomicU64 = leak(AtomicU64::new(0));
    let consumer = Opponent::new(move || {
        if word.load(Ordering::Relaxed) != 0 {
            black_box(word.swap(0, Ordering::SeqCst));
        }
    });
    Contender::with_reset(
        "locked OR, contended",
        POSTS,
        (word, consumer),
        |(_, consumer)| consumer.start(),
        |(word, consumer), index| {
            black_box(word.fetch_or(1 << (black_box(index) & 63), Ordering::SeqCst));
            if index == POSTS - 1 {
                consumer.stop();
            }
        },
    )
}
