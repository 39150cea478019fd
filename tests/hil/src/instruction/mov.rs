//! Decodes the MOV forms with which a guest reads and writes a device in memory.
//!
//! An EPT violation, and an APIC-access exit, say where the guest went but not which value it wrote or which register waits
//! for the answer. The instruction itself says so. What compilers emit for a volatile access is covered; string moves and
//! read-modify-write forms are refused.

#![forbid(unsafe_code)]

/// The general-purpose registers in the order of their encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
pub(crate) type Registers = [u64; 16];

/// What one instruction asks of memory, in 64-bit mode.
///
/// `bytes` starts at the instruction; up to 15 bytes are looked at (SDM Vol. 2A 2.3.11). The address itself is not computed,
/// since the exit gives it.
pub(crate) fn decode(bytes: &[u8], registers: &Registers) -> Result<Access, DecodeError> {
    let mut code = Code { bytes, at: 0 };
    let (prefixes, opcode) = Prefixes::read(&mut code)?;
    let operand = prefixes.operand_width();
    match opcode {
        0x88 | 0x89 => {
            let width = if opcode == 0x88 { Width::Byte } else { operand };
            let register = prefixes.register(code.memory_operand()?);
            let value = Place::of(register, width, &prefixes).read(registers);
            code.access(Direction::Store { value }, width)
        }
        0x8a | 0x8b => {
            let width = if opcode == 0x8a { Width::Byte } else { operand };
            let register = prefixes.register(code.memory_operand()?);
            let place = Place::of(register, width, &prefixes);
            code.access(Direction::Load { place, sign: false }, width)
        }
        0xa0..=0xa3 => {
            let width = if opcode & 1 == 0 { Width::Byte } else { operand };
            code.skip(if prefixes.address_size { 4 } else { 8 })?;
            let place = Place { register: 0, high_byte: false, width };
            if opcode < 0xa2 {
                code.access(Direction::Load { place, sign: false }, width)
            } else {
                code.access(Direction::Store { value: place.read(registers) }, width)
            }
        }
        0xc6 | 0xc7 => {
            let width = if opcode == 0xc6 { Width::Byte } else { operand };
            if code.memory_operand()? != 0 {
                return Err(DecodeError::Unsupported);
            }
            let value = code.immediate(width)?;
            code.access(Direction::Store { value }, width)
        }
        0x63 if prefixes.wide() => code.extending_load(&prefixes, Width::Dword, true),
        0x0f => match code.next()? {
            0xb6 => code.extending_load(&prefixes, Width::Byte, false),
            0xb7 => code.extending_load(&prefixes, Width::Word, false),
            0xbe => code.extending_load(&prefixes, Width::Byte, true),
            0xbf => code.extending_load(&prefixes, Width::Word, true),
            _ => Err(DecodeError::Unsupported),
        },
        _ => Err(DecodeError::Unsupported),
    }
}

/// One memory access of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Read or write, and where the data is.
    pub(crate) direction: Direction,
    /// How much memory is touched.
    pub(crate) width: Width,
    /// Bytes of the instruction, to skip it.
    pub(crate) length: u8,
}

impl Access {
    /// Finishes a load: puts `data`, as read from the device, where the instruction wants it. A store changes nothing.
    pub(crate) fn complete(&self, data: u64, registers: &mut Registers) {
        if let Direction::Load { place, sign } = self.direction {
            let data = data & self.width.mask();
            place.write(if sign { self.width.sign_extend(data) } else { data }, registers);
        }
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To memory: this value, already cut to the access width.
    Store {
        /// What the guest wrote.
        value: u64,
    },
    /// From memory to a register.
    Load {
        /// The register, and how much of it is replaced.
        place: Place,
        /// Sign-extended to the width of `place`; zero-extended otherwise.
        sign: bool,
    },
}

/// A register, or the part of it that an operand names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index into [`Registers`].
    pub(crate) register: u8,
    /// AH, CH, DH or BH: bits 15:8.
    pub(crate) high_byte: bool,
    /// How many bytes of the register are named.
    pub(crate) width: Width,
}

impl Place {
    /// Without a REX prefix the byte registers 4 to 7 are AH, CH, DH and BH (SDM Vol. 2A 3.1.1.1).
    fn of(register: u8, width: Width, prefixes: &Prefixes) -> Self {
        if width == Width::Byte && prefixes.rex.is_none() && register >= 4 {
            Self { register: register & 3, high_byte: true, width }
        } else {
            Self { register, high_byte: false, width }
        }
    }

