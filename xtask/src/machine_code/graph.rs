//! What an entry point can reach, and how much stack that takes.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::library::{Callee, Function, Library};

/// What must not be reachable, as parts of names.
const FORBIDDEN: [&str; 9] = [
    "core::panicking",
    "core::fmt",
    "core::option::unwrap_failed",
    "core::option::expect_failed",
    "core::result::unwrap_failed",
    "core::slice::index",
    "panic",
    "alloc",
    "_fail",
];

/// What the compiler may call in every environment (the documentation of `core`).
const IMPORTS: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// The call graph of a library.
#[derive(Debug)]
pub(crate) struct Graph<'l> {
    library: &'l Library,
}

/// What is under one entry point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// The addresses of the functions, the entry point's own included.
    pub(crate) functions: BTreeSet<u64>,
    /// Ways to what must not be there: names from the entry point on.
    pub(crate) forbidden: Vec<String>,
}

impl<'l> Graph<'l> {
    pub(crate) const fn new(library: &'l Library) -> Self {
        Self { library }
    }

    /// All that `entry` can reach.
    pub(crate) fn reach(&self, entry: u64) -> Reach {
        let mut reach = Reach::default();
        let mut from = BTreeMap::new();
        let mut left = vec![entry];
        while let Some(address) = left.pop() {
            let Some(function) = self.library.functions.get(&address) else { continue };
            if !reach.functions.insert(address) {
                continue;
            }
            if FORBIDDEN.iter().any(|name| function.name.contains(name)) {
                reach.forbidden.push(self.way(&from, address, None));
                continue;
            }
            for (_, callee) in self.library.callees(function) {
                match callee {
                    Callee::Function(next) => {
                        from.entry(next).or_insert(address);
                        left.push(next);
                    }
                    Callee::Import(name) if IMPORTS.contains(&name.as_str()) => {}
                    Callee::Import(name) => {
                        reach.forbidden.push(self.way(&from, address, Some(&name)));
                    }
                    Callee::Unknown => {
                        reach.forbidden.push(self.way(&from, address, Some("an unknown place")));
                    }
                }
            }
        }
        reach.forbidden.dedup();
        reach
    }

    /// The names from the entry point to `address`, and `last`.
    fn way(&self, from: &BTreeMap<u64, u64>, address: u64, last: Option<&str>) -> String {
        let mut names: Vec<&str> = last.into_iter().collect();
        let mut at = Some(address);
        // A way longer than there are functions would be a circle.
        for _ in 0..=self.library.functions.len() {
            let Some(address) = at else { break };
            names.extend(self.library.functions.get(&address).map(|function| &*function.name));
            at = from.get(&address).copied();
        }
        names.reverse();
        names.join(" -> ")
    }

    /// The most bytes of stack that are in use below the caller's at any moment of a call of
    /// `entry`, its return address included. `None` if it may call itself, or what it calls cannot
    /// be seen.
    pub(crate) fn stack(&self, entry: u64) -> Option<u64> {
        self.stack_under(entry, &mut Vec::new(), &mut BTreeMap::new())
    }

    fn stack_under(
        &self,
        address: u64,
        above: &mut Vec<u64>,
        known: &mut BTreeMap<u64, Option<u64>>,
    ) -> Option<u64> {
        if above.contains(&address) {
            return None;
        }
        if let Some(known) = known.get(&address) {
            return *known;
        }
        above.push(address);
        let deepest = self.library.functions.get(&address).and_then(|function| {
            let frame = Frame::of(function);
            let mut deepest = frame.deepest;
            for (at, callee) in self.library.callees(function) {
                let below = match callee {
                    Callee::Function(next) => self.stack_under(next, above, known)?,
                    // Copies need no more than a return address and a few registers.
                    Callee::Import(_) => 64,
                    Callee::Unknown => return None,
                };
                deepest = deepest.max(frame.at(at) + below);
            }
            Some(deepest)
        });
        above.pop();
        known.insert(address, deepest);
        deepest
    }
}

/// How much stack a function uses at each of its instructions, without its return address.
struct Frame {
    before: BTreeMap<u64, u64>,
    /// With the return address.
    deepest: u64,
}

const RETURN_ADDRESS: u64 = 8;

impl Frame {
    fn of(function: &Function) -> Self {
        let code: BTreeMap<u64, &Instruction> =
            function.code.iter().map(|instruction| (instruction.ip(), instruction)).collect();
        let mut frame = Self { before: BTreeMap::new(), deepest: RETURN_ADDRESS };
        let mut left = vec![(function.address, 0)];
        let mut table = 0;
        while let Some((address, used)) = left.pop() {
            table = frame.walk(&code, address, used, &mut left).unwrap_or(table);
        }
        // What no branch leads to is reached through the table of a `match`.
        for address in code.keys() {
            if !frame.before.contains_key(address) {
                let mut left = vec![(*address, table)];
                while let Some((address, used)) = left.pop() {
                    let _ = frame.walk(&code, address, used, &mut left);
                }
            }
        }
        frame
    }

    /// The stack in use when the instruction at `address` calls, or jumps to, another function:
    /// the callee's own return address is in the callee's count, and a jump leaves ours to it.
    fn at(&self, address: u64) -> u64 {
        self.before.get(&address).copied().unwrap_or_default() + RETURN_ADDRESS
    }

    /// Goes on from `address` until the code ends or joins what was walked. Says how much stack an
    /// indirect jump found in use.
    fn walk(
        &mut self,
        code: &BTreeMap<u64, &Instruction>,
        mut address: u64,
        mut used: u64,
        left: &mut Vec<(u64, u64)>,
    ) -> Option<u64> {
        while let Some(instruction) = code.get(&address) {
            if self.before.insert(address, used).is_some() {
                return None;
            }
            used = used.saturating_add_signed(growth(instruction));
            self.deepest = self.deepest.max(used + RETURN_ADDRESS);
            match instruction.flow_control() {
                FlowControl::ConditionalBranch => {
                    left.push((instruction.near_branch_target(), used));
                }
                FlowControl::UnconditionalBranch => {
                    left.push((instruction.near_branch_target(), used));
                    return None;
                }
                FlowControl::IndirectBranch => return Some(used),
                FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => {
                    return None;
                }
                _ => {}
            }
            address = instruction.next_ip();
        }
        None
    }
}

/// By how many bytes `instruction` makes the stack longer, its own callees aside.
fn growth(instruction: &Instruction) -> i64 {
    let on_pointer =
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq => {
            -i64::from(instruction.stack_pointer_increment())
        }
        Mnemonic::Sub if on_pointer => instruction.immediate(1) as i64,
        Mnemonic::Add if on_pointer => -(instruction.immediate(1) as i64),
        // An alignment takes at most what it clears.
        Mnemonic::And if on_pointer => !(instruction.immediate(1) as i64),
        _ if instruction.code() == Code::Leaveq => -8,
        _ => 0,
    }
}
