//! The image's decoder of instructions that exit as a whole, against what the assembler made of them.
#![cfg(target_arch = "x86_64")]

#[path = "../hil/src/instruction/privileged.rs"]
mod privileged;

use privileged::{ControlMove, Instruction, Kind, decode};

/// The bytes that the assembler makes of an instruction, and one NOP behind it that must not be counted.
macro_rules! assembled {
    ($text:literal) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: takes the addresses of labels and jumps over the instruction, which is never executed.
        unsafe {
            core::arch::asm!(
                "lea {start}, [rip + 2f]",
                "lea {end}, [rip + 3f]",
                "jmp 4f",
                "2:",
                $text,
                "3:",
                "nop",
                "4:",
                start = out(reg) start,
                end = out(reg) end,
            );
        }
        let length = end.addr() - start.addr();
        // SAFETY: the code between the labels, and the NOP after it, are readable.
        (unsafe { std::slice::from_raw_parts(start, length + 1) }, length)
    }};
}

macro_rules! decodes {
    ($($text:literal => $kind:expr;)*) => {
        $({
            let (bytes, length) = assembled!($text);
            let right = Instruction { kind: $kind, length: length as u8 };
            assert_eq!(decode(bytes), Some(right), $text);
            for short in 0..length {
                assert_eq!(decode(&bytes[..short]), None, "{} cut to {short}", $text);
            }
        })*
    };
}

const fn operands(control: u8, general: u8) -> ControlMove {
    ControlMove { control, general }
}

#[test]
fn each_kind_and_its_length() {
    decodes! {
        "hlt" => Kind::Hlt;
        "vmmcall" => Kind::Vmmcall;
        "cpuid" => Kind::Cpuid;
        "rdmsr" => Kind::Rdmsr;
        "wrmsr" => Kind::Wrmsr;
        "mov rax, cr8" => Kind::ReadControl(operands(8, 0));
        "mov r11, cr8" => Kind::ReadControl(operands(8, 11));
        "mov cr8, rdi" => Kind::WriteControl(operands(8, 7));
        "mov cr8, r15" => Kind::WriteControl(operands(8, 15));
        "mov cr0, rcx" => Kind::WriteControl(operands(0, 1));
        "mov r9, cr4" => Kind::ReadControl(operands(4, 9));
    }
}

#[test]
fn prefixes_count_and_mean_little() {
    let length = |bytes: &[u8]| decode(bytes).map(|i| (i.kind, i.length));
    assert_eq!(length(&[0xf3, 0xf4]), Some((Kind::Hlt, 2)));
    assert_eq!(length(&[0x66, 0x48, 0x0f, 0x30]), Some((Kind::Wrmsr, 4)));
    // LOCK names CR8 as REX.R does; a REX prefix before another prefix is none.
    let cr8 = Kind::WriteControl(operands(8, 2));
    assert_eq!(length(&[0xf0, 0x0f, 0x22, 0xc2]), Some((cr8, 4)));
    let cr0 = Kind::WriteControl(operands(0, 2));
    assert_eq!(length(&[0x44, 0x66, 0x0f, 0x22, 0xc2]), Some((cr0, 5)));
}

#[test]
fn other_instructions_are_refused() {
    for bytes in [&[0x90][..], &[0x0f, 0x01, 0xc1], &[0x0f, 0x0b], &[0x8b, 0x00], &[]] {
        assert_eq!(decode(bytes), None, "{bytes:02x?}");
    }
    assert_eq!(decode(&[0x66; 20]), None);
}
