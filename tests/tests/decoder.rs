//! The image's decoder of MOV instructions, against what the assembler made of them.
#![cfg(target_arch = "x86_64")]

#[path = "../hil/src/instruction/mov.rs"]
mod decode;

use decode::{Access, DecodeError, Direction, Registers, decode as decode_bytes};

/// Register `n` holds `n` in its low digit of each byte, and its own pattern in the high ones.
fn registers() -> Registers {
    core::array::from_fn(|n| 0x8070_6050_4030_20f0 + 0x0101_0101_0101_0101 * n as u64)
}

/// The bytes that the assembler makes of an instruction. Two instructions follow it that must not be counted.
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
                "nop",
                "4:",
                start = out(reg) start,
                end = out(reg) end,
            );
        }
        let length = end.addr() - start.addr();
        // SAFETY: the code between the labels, and the two NOPs after it, are readable.
        (unsafe { std::slice::from_raw_parts(start, length + 2) }, length)
    }};
}

fn checked(bytes: &[u8], length: usize) -> Access {
    let access = decode_bytes(bytes, &registers()).expect("a form that is covered");
    assert_eq!(usize::from(access.length), length, "length of {bytes:02x?}");
    for short in 0..length {
        let truncated = decode_bytes(&bytes[..short], &registers());
        assert_eq!(truncated, Err(DecodeError::Truncated), "{bytes:02x?} cut to {short}");
    }
    access
}

/// Checks width and value of stores.
macro_rules! stores {
    ($($text:literal => $width:literal, $value:expr;)*) => {
        $({
            let (bytes, length) = assembled!($text);
            let access = checked(bytes, length);
            assert_eq!(access.width.bytes(), $width, $text);
            assert_eq!(access.direction, Direction::Store { value: $value }, $text);
            let mut after = registers();
            access.complete(u64::MAX, &mut after);
            assert_eq!(after, registers(), "a store changes no register: {}", $text);
        })*
    };
}

/// Checks that a load of the low bytes of `DATA` leaves `value` in register `index` and nothing anywhere else.
macro_rules! loads {
    ($($text:literal => $width:literal, $index:literal, $value:expr;)*) => {
        $({
            let (bytes, length) = assembled!($text);
            let access = checked(bytes, length);
            assert_eq!(access.width.bytes(), $width, $text);
            let mut after = registers();
            access.complete(DATA, &mut after);
            let mut expected = registers();
            expected[$index] = $value;
            assert_eq!(after, expected, $text);
        })*
    };
}

const DATA: u64 = 0xa9b8_c7d6_e5f4_8392;

#[test]
fn stores_give_width_and_value() {
    let r = registers();
    stores! {
        "mov [rdi], eax" => 4, r[0] & 0xffff_ffff;
        "mov [rdi + 0x70], r9d" => 4, r[9] & 0xffff_ffff;
        "mov [rdi + 0x12345], rdx" => 8, r[2];
        "mov [r12], r13" => 8, r[13];
        "mov [r13], ecx" => 4, r[1] & 0xffff_ffff;
        "mov [rbx + r14 * 8], si" => 2, r[6] & 0xffff;
        "mov [rbp + rax * 2 + 4], bl" => 1, r[3] & 0xff;
        "mov [rdi], ah" => 1, r[0] >> 8 & 0xff;
        "mov [rdi], bh" => 1, r[3] >> 8 & 0xff;
        "mov [rdi], sil" => 1, r[6] & 0xff;
        "mov [r8], spl" => 1, r[4] & 0xff;
        "mov [rip + 0x1000], edi" => 4, r[7] & 0xffff_ffff;
        "mov [0xfee000f0 - 0x100000000], edi" => 4, r[7] & 0xffff_ffff;
        "mov dword ptr [rdi + 0x70], 0x1ff" => 4, 0x1ff;
        "mov dword ptr [rip + 0x70], 0xfffffffe" => 4, 0xffff_fffe;
        "mov qword ptr [rdi], -2" => 8, 0xffff_ffff_ffff_fffe;
        "mov word ptr [r15 + rcx], 0x8123" => 2, 0x8123;
        "mov byte ptr [rdi], 0x80" => 1, 0x80;
        "movabs [0xfee000b0], eax" => 4, r[0] & 0xffff_ffff;
        "movabs [0xfee000b0], rax" => 8, r[0];
        "movabs [0xfee000b0], al" => 1, r[0] & 0xff;
        "mov gs:[rdi], eax" => 4, r[0] & 0xffff_ffff;
        "mov [edi], eax" => 4, r[0] & 0xffff_ffff;
    }
}

#[test]
fn loads_end_in_the_right_part_of_a_register() {
    let r = registers();
    loads! {
        "mov eax, [rdi]" => 4, 0, 0xe5f4_8392;
        "mov r15d, [rdi + rdi]" => 4, 15, 0xe5f4_8392;
        "mov rbx, [rip + 8]" => 8, 3, DATA;
        "mov cx, [rdi + 0x300]" => 2, 1, r[1] & !0xffff | 0x8392;
        "mov dl, [rdi]" => 1, 2, r[2] & !0xff | 0x92;
        "mov dh, [rdi]" => 1, 2, r[2] & !0xff00 | 0x9200;
        "mov dil, [rsi]" => 1, 7, r[7] & !0xff | 0x92;
        "movabs eax, [0xfee00020]" => 4, 0, 0xe5f4_8392;
        "movabs rax, [0xfee00020]" => 8, 0, DATA;
        "movabs al, [0xfee00020]" => 1, 0, r[0] & !0xff | 0x92;
        "movzx eax, byte ptr [rdi]" => 1, 0, 0x92;
        "movzx r10, word ptr [rdi]" => 2, 10, 0x8392;
        "movzx si, byte ptr [rdi]" => 1, 6, r[6] & !0xffff | 0x92;
        "movsx eax, byte ptr [rdi]" => 1, 0, 0xffff_ff92;
        "movsx r9, word ptr [rsp + 4]" => 2, 9, 0xffff_ffff_ffff_8392;
        "movsxd rax, dword ptr [rdi]" => 4, 0, 0xffff_ffff_e5f4_8392;
    }
}

#[test]
fn other_instructions_are_refused() {
    macro_rules! refused {
        ($($text:literal),*) => {
            $(assert_eq!(decode_bytes(assembled!($text).0, &registers()), Err(DecodeError::Unsupported), $text);)*
        };
    }
    refused!(
        "mov eax, ecx",
        "xchg [rdi], eax",
        "lock or dword ptr [rdi], 1",
        "add [rdi], eax",
        "rep movsd",
        "movups [rdi], xmm0",
        "movzx eax, cl",
        "nop",
        "push rax"
    );
}

#[test]
fn any_bytes_give_an_answer() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200_000 {
        let bytes: [u8; 16] = core::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        if let Ok(access) = decode_bytes(&bytes, &registers()) {
            assert!((2..=15).contains(&access.length), "{bytes:02x?}");
        }
    }
    assert_eq!(decode_bytes(&[0x66; 20], &registers()), Err(DecodeError::Truncated));
}
