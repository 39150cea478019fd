//! What the documents name is there: files that they link to, and tests that they cite.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Documents by their path from the root, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(PathBuf::from).into();
    let entries = fs::read_dir(root().join("docs")).expect("the folder exists");
    paths.extend(entries.map(|entry| Path::new("docs").join(entry.expect("readable").file_name())));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).expect("readable");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The texts between each `open` and the `close` after it.
fn between<'t>(text: &'t str, open: &'t str, close: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, text) in documents() {
        let folder = root().join(path.parent().unwrap_or(Path::new("")));
        for link in between(&text, "](", ")").filter(|link| !link.starts_with("http")) {
            links += 1;
            assert!(folder.join(link).exists(), "{}: {link}", path.display());
        }
    }
    assert!(links > 15, "only {links} links found");
}

/// A row of a table that ends in the path of a test file names tests of that file.
#[test]
fn cited_tests_exist() {
    let (mut cited, mut missing) = (0, Vec::new());
    for (path, text) in documents() {
        for row in text.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let Some((last, before)) = cells.split_last() else { continue };
            let files: Vec<&str> = code(last).filter(|code| is_test_file(code)).collect();
            for file in &files {
                assert!(root().join(file).exists(), "{}: {file}", path.display());
            }
            let [file] = files[..] else { continue };
            let source = fs::read_to_string(root().join(file)).expect("readable");
            for name in before.iter().flat_map(|cell| code(cell)) {
                cited += 1;
                if !source.contains(&format!("fn {name}(")) {
                    missing.push(format!("{}: no test {name} in {file}", path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(cited > 15, "only {cited} tests cited");
}

/// What stands between backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_test_file(path: &str) -> bool {
    (path.starts_with("tests/") || path.contains("/src/tests/"))
        && path.ends_with(".rs")
        && !path.contains('*')
}

/// The example of the README is short: lines that are shown, say something, and are no comments.
#[test]
fn the_readme_links_the_drivers_in_forty_lines() {
    let text = fs::read_to_string(root().join("README.md")).expect("readable");
    let code = between(&text, "```rust", "```").next().expect("an example");
    let counts = |line: &&str| {
        let line = line.trim_start();
        !line.starts_with("//") && !line.starts_with('#') && line.contains(char::is_alphanumeric)
    };
    let count = code.lines().filter(counts).count();
    assert!((20..=40).contains(&count), "{count} lines");
}
