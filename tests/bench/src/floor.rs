//! What no implementation can be faster than: the bare memory operations.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vlapic_core::ApicPage;

use crate::contender::Contender;
use crate::subject::leak;

/// One relaxed load of a word of a page.
pub(crate) fn page_load() -> Contender {
    let page = leak(ApicPage::new());
    Contender::new("page load", page, |page, _| {
        black_box(page.load(black_box(0xF0)));
    })
}

/// One locked OR of a word of a page, its result used.
pub(crate) fn locked_or() -> Contender {
    let page = leak(ApicPage::new());
    Contender::new("locked OR", page, |page, _| {
        let word = &page.words()[usize::from(black_box(0x230u16) >> 2) & 1023];
        black_box(word.fetch_or(black_box(2), Ordering::SeqCst));
    })
}

/// `ORS` locked ORs of words of one cache line, in each of `lines` lines that nobody else touches.
pub(crate) fn fresh_locked_ors<const ORS: usize>(lines: usize) -> Contender {
    let state: Vec<Line> = (0..lines).map(|_| Line::default()).collect();
    let what = if ORS == 1 { "locked OR".to_owned() } else { format!("{ORS} locked ORs") };
    Contender::with_reset(
        what,
        lines as u32,
        state,
        |lines| {
            for word in lines.iter().flat_map(|line| &line.0) {
                word.store(0, Ordering::Relaxed);
            }
        },
        |lines, index| {
            // A power of two, as ours.
            let line = &lines[index as usize & (lines.len() - 1)];
            for word in &line.0[..ORS] {
                black_box(word.fetch_or(black_box(2), Ordering::SeqCst));
            }
        },
    )
}

/// Two locked ORs of words of one cache line, their results used.
pub(crate) fn two_locked_ors() -> Contender {
    let line = leak(Line::default());
    Contender::new("2 locked ORs", line, |line, _| {
        black_box(line.0[black_box(1) & 3].fetch_or(black_box(2), Ordering::SeqCst));
        black_box(line.0[4].fetch_or(black_box(1), Ordering::SeqCst));
    })
}

/// A locked OR of a word of each of `count` pages, and what it costs a page.
pub(crate) fn locked_ors_of_pages(count: u32) -> Contender {
    let pages: Vec<ApicPage> = (0..count).map(|_| ApicPage::new()).collect();
    Contender::new("locked OR in each page", pages, |pages, _| {
        for page in pages {
            let word = &page.words()[usize::from(black_box(0x230u16) >> 2) & 1023];
            black_box(word.fetch_or(black_box(2), Ordering::SeqCst));
        }
    })
    .per(count)
}

/// A plain copy of so many bytes.
pub(crate) fn copy_of(bytes: usize) -> Contender {
    Contender::new(format!("copy of {bytes} bytes"), (vec![1u8; bytes], vec![0; bytes]), |it, _| {
        let (from, into) = black_box(it);
        into.copy_from_slice(from);
        black_box(into);
    })
}

/// A locked OR that sets a bit and a locked AND that clears it.
pub(crate) fn or_and() -> Contender {
    let word = leak(AtomicU32::new(0));
    Contender::new("locked OR + AND", word, |word, _| {
        black_box(word.fetch_or(black_box(2), Ordering::SeqCst));
        black_box(word.fetch_and(!black_box(2), Ordering::SeqCst));
    })
}

/// A sequentially consistent fence.
pub(crate) fn fence_seq_cst() -> Contender {
    Contender::new("SeqCst fence", (), |(), index| {
        black_box(index);
        fence(Ordering::SeqCst);
    })
}

/// The highest bit of eight words, found in the second lowest.
pub(crate) fn scan() -> Contender {
    let page = leak(ApicPage::new());
    page.store(0x210, 2);
    Contender::new("8-word scan", page, |page, _| {
        let page: &ApicPage = black_box(page);
        let mut highest = 0;
        for index in (0..8u16).rev() {
            let word = page.load(0x200 + 0x10 * index);
            if word != 0 {
                highest = 32 * u32::from(index) + 31 - word.leading_zeros();
                break;
            }
        }
        black_box(highest);
    })
}

/// Four loads that find nothing posted.
pub(crate) fn drain_by_loads() -> Contender {
    let line = leak(Line::default());
    Contender::new("drain by 4 loads", line, |line, _| {
        let line: &Line = black_box(line);
        for word in &line.0[..4] {
            if word.load(Ordering::Relaxed) != 0 {
                black_box(word.swap(0, Ordering::SeqCst));
            }
        }
    })
}

/// A look at each word that says whether entry work has something to do: time, events and pins, upcall; SVR.
pub(crate) fn looks_of_entry_work() -> Contender {
    Contender::new("4 loads, each looked at", watched(), |(page, line), _| {
        let (page, line): (&ApicPage, &Line) = black_box((page, line));
        black_box(nothing_due(page, &line.0[..3]));
    })
}

/// The looks of a whole entry on Intel with nothing due: as [`looks_of_entry_work`], further IA32_APIC_BASE, the
/// descriptor's control word, what is staged, the EOI-exit bitmap's state and RVI with SVI; and all of IRR and ISR.
pub(crate) fn looks_of_entry() -> Contender {
    Contender::new("25 loads, each looked at", watched(), |(page, line), _| {
        let (page, line): (&ApicPage, &Line) = black_box((page, line));
        let quiet = nothing_due(page, &line.0);
        let empty = (0..8u16)
            .all(|bank| page.load(0x200 + 0x10 * bank) | page.load(0x100 + 0x10 * bank) == 0);
        black_box(quiet && empty);
    })
}

fn watched() -> (&'static ApicPage, &'static Line) {
    let page = leak(ApicPage::new());
    page.store(0xF0, 0x1FF);
    (page, leak(Line::default()))
}

#[inline(always)]
fn nothing_due(page: &ApicPage, words: &[AtomicU64]) -> bool {
    page.load(0xF0) & 0x100 != 0 && words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; 8]);
