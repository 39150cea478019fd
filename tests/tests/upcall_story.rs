//! The story that `cargo xtask demo` tells where there is no emulator.

use vlapic_core::Mode;
use vlapic_tests::demo::{Processor, Verdict, Way, Who, upcall_story};

/// The driver is right in every way; a cached flag is wrong where nobody is told of the write, and only there.
#[test]
fn every_row() {
    for (processor, rows) in [(Processor::Apicv, 10), (Processor::Svm, 8), (Processor::Avic, 8)] {
        let story = upcall_story(processor);
        assert_eq!(story.len(), rows, "{processor:?}");
        for row in story {
            let expected = match (row.who, row.way) {
                (Who::Contrast, Way::Silent) => Verdict::Lost,
                _ => Verdict::Right,
            };
            assert_eq!(row.verdict(), expected, "{processor:?}: {row}");
        }
    }
}

/// What the processor does by itself costs no exit: with AVIC only SVR exits, or not even that.
#[test]
fn avic_is_really_on() {
    let rows = upcall_story(Processor::Avic);
    assert!(rows.iter().any(|row| row.way == Way::Trap && row.mode == Mode::XApic));
    for row in rows {
        // Two writes of SVR; or one look at what is owed.
        let most = if row.way == Way::Silent { 1 } else { 2 };
        assert!(row.exits <= most, "{row}");
    }
}
