//! The fuzz targets, without a fuzzer: on the committed corpus, on every cut of its first inputs, and on random bytes.
#![expect(clippy::unwrap_used, reason = "a test that gets here has failed")]

use std::path::PathBuf;

use vlapic_tests::fuzz::{TARGETS, unpack};
use vlapic_tests::steps::Random;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let packed = std::fs::read(folder.join(format!("{target}.pack"))).unwrap();
    unpack(&packed).into_iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn the_committed_corpus() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() > 20, "{name}: a corpus of {} inputs", corpus.len());
        corpus.iter().for_each(|bytes| target(bytes));
    }
}

#[test]
fn cut_short_anywhere() {
    for (name, target) in TARGETS {
        for bytes in corpus(name).iter().take(3) {
            (0..bytes.len().min(100)).for_each(|length| target(&bytes[..length]));
        }
    }
}

#[test]
fn random_bytes() {
    for (number, (_, target)) in TARGETS.into_iter().enumerate() {
        let mut random = Random::new(number as u64);
        for _ in 0..40 {
            let length = 8 * random.below(100);
            let bytes: Vec<u8> =
                (0..length / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
            target(&bytes);
        }
    }
}

/// Every target stands in the folder of cargo-fuzz, under its name.
#[test]
fn targets_and_files() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut names = TARGETS.map(|(name, _)| name);
    names.sort_unstable();
    assert_eq!(files, names);
}
