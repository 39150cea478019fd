//! Intel: posts into a descriptor, and what moves them into IRR.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use apicv::{HostMode, NotificationVectors, PostedDescriptor, Posting};
use vlapic_core::{ApicPage, Inbox, Slot, Trigger, Vector};

use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{self, leak};

pub(crate) const VECTORS: NotificationVectors = NotificationVectors { running: 0xF2, wakeup: 0xF1 };

/// ON, SN and NV of a descriptor's control word.
const ON: u64 = 1;
const SN: u64 = 2;
const RUNNING: u64 = (VECTORS.running as u64) << 16;

/// How many descriptors a pass goes through: they stay in the first cache.
const DESCRIPTORS: usize = 128;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        fresh("post-fresh", "post, fresh", RUNNING, floor::fresh_locked_ors::<2>).of_floor(1.15),
        bit_set(),
        fresh("post-on-set", "post, ON set", RUNNING | ON, floor::fresh_locked_ors::<1>)
            .of_floor(1.15),
        fresh("post-sn-set", "post, SN set", RUNNING | SN, floor::fresh_locked_ors::<2>)
            .of_floor(1.15),
        request(),
        sync_nothing(),
    ];
    rows.extend([1, 8, 256].map(sync));
    rows
}

/// Posts of a vector that is not pending, to descriptors whose control word is `control`.
fn fresh(name: &str, what: &'static str, control: u64, floor: fn(usize) -> Contender) -> Row {
    Row::new("intel", name, Mode::None, what, move || {
        let descriptors: Vec<PostedDescriptor> =
            (0..DESCRIPTORS).map(|_| PostedDescriptor::new()).collect();
        let ours = Contender::with_reset(
            "ours",
            DESCRIPTORS as u32,
            descriptors,
            move |descriptors| descriptors.iter().for_each(|it| put(it, [0; 4], control)),
            |descriptors, index| {
                if let Some(vector) = Vector::new(black_box(0x61)) {
                    let _ = black_box(descriptors[index as usize & (DESCRIPTORS - 1)].post(vector));
                }
            },
        );
        Contenders::ours(ours).floor(floor(DESCRIPTORS))
    })
}

fn bit_set() -> Row {
    Row::new("intel", "post-bit-set", Mode::None, "post, coalesced: the bit is set", || {
        let ours = Contender::new("ours", leak(PostedDescriptor::new()), |descriptor, _| {
            if let Some(vector) = Vector::new(black_box(0x61)) {
                let _ = black_box(descriptor.post(vector));
            }
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
    .of_floor(1.15)
}

/// The whole way of a request by another CPU: acceptance from the page, TMR, the post.
fn request() -> Row {
    let what = "request, whole: accepts?, TMR, post with the bit set";
    Row::new("intel", "request-bit-set", Mode::None, what, || {
        let ours = Contender::new("ours", slot(), |slot, _| {
            let _ = black_box(slot.request(black_box(0x61), Trigger::Edge));
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
}

fn sync_nothing() -> Row {
    Row::new("intel", "sync-0", Mode::None, "sync of posts into IRR, nothing posted", || {
        let ours = Contender::new("ours", slot(), |slot, _| {
            let slot: &Slot<'_, Posting<'_>> = black_box(slot);
            slot.inbox().collect(slot.page());
        });
        Contenders::ours(ours).floor(floor::page_load())
    })
    .of_floor(1.2)
}

/// Ours and the floor both include putting the posts there by plain stores.
fn sync(posted: u32) -> Row {
    let name = format!("sync-{posted}");
    let what = format!("sync of posts into IRR, {posted} posted");
    Row::new("intel", &name, Mode::None, what, move || {
        let words = words(posted);
        let ours = Contender::new("ours", slot(), move |slot, _| {
            let slot: &Slot<'_, Posting<'_>> = black_box(slot);
            put(slot.inbox().descriptor(), words, RUNNING | ON);
            slot.inbox().collect(slot.page());
        });
        let state = (leak(PostedDescriptor::new()), leak(ApicPage::new()));
        let floor = Contender::new("bare drain", state, move |(descriptor, page), _| {
            let (descriptor, page): (&PostedDescriptor, &ApicPage) = black_box((descriptor, page));
            put(descriptor, words, RUNNING | ON);
            bare_drain(descriptor, page);
        });
        Contenders::ours(ours).floor(floor)
    })
}

/// The locked operations that no drain can do without: ON, each word of PIR with a bit, each half of it into IRR.
fn bare_drain(descriptor: &PostedDescriptor, page: &ApicPage) {
    let [pir @ .., control, _, _, _] = descriptor.words();
    control.fetch_and(!ON, Ordering::SeqCst);
    for (index, word) in pir.into_iter().enumerate() {
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let bits = word.swap(0, Ordering::SeqCst);
        for (half, bits) in [bits as u32, (bits >> 32) as u32].into_iter().enumerate() {
            if bits != 0 {
                let at = 0x200 / 4 + 4 * (2 * index + half);
                page.words()[at & 1023].fetch_or(bits, Ordering::SeqCst);
            }
        }
    }
}

/// `posted` vectors, spread over the words; 256 means all that there are.
fn words(posted: u32) -> [u64; 4] {
    match posted {
        1 => [0, 1 << 33, 0, 0],
        8 => [3 << 20, 3 << 21, 3 << 22, 3 << 23],
        _ => [!0xFFFF, !0, !0, !0],
    }
}

fn put(descriptor: &PostedDescriptor, pir: [u64; 4], control: u64) {
    let words: [&AtomicU64; 8] = descriptor.words();
    for (word, bits) in words.into_iter().zip(pir.into_iter().chain([control])) {
        word.store(bits, Ordering::Relaxed);
    }
}

/// The slot of a vCPU that runs with posted interrupts, its APIC enabled.
fn slot() -> &'static Slot<'static, Posting<'static>> {
    let descriptor = leak(PostedDescriptor::new());
    let posting = Posting::new(descriptor, VECTORS, HostMode::X2Apic);
    put(descriptor, [0; 4], RUNNING);
    let slot = leak(Slot::new(leak(ApicPage::new()), 0, vlapic_core::Profile::intel(), posting));
    let mut apic = vlapic_core::LocalApic::new(slot, true);
    subject::enable(&mut apic, Mode::X2Apic);
    slot
}
