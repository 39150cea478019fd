//! Prints the upcall story on a silicon model, one record a row, as the bare-metal image does.
//!
//! The argument is the processor: `apicv`, `svm` or `avic`.

use std::process::ExitCode;

use vlapic_tests::demo::{Processor, upcall_story};

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| "apicv".to_owned());
    let Some(processor) = Processor::named(&name) else {
        eprintln!("no processor '{name}': apicv, svm or avic");
        return ExitCode::from(2);
    };
    for row in upcall_story(processor) {
        println!("{row}");
    }
    ExitCode::SUCCESS
}
