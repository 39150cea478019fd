//! Instructions that exit as a whole, told apart by their bytes: for a processor that saves no next RIP.

#![forbid(unsafe_code)]

/// What exited, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) kind: Kind,
    /// In bytes, prefixes included.
    pub(crate) length: u8,
}

/// The instructions that this hypervisor lets exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hlt,
    Vmmcall,
    Cpuid,
    Rdmsr,
    Wrmsr,
    /// MOV from a control register.
    ReadControl(ControlMove),
    /// MOV to a control register.
    WriteControl(ControlMove),
}

/// The operands of a MOV to or from a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlMove {
    /// 0 to 15.
    pub(crate) control: u8,
    /// Index of the general-purpose register, in the order of their encoding.
    pub(crate) general: u8,
}

/// The instruction that `bytes` start with, in 64-bit mode; `None` if it is none of [`Kind`] or the bytes end before it.
pub(crate) fn decode(bytes: &[u8]) -> Option<Instruction> {
    const LONGEST: usize = 15;
    let mut lock = false;
    let mut rex = 0;
    let mut rest = bytes.get(..bytes.len().min(LONGEST))?;
    let opcode = loop {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        match byte {
            0xf0 => lock = true,
            // Operand size, address size, segments and repeats mean nothing to any of these. A REX prefix counts only where
            // it stands last.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3 => rex = 0,
            0x40..=0x4f => rex = byte,
            _ => break byte,
        }
    };
    let kind = match opcode {
        0xf4 => Kind::Hlt,
        0x0f => {
            let (&second, behind) = rest.split_first()?;
            rest = behind;
            match second {
                0xa2 => Kind::Cpuid,
                0x30 => Kind::Wrmsr,
                0x32 => Kind::Rdmsr,
                0x01 => match rest {
                    [0xd9, behind @ ..] => {
                        rest = behind;
                        Kind::Vmmcall
                    }
                    _ => return None,
                },
                0x20 | 0x22 => {
                    let (&operands, behind) = rest.split_first()?;
                    rest = behind;
                    let operands = control_move(operands, rex, lock);
                    if second == 0x20 {
                        Kind::ReadControl(operands)
                    } else {
                        Kind::WriteControl(operands)
                    }
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    let length = u8::try_from(bytes.len().min(LONGEST) - rest.len()).ok()?;
    Some(Instruction { kind, length })
}

/// The ModRM byte widened by REX.R and REX.B; its mode field is ignored. A LOCK prefix is AMD's other way to name CR8 (APM
/// Vol. 3, MOV CRn).
fn control_move(operands: u8, rex: u8, lock: bool) -> ControlMove {
    let extension = if lock { 8 } else { (rex & 0b0100) << 1 };
    ControlMove {
        control: operands >> 3 & 7 | extension,
        general: operands & 7 | (rex & 0b0001) << 3,
    }
}
