//! A shared library's functions and where its calls lead.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind, SymbolSection};

/// A function: its name without the compiler's hash, and its code.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) code: Vec<Instruction>,
    pub(crate) bytes: u64,
}

/// The code of a shared library.
#[derive(Debug)]
pub(crate) struct Library {
    /// By address; of several names at one address the first one.
    pub(crate) functions: BTreeMap<u64, Function>,
    /// Exported names and their addresses.
    pub(crate) exports: BTreeMap<String, u64>,
    /// Slots that the dynamic linker fills: by address, what they will point to.
    slots: BTreeMap<u64, Callee>,
}

/// Where a call or a jump out of a function leads.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Callee {
    /// The function at this address.
    Function(u64),
    /// Something outside the library.
    Import(String),
    /// Not to be seen from the instruction.
    Unknown,
}

impl Library {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let data =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = object::File::parse(&*data).context("not an object file")?;
        let mut functions = BTreeMap::new();
        for symbol in file.symbols() {
            let SymbolSection::Section(section) = symbol.section() else { continue };
            if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
                continue;
            }
            let (address, bytes) = (symbol.address(), symbol.size());
            let section = file.section_by_index(section)?;
            let code = section.data_range(address, bytes)?.context("a function without code")?;
            let name = plain(symbol.name()?);
            functions.entry(address).or_insert_with(|| Function {
                name,
                address,
                code: decode(code, address),
                bytes,
            });
        }
        let exports = file
            .dynamic_symbols()
            .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
            .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address())))
            .collect();
        let slots = slots(&file)?;
        Ok(Self { functions, exports, slots })
    }

    /// The function whose code holds `address`.
    pub(crate) fn function_at(&self, address: u64) -> Option<&Function> {
        let (_, function) = self.functions.range(..=address).next_back()?;
        (address < function.address + function.bytes).then_some(function)
    }

    /// What the instructions of `function` call or jump to outside of it, with the address of each
    /// such instruction.
    pub(crate) fn callees<'f>(
        &'f self,
        function: &'f Function,
    ) -> impl Iterator<Item = (u64, Callee)> + 'f {
        function
            .code
            .iter()
            .filter_map(|instruction| Some((instruction.ip(), self.callee(function, instruction)?)))
    }

    pub(crate) fn callee(&self, function: &Function, instruction: &Instruction) -> Option<Callee> {
        match instruction.flow_control() {
            FlowControl::Call
            | FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                let own = function.address..function.address + function.bytes;
                (!own.contains(&target) || instruction.is_call_near())
                    .then(|| self.callee_at(target))
            }
            FlowControl::IndirectCall if instruction.op0_kind() == OpKind::Register => {
                Some(self.through_register(function, instruction))
            }
            FlowControl::IndirectCall => Some(self.through_slot(instruction)),
            // A table of a `match` jumps within the function; a tail call goes through a slot.
            FlowControl::IndirectBranch if instruction.memory_base() == Register::RIP => {
                Some(self.through_slot(instruction))
            }
            _ => None,
        }
    }

    fn callee_at(&self, address: u64) -> Callee {
        match self.function_at(address) {
            Some(function) => Callee::Function(function.address),
            None => Callee::Unknown,
        }
    }

    /// A register whose last value, in the order of the code, comes from a slot: the compiler keeps
    /// the address of what it calls in a loop.
    fn through_register(&self, function: &Function, call: &Instruction) -> Callee {
        let register = call.op0_register();
        let writes = |instruction: &&Instruction| {
            let keeps = [Mnemonic::Push, Mnemonic::Pop, Mnemonic::Call, Mnemonic::Cmp];
            instruction.op0_kind() == OpKind::Register
                && instruction.op0_register().full_register() == register
                && !keeps.contains(&instruction.mnemonic())
        };
        let before = function.code.iter().take_while(|instruction| instruction.ip() < call.ip());
        let last = before.filter(writes).last();
        let load = last.filter(|last| last.code() == Code::Mov_r64_rm64);
        load.map_or(Callee::Unknown, |load| self.slot_of(load, load.op1_kind()))
    }

    fn through_slot(&self, instruction: &Instruction) -> Callee {
        self.slot_of(instruction, instruction.op0_kind())
    }

    fn slot_of(&self, instruction: &Instruction, operand: OpKind) -> Callee {
        let fixed = operand == OpKind::Memory && instruction.memory_base() == Register::RIP;
        let slot = fixed.then(|| instruction.ip_rel_memory_address());
        slot.and_then(|slot| self.slots.get(&slot).cloned()).unwrap_or(Callee::Unknown)
    }
}

fn decode(code: &[u8], address: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter().collect()
}

fn slots(file: &object::File<'_>) -> Result<BTreeMap<u64, Callee>> {
    let mut slots = BTreeMap::new();
    let names = file.dynamic_symbol_table();
    for (address, relocation) in file.dynamic_relocations().into_iter().flatten() {
        let callee = match relocation.target() {
            RelocationTarget::Symbol(index) => {
                let symbol = names
                    .as_ref()
                    .map(|table| object::ObjectSymbolTable::symbol_by_index(table, index));
                let Some(symbol) = symbol.transpose()? else { continue };
                if symbol.is_definition() {
                    Callee::Function(symbol.address())
                } else {
                    Callee::Import(symbol.name()?.to_owned())
                }
            }
            // Relative: the addend is the address.
            _ => Callee::Function(relocation.addend() as u64),
        };
        slots.insert(address, callee);
    }
    Ok(slots)
}

/// The name a person wrote.
fn plain(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}