    fn read(self, registers: &Registers) -> u64 {
        let whole = registers.get(usize::from(self.register)).copied().unwrap_or(0);
        (whole >> self.shift()) & self.width.mask()
    }

    /// A 32-bit write clears the upper half, narrower ones keep what they do not name (SDM Vol. 1 3.4.1.1).
    fn write(self, value: u64, registers: &mut Registers) {
        if let Some(whole) = registers.get_mut(usize::from(self.register)) {
            let kept = match self.width {
                Width::Byte | Width::Word => *whole & !(self.width.mask() << self.shift()),
                Width::Dword | Width::Qword => 0,
            };
            *whole = kept | (value & self.width.mask()) << self.shift();
        }
    }

    fn shift(self) -> u32 {
        if self.high_byte { 8 } else { 0 }
    }
}

/// Width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// In bytes.
    pub(crate) fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(self.bytes()))
    }

    fn sign_extend(self, value: u64) -> u64 {
        let sign = self.mask() ^ (self.mask() >> 1);
        if value & sign == 0 { value } else { value | !self.mask() }
    }
}

/// Why an instruction was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum DecodeError {
    /// The bytes end, or 15 are used up, inside the instruction.
    Truncated,
    /// Not one of the plain MOV forms to or from memory.
    Unsupported,
}

/// The prefixes that matter to a MOV.
#[derive(Default)]
struct Prefixes {
    operand_size: bool,
    address_size: bool,
    rex: Option<u8>,
}

impl Prefixes {
    /// Reads prefixes up to and including the opcode's first byte.
    fn read(code: &mut Code<'_>) -> Result<(Self, u8), DecodeError> {
        let mut prefixes = Self::default();
        loop {
            match code.next()? {
                0x66 => prefixes.operand_size = true,
                0x67 => prefixes.address_size = true,
                // Segment overrides change the address, which the exit has already resolved.
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                rex @ 0x40..=0x4f => {
                    prefixes.rex = Some(rex);
                    return Ok((prefixes, code.next()?));
                }
                opcode => return Ok((prefixes, opcode)),
            }
        }
    }

    fn wide(&self) -> bool {
        self.rex.is_some_and(|rex| rex & 0b1000 != 0)
    }

    fn operand_width(&self) -> Width {
        match (self.wide(), self.operand_size) {
            (true, _) => Width::Qword,
            (false, true) => Width::Word,
            (false, false) => Width::Dword,
        }
    }

    /// The reg field widened by REX.R.
    fn register(&self, reg: u8) -> u8 {
        reg | (self.rex.unwrap_or(0) & 0b0100) << 1
    }
}

struct Code<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Code<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        const LONGEST: usize = 15;
        let byte =
            self.bytes.iter().take(LONGEST).nth(self.at).copied().ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        (0..count).try_for_each(|_| self.next().map(drop))
    }

    /// Reads ModRM, SIB and displacement of an operand in memory (SDM Vol. 2A tables 2-2 and 2-3), and gives the reg field.
    /// Register forms are refused.
    fn memory_operand(&mut self) -> Result<u8, DecodeError> {
        let byte = self.next()?;
        let (mode, reg, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
        let base = if mode != 3 && rm == 4 { self.next()? & 7 } else { rm };
        match (mode, base) {
            (0, 5) | (2, _) => self.skip(4)?,
            (0, _) => {}
            (1, _) => self.skip(1)?,
            _ => return Err(DecodeError::Unsupported),
        }
        Ok(reg)
    }

    /// An immediate of at most 4 bytes, sign-extended to `width` and cut to it.
    fn immediate(&mut self, width: Width) -> Result<u64, DecodeError> {
        let encoded = if width == Width::Qword { Width::Dword } else { width };
        let mut value = 0;
        for index in 0..u32::from(encoded.bytes()) {
            value |= u64::from(self.next()?) << (8 * index);
        }
        Ok(encoded.sign_extend(value) & width.mask())
    }

    fn extending_load(
        &mut self,
        prefixes: &Prefixes,
        width: Width,
        sign: bool,
    ) -> Result<Access, DecodeError> {
        let register = prefixes.register(self.memory_operand()?);
        let place = Place { register, high_byte: false, width: prefixes.operand_width() };
        self.access(Direction::Load { place, sign }, width)
    }

    fn access(&self, direction: Direction, width: Width) -> Result<Access, DecodeError> {
        let length = u8::try_from(self.at).map_err(|_| DecodeError::Truncated)?;
        Ok(Access { direction, width, length })
    }
}
