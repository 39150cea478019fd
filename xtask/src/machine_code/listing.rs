//! A function as text that stays the same while its code does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iced_x86::{Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, Register};

use super::graph::Graph;
use super::library::{Callee, Function, Library};

/// The code of `entry` and of all it calls. Addresses do not show: places in a function are numbered
/// labels, other functions have their names.
pub(crate) fn listing(library: &Library, entry: u64) -> String {
    let reach = Graph::new(library).reach(entry);
    let functions = reach.functions.iter().filter_map(|address| library.functions.get(address));
    let (own, called): (Vec<_>, Vec<_>) = functions.partition(|function| function.address == entry);
    let mut texts: Vec<String> = own.into_iter().map(|own| one(library, own)).collect();
    let mut called: Vec<String> = called
        .into_iter()
        .map(|function| format!("\n{}:\n{}", function.name, one(library, function)))
        .collect();
    // By text, not by address, which moves with code that has nothing to do with this.
    called.sort();
    texts.append(&mut called);
    texts.concat()
}

fn one(library: &Library, function: &Function) -> String {
    let labels = labels(library, function);
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_rip_relative_addresses(false);
    let mut text = String::new();
    for instruction in &function.code {
        if let Some(label) = labels.get(&instruction.ip()) {
            let _ = writeln!(text, "{label}:");
        }
        // Padding.
        if matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
            continue;
        }
        let line = line(library, function, instruction, &labels, &mut formatter);
        let _ = writeln!(text, "    {line}");
    }
    text
}

fn line(
    library: &Library,
    function: &Function,
    instruction: &Instruction,
    labels: &BTreeMap<u64, String>,
    formatter: &mut IntelFormatter,
) -> String {
    let mut mnemonic = String::new();
    formatter.format_mnemonic(instruction, &mut mnemonic);
    if let Some(callee) = library.callee(function, instruction) {
        let name = match callee {
            Callee::Function(address) => {
                library.functions.get(&address).map_or("?", |function| &function.name).to_owned()
            }
            Callee::Import(name) => name,
            Callee::Unknown => "?".to_owned(),
        };
        return format!("{mnemonic} {name}");
    }
    if instruction.op0_kind() == OpKind::NearBranch64 {
        let label = labels.get(&instruction.near_branch_target());
        return format!("{mnemonic} {}", label.map_or("?", String::as_str));
    }
    if instruction.memory_base() == Register::RIP {
        // A constant or a table: what stands there is not shown.
        let mut moved = *instruction;
        moved.set_memory_displacement64(instruction.next_ip());
        let mut text = String::new();
        formatter.format(&moved, &mut text);
        return text;
    }
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

/// The places that a branch of the function leads to, in order.
fn labels(library: &Library, function: &Function) -> BTreeMap<u64, String> {
    let mut labels: BTreeMap<u64, String> = function
        .code
        .iter()
        .filter(|instruction| instruction.op0_kind() == OpKind::NearBranch64)
        .filter(|instruction| library.callee(function, instruction).is_none())
        .map(|instruction| (instruction.near_branch_target(), String::new()))
        .collect();
    for (number, label) in labels.values_mut().enumerate() {
        *label = format!("L{}", number + 1);
    }
    labels
}
