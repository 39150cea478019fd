//! The bare-metal image: a small hypervisor over the `vlapic` crates, and its cases.
//!
//! It prints one record a line on the serial port; `cargo xtask hil` builds it, runs it and reads the records.
#![no_std]
#![no_main]

mod boot;
mod cases;
mod guest;
mod hypervisor;
mod instruction;
mod machine;
mod sequences;
mod svm;
mod vmx;

use machine::command_line::CommandLine;
use machine::self_check::{CASES, Case, LAST_CASES, Outcome};
use machine::serial::COM1;
use machine::{acpi, console, exit, identity, paging, smp};

/// The boot code calls this on the first CPU: 64-bit mode, interrupts off, the first 4 GiB mapped.
extern "C" fn boot_processor(magic: u32, information: u32) -> ! {
    let information =
        boot::BootInformation { loader: boot::Loader::from_magic(magic), address: information };
    identity::detect();
    let line = CommandLine::read(information.command_line());
    // `serial=0x..` names the I/O port of a serial card where a machine has no COM1.
    let serial = line.number("serial").and_then(|port| u16::try_from(port).ok());
    console::initialise(serial.unwrap_or(COM1));
    smp::initialise_first();
    paging::extend();
    let ids = acpi::apic_ids(information.acpi_root());
    smp::start_others(ids.as_ref());

    println!(
        "HIL-BEGIN version=1 machine={} vendor={} cpus={} features={}",
        identity::machine().name(),
        identity::vendor(),
        smp::cpu_count(),
        identity::Features,
    );
    log!(
        "loaded by {}, cpus from {}",
        information.loader.name(),
        if ids.is_some() { "acpi" } else { "broadcast" }
    );
    exit::exit(run(&line))
}

/// Runs the cases which the command line asks for; the exit code.
fn run(line: &CommandLine) -> u32 {
    let wanted = |case: &&Case| line.value("case").is_none_or(|part| case.name.contains(part));
    let mut failed = u32::from(!cases::run(line));
    let groups = [
        CASES,
        vmx::smoke::CASES,
        svm::smoke::CASES,
        sequences::CASES,
        LAST_CASES,
        cases::LAST_CASES,
        cases::native::CASES,
    ];
    for case in groups.into_iter().flatten().filter(wanted) {
        if line.has("list") {
            println!("HIL-LIST case={}", case.name);
            continue;
        }
        println!("HIL-RUN case={} level=none mode=none", case.name);
        let (result, note) = match (case.run)(line) {
            Outcome::Pass => ("pass", ""),
            Outcome::Skip(reason) => ("skip", reason),
            Outcome::Fail(reason) => ("fail", reason),
        };
        failed |= u32::from(result == "fail");
        println!("HIL-CASE case={} level=none mode=none result={result} note={note}", case.name);
    }
    failed
}
