//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Build, boot and check the vlapic crates.
///
/// Progress and logs go to stderr, results to stdout.
/// Exit status: 0 = all passed, 1 = something failed, 2 = wrong usage or something missing on this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub(crate) struct Cli {
    /// Print the result as one JSON document on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the upcall story on emulated VT-x and SVM machines and on AVIC, as one table
    ///
    /// Fetches Bochs and QEMU if the machine has none, builds the bare-metal image, boots it on both and
    /// judges what the guests saw. AVIC, which no emulator has, is a software model of the processor;
    /// so is the rest where its emulator cannot be had. The table says which.
    Demo(DemoArgs),
    /// Run every check: fmt, clippy, doc, tests, packaging, and the image on the emulators
    ///
    /// The last line reads `N passed, N failed`, with `, N skipped` where something could not run;
    /// each skip is named before it.
    Test(TestArgs),
    /// Run the bare-metal image on one machine and report each of its cases
    Hil(HilArgs),
    /// Write the bare-metal image to target/hil/hil.img, ready for a USB stick
    ///
    /// The stick boots on a BIOS or UEFI PC (Secure Boot off) and uses all its CPUs. What it is to run
    /// is fixed when the image is written: say it here.
    Image(ImageArgs),
    /// Hold the local APIC of ours against one that nobody here wrote
    ///
    /// The same operations are done to both, and everything readable is compared after each. What is
    /// known to differ is a table, one row each with its reason; anything else fails.
    Oracle(OracleArgs),
    /// Write all 2^32 low words of ICR, for both vendors in both modes, and hold them to the manuals
    ///
    /// A few minutes on two CPUs. The other spaces are smaller and are tests (`exhaustive_*`).
    Exhaustive,
    /// Read the machine code of the interrupt path: no panic, the expected code, its size and stack
    ///
    /// Every entry point is built as a user's hypervisor would have it. None may reach a panic, a
    /// formatter or an allocator; the hottest have their expected code in tests/codegen/expected.
    Codegen(CodegenArgs),
    /// Measure what the drivers cost, beside floors and peers, and print one table
    ///
    /// Ours, the floor and the peer of each row take turns in short chunks, so that a busy machine disturbs all of
    /// them; a figure is the median. Written to target/bench/ as well.
    Bench(BenchArgs),
    /// Feed the drivers hostile input: operations, scribbled pages, made-up states, exits that say anything
    ///
    /// Coverage-guided, by libFuzzer, on the stock compiler; two targets at a time. What is found stays in
    /// target/fuzz/corpus/ for the next run; an input that fails is written to target/fuzz/findings/.
    Fuzz(FuzzArgs),
    /// Fetch the emulators the other commands use, without root
    ///
    /// Bochs is looked for on PATH (2.8 or newer) and else unpacked under target/tools/.
    Setup(SetupArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Do not look for emulators: run the whole story on the software silicon models
    #[arg(long)]
    pub(crate) model: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only the stages whose name contains this text (see --list)
    #[arg(long, value_name = "SUBSTR")]
    pub(crate) stage: Option<String>,

    /// List the stages and exit
    #[arg(long)]
    pub(crate) list: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HilArgs {
    /// Where the image runs
    #[arg(long, value_enum, default_value_t = Machine::Bochs)]
    pub(crate) machine: Machine,

    /// The serial line of a real machine, e.g. /dev/ttyUSB0 (115200 8N1); only with --machine metal
    #[arg(long, value_name = "DEV", required_if_eq("machine", "metal"))]
    pub(crate) serial: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) selection: Selection,

    /// List the cases of the image and exit
    #[arg(long)]
    pub(crate) list: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Only the cases whose name contains this text
    #[arg(long, value_name = "SUBSTR", value_parser = one_word)]
    pub(crate) case: Option<String>,

    /// I/O port of the serial line, where the PC has it on a card and not at COM1 (0x3f8)
    #[arg(long, value_name = "PORT", value_parser = io_port)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct OracleArgs {
    /// Which; without it, every one that this machine has
    #[command(subcommand)]
    pub(crate) oracle: Option<Oracle>,

    /// How many operations of each oracle, instead of its own choice
    #[arg(long = "ops", value_name = "N", global = true)]
    pub(crate) operations: Option<u64>,

    /// Where the sequence begins; the same seed is the same sequence, and without one it is a fresh one
    #[arg(long, value_name = "S", global = true)]
    pub(crate) seed: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Oracle {
    /// The in-kernel local APIC of Linux, through /dev/kvm
    Kvm,
    /// The APICv of Bochs against our model of it, with no driver
    ApicvModel,
    /// A guest under the driver on the APICv of Bochs against plain emulation
    ApicvPage,
    /// The local APIC of the machine that the image runs on, without virtualization
    Native(NativeArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct NativeArgs {
    /// Only this machine
    #[arg(long, value_enum)]
    pub(crate) machine: Option<Machine>,

    /// The serial line of a real machine, booted from `cargo xtask image --case oracle-native`
    #[arg(long, value_name = "DEV", required_if_eq("machine", "metal"))]
    pub(crate) serial: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CodegenArgs {
    /// Take the code as it is now for the expected code
    #[arg(long)]
    pub(crate) bless: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Only the rows whose identifier contains this text (see --list)
    #[arg(long, value_name = "SUBSTR", default_value = "")]
    pub(crate) filter: String,

    /// List the rows and exit
    #[arg(long)]
    pub(crate) list: bool,

    /// Keep the run under this name in target/bench/
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    pub(crate) save: Option<String>,

    /// Show the change since the run kept under this name; `last` is the latest one
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    pub(crate) against: Option<String>,

    /// How long to stay on one row
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    pub(crate) budget: u64,

    /// Write the run into docs/performance.md, and the plot beside it
    #[arg(long, conflicts_with_all = ["filter", "list"])]
    pub(crate) document: bool,

    /// Count instructions and write them to tests/bench/instructions.json, to be committed; times nothing
    #[arg(long, conflicts_with_all = ["save", "against", "filter", "list"])]
    pub(crate) bless: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Only this target: operations, equivalence, scribble, import, vmx or svm
    #[arg(long, value_name = "T")]
    pub(crate) target: Option<String>,

    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(crate) seconds: u64,

    /// Do not run: make the committed corpus anew from what runs have found, as small as covers the same
    #[arg(long)]
    pub(crate) minimise: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// Fetch QEMU as well, if it is not on PATH
    #[arg(long)]
    pub(crate) qemu: bool,
}

/// What the image is told to do.
#[derive(Clone, Debug, Args)]
pub(crate) struct Selection {
    /// CPUs of the machine; the image brings all of them up
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,

    /// Only the cases whose name contains this text
    #[arg(long, value_name = "SUBSTR", value_parser = one_word)]
    pub(crate) case: Option<String>,
}

/// When a run is given up.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Give up a run of the image after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,

    /// Give up when the image has been silent for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub(crate) stall: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Machine {
    /// Bochs: VT-x with virtual-interrupt delivery and posted interrupts, fully emulated
    Bochs,
    /// QEMU, fully emulated (TCG): SVM with nested paging; no AVIC, no VT-x
    #[value(alias = "qemu")]
    QemuSvm,
    /// QEMU on KVM with nested VT-x or SVM, whichever the host has and offers
    Kvm,
    /// A real PC booted from the USB image, read over its serial line
    Metal,
}

impl Machine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bochs => "bochs",
            Self::QemuSvm => "qemu-svm",
            Self::Kvm => "kvm",
            Self::Metal => "metal",
        }
    }
}

