//! A line of the table: an operation, those that do it, and what it must reach.

use serde::Serialize;

use crate::contender::Contender;

/// The guest's APIC mode that an operation is done in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    XApic,
    X2Apic,
    /// The operation does not know of modes.
    #[serde(rename = "-")]
    None,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::XApic => "xapic",
            Self::X2Apic => "x2apic",
            Self::None => "-",
        }
    }
}

/// What is measured and against what.
pub(crate) struct Row {
    about: About,
    make: Box<dyn Fn() -> Contenders>,
}

/// What is said of a row before it is measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    id: String,
    group: &'static str,
    what: String,
    mode: Mode,
    /// The most that ours may cost, as a multiple of the floor.
    of_floor: Option<f64>,
    /// What the peer leaves out of the operation.
    peer_lacks: Option<&'static str>,
    /// Its instructions are counted and held to the committed number.
    gated: bool,
    /// Where the row is a point of a curve over the number of vCPUs: which, and how many.
    curve: Option<&'static str>,
    vcpus: Option<u32>,
}

/// Those that are measured in a row, in turns.
pub(crate) struct Contenders {
    pub(crate) ours: Contender,
    pub(crate) floor: Option<Contender>,
    pub(crate) peer: Option<Contender>,
    /// The kernel's, by an ioctl.
    pub(crate) kernel: Option<Contender>,
}

impl Contenders {
    pub(crate) fn ours(ours: Contender) -> Self {
        Self { ours, floor: None, peer: None, kernel: None }
    }

    pub(crate) fn floor(mut self, floor: Contender) -> Self {
        self.floor = Some(floor);
        self
    }

    pub(crate) fn peer(mut self, peer: Contender) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Where there is a kernel to ask.
    pub(crate) fn kernel(mut self, kernel: Option<Contender>) -> Self {
        self.kernel = kernel;
        self
    }
}

impl Row {
    /// `group` and `name` are words with dashes, `what` is for people.
    pub(crate) fn new(
        group: &'static str,
        name: &str,
        mode: Mode,
        what: impl Into<String>,
        make: impl Fn() -> Contenders + 'static,
    ) -> Self {
        let id = match mode {
            Mode::None => format!("{group}/{name}"),
            mode => format!("{group}/{name}/{}", mode.name()),
        };
        let what = match group {
            "intel" => format!("Intel: {}", what.into()),
            "amd" => format!("AMD: {}", what.into()),
            _ => what.into(),
        };
        let about = About {
            id,
            group,
            what,
            mode,
            of_floor: None,
            peer_lacks: None,
            gated: true,
            curve: None,
            vcpus: None,
        };
        Self { about, make: Box::new(make) }
    }

    /// At most this multiple of the floor.
    pub(crate) fn of_floor(mut self, most: f64) -> Self {
        self.about.of_floor = Some(most);
        self
    }

    /// The peer does less than ours: what it leaves out.
    pub(crate) fn peer_lacks(mut self, what: &'static str) -> Self {
        self.about.peer_lacks = Some(what);
        self
    }

    /// A point of the curve `name` over the number of vCPUs.
    pub(crate) fn point(mut self, name: &'static str, vcpus: u32) -> Self {
        self.about.curve = Some(name);
        self.about.vcpus = Some(vcpus);
        self
    }

    /// Not ours, or not code whose instructions mean much.
    pub(crate) fn not_gated(mut self) -> Self {
        self.about.gated = false;
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.about.id
    }

    pub(crate) fn gated(&self) -> bool {
        self.about.gated
    }

    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    pub(crate) fn contenders(&self) -> Contenders {
        (self.make)()
    }
}
