//! Reading what `cargo test` prints.

use crate::report::Counts;

/// What all test binaries together reported.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Found {
    pub(super) counts: Counts,
    /// Names of failed tests.
    pub(super) failed: Vec<String>,
    /// Names of ignored tests, with the reason where one is given, and what tests said that they could not do: lines
    /// `SKIPPED name: reason`, past the capture of their output.
    pub(super) ignored: Vec<String>,
}

pub(super) fn read(text: &str) -> Found {
    let mut found = Found::default();
    let mut said_so = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            found.counts.passed += number_before(rest, " passed");
            found.counts.failed += number_before(rest, " failed");
            found.counts.skipped += number_before(rest, " ignored");
        } else if let Some(said) = line.strip_prefix("SKIPPED ") {
            said_so += 1;
            found.ignored.push(format!("test {said}"));
        } else if let Some((name, result)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            if result == "FAILED" {
                found.failed.push(format!("test {name}"));
            } else if let Some(reason) = result.strip_prefix("ignored") {
                found.ignored.push(format!("test {name}{reason}"));
            }
        }
    }
    // They counted as passed.
    found.counts.passed = found.counts.passed.saturating_sub(said_so);
    found.counts.skipped += said_so;
    found
}

/// The number that stands right before `word`.
fn number_before(text: &str, word: &str) -> usize {
    let digits = text.find(word).map(|end| text[..end].rsplit(' ').next().unwrap_or_default());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Counts, read};

    const OUTPUT: &str = "\
running 3 tests
SKIPPED a::kvm: no /dev/kvm
test a::good ... ok
test a::slow ... ignored, takes an hour
test a::bad ... FAILED
test panics - should panic ... ok

test result: FAILED. 12 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests x
test src/lib.rs - x (line 3) ... ignored

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn binaries_add_up() {
        let found = read(OUTPUT);
        assert_eq!(found.counts, Counts { passed: 14, failed: 1, skipped: 3 });
        assert_eq!(found.failed, ["test a::bad"]);
        let ignored = [
            "test a::kvm: no /dev/kvm",
            "test a::slow, takes an hour",
            "test src/lib.rs - x (line 3)",
        ];
        assert_eq!(found.ignored, ignored);
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(read("error: could not compile").counts, Counts::default());
        assert_eq!(read("test result: ok. many passed; x failed").counts, Counts::default());
    }
}