impl Machine {
    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Bochs => "Bochs",
            Self::QemuSvm => "QEMU",
            Self::Kvm => "QEMU on KVM",
            Self::Metal => "a real machine",
        }
    }
}

/// The image splits its command line at spaces.
fn one_word(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && c != '=';
    if text.is_empty() || !text.chars().all(plain) {
        return Err("a case name is one word of printable ASCII without '='".to_owned());
    }
    Ok(text.to_owned())
}

/// A run's name becomes a file's.
fn file_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(plain) {
        return Err("a name is letters, digits, '-' and '_'".to_owned());
    }
    Ok(text.to_owned())
}

/// Decimal or, as I/O ports are mostly written, with 0x before it.
fn io_port(text: &str) -> Result<u16, String> {
    let port = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    port.map_err(|_| "an I/O port is a number up to 0xffff, e.g. 0x2f8".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, Machine, io_port, one_word};

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn metal_needs_a_serial_line() {
        assert!(Cli::try_parse_from(["xtask", "hil", "--machine", "metal"]).is_err());
        let whole = ["xtask", "hil", "--machine", "metal", "--serial", "/dev/ttyS0"];
        assert!(Cli::try_parse_from(whole).is_ok());
    }

    #[test]
    fn qemu_for_short() {
        for name in ["qemu-svm", "qemu"] {
            let parsed = Cli::try_parse_from(["xtask", "hil", "--machine", name]).unwrap();
            let Command::Hil(arguments) = parsed.command else { unreachable!("that command") };
            assert_eq!(arguments.machine, Machine::QemuSvm);
        }
    }

    #[test]
    fn case_is_one_word() {
        assert!(one_word("upcall").is_ok());
        assert!(one_word("").is_err());
        assert!(one_word("two words").is_err());
        assert!(one_word("a=b").is_err());
    }

    #[test]
    fn ports_are_hexadecimal_or_decimal() {
        assert_eq!(io_port("0x2f8"), Ok(0x2f8));
        assert_eq!(io_port("760"), Ok(760));
        assert!(io_port("0x12345").is_err());
        assert!(io_port("COM2").is_err());
    }
}
