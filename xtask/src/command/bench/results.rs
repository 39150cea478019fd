//! What a run measured.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::image::Operation;

/// All rows of a run, and on what.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Results {
    /// The processor's model.
    pub(super) cpu: String,
    pub(super) rustc: String,
    pub(super) rows: Vec<Row>,
    /// Operations of guests in the image.
    #[serde(default)]
    pub(super) image: Vec<Operation>,
    /// What could not be measured, and why.
    pub(super) skipped: Vec<String>,
}

/// A row before it is measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct About {
    pub(super) id: String,
    pub(super) group: String,
    pub(super) what: String,
    pub(super) mode: String,
    /// The most that ours may cost, as a multiple of the floor.
    pub(super) of_floor: Option<f64>,
    /// What the peer leaves out.
    pub(super) peer_lacks: Option<String>,
    /// Its instructions are held to the committed number.
    pub(super) gated: bool,
    /// Where the row is a point of a curve over the number of vCPUs: which, and how many.
    pub(super) curve: Option<String>,
    pub(super) vcpus: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) about: About,
    pub(super) ours: Figure,
    pub(super) floor: Option<Figure>,
    pub(super) peer: Option<Figure>,
    /// The kernel's local APIC, one ioctl an operation.
    #[serde(default)]
    pub(super) kernel: Option<Figure>,
    /// Instructions an operation of ours.
    #[serde(default)]
    pub(super) instructions: Option<f64>,
}

impl std::ops::Deref for Row {
    type Target = About;

    fn deref(&self) -> &About {
        &self.about
    }
}

/// A line of the measuring program.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    Skipped { skipped: String },
    Row(Box<Row>),
}

/// What a contender cost, in nanoseconds an operation.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) median: f64,
    pub(super) p10: f64,
    pub(super) p90: f64,
    /// The median of the ratios of ours to this one, chunk by chunk.
    pub(super) ratio: f64,
    pub(super) chunks: u64,
    pub(super) operations: u64,
}

/// Instructions an operation of the row with this identifier.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Count {
    pub(super) id: String,
    pub(super) instructions: f64,
}

impl Results {
    /// No row yet.
    pub(super) fn of_this_machine() -> Self {
        Self { cpu: cpu_model(), rustc: rustc_version(), ..Self::default() }
    }

    pub(super) fn add_counts(&mut self, counts: &[Count]) {
        for row in &mut self.rows {
            row.instructions = counts
                .iter()
                .find(|count| count.id == row.about.id)
                .map(|count| count.instructions);
        }
    }

    pub(super) fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }
}

impl Row {
    /// The row's target, if it has one: what it is, and whether it is met.
    pub(super) fn target(&self) -> Option<(String, bool)> {
        let (most, floor) = self.of_floor.zip(self.floor.as_ref())?;
        Some((format!("≤ {} × floor", plain(most)), floor.ratio <= most))
    }
}

/// At most two digits after the point, and no zeroes.
fn plain(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line =
            text.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    match (value("model name"), value("cpu family"), value("model")) {
        (Some(name), Some(family), Some(model)) => {
            format!("{name} (family {family}, model {model})")
        }
        _ => "unknown".to_owned(),
    }
}

/// What `rustc --version` says.
pub(super) fn rustc_version() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Command::new(rustc)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{About, Figure, Row, plain};

    fn figure(ratio: f64) -> Figure {
        Figure {
            what: "page load".to_owned(),
            median: 1.0,
            p10: 1.0,
            p90: 1.0,
            ratio,
            chunks: 1,
            operations: 1,
        }
    }

    #[test]
    fn a_target_is_met_or_not() {
        let about = About {
            id: "a/b".to_owned(),
            group: "a".to_owned(),
            what: "b".to_owned(),
            mode: "-".to_owned(),
            of_floor: Some(1.2),
            peer_lacks: None,
            gated: true,
            curve: None,
            vcpus: None,
        };
        let mut row = Row {
            about,
            ours: figure(1.0),
            floor: Some(figure(1.21)),
            peer: None,
            kernel: None,
            instructions: None,
        };
        assert_eq!(row.target(), Some(("≤ 1.2 × floor".to_owned(), false)));
        row.floor = Some(figure(1.2));
        assert_eq!(row.target(), Some(("≤ 1.2 × floor".to_owned(), true)));
        row.floor = None;
        assert_eq!(row.target(), None);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(plain(2.0), "2");
        assert_eq!(plain(1.15), "1.15");
        assert_eq!(plain(8.0 / 2.8), "2.86");
    }
}
