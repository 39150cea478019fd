//! What the compiler expects a C library and an unwinder to bring.

use core::arch::asm;
use core::ffi::c_int;
use core::panic::PanicInfo;

use crate::machine::{console, exit};

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    console::seize();
    crate::log!("{information}");
    exit::exit(1)
}

// The precompiled `core` names the personality function in tables that the link script throws away.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit::exit(1)
}

// String instructions, so that the compiler cannot turn a function's body into a call of itself.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(destination: *mut u8, source: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise for both ranges is that of C's memcpy. The direction flag is clear (System V ABI).
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") destination => _, inout("rsi") source => _,
             options(nostack, preserves_flags));
    }
    destination
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(destination: *mut u8, source: *const u8, length: usize) -> *mut u8 {
    if destination.addr().wrapping_sub(source.addr()) >= length {
        // SAFETY: the destination does not start inside the source, so copying upwards reads each byte before writing it.
        return unsafe { memcpy(destination, source, length) };
    }
    // SAFETY: the caller's promise is that of C's memmove; `length` is above zero here, so both last bytes exist. Copies
    // downwards and clears the direction flag again, as the System V ABI wants it.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") length => _,
             inout("rdi") destination.wrapping_add(length - 1) => _,
             inout("rsi") source.wrapping_add(length - 1) => _, options(nostack));
    }
    destination
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(destination: *mut u8, value: c_int, length: usize) -> *mut u8 {
    // SAFETY: the caller's promise for the range is that of C's memset. The direction flag is clear (System V ABI).
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") destination => _, in("al") value as u8,
             options(nostack, preserves_flags));
    }
    destination
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> c_int {
    for index in 0..length {
        // SAFETY: `index` is below `length`, for which the caller promises a readable range.
        let a = unsafe { left.wrapping_add(index).read_volatile() };
        // SAFETY: as above.
        let b = unsafe { right.wrapping_add(index).read_volatile() };
        if a != b {
            return c_int::from(a) - c_int::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> c_int {
    // SAFETY: same promise by the caller.
    unsafe { memcmp(left, right, length) }
}
