//! The bytes of a guest's instruction.

use crate::machine::tables::IDENTITY;

/// As long as an instruction can be.
const LONGEST: usize = 15;

/// The bytes at `rip`; `None` outside the guest's memory.
///
/// Guests here run on the host's page tables, so RIP is where the host finds the instruction. A hypervisor whose guests have
/// their own walks those.
pub(crate) fn at(rip: u64) -> Option<[u8; LONGEST]> {
    if rip > IDENTITY - LONGEST as u64 {
        return None;
    }
    let code = core::ptr::with_exposed_provenance::<u8>(rip as usize);
    let mut bytes = [0; LONGEST];
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: below `IDENTITY` all addresses are mapped, to themselves, for host and guest; bytes of code are read, and
        // where the guest has written some meanwhile, volatile makes any value of them as good as another.
        *byte = unsafe { code.wrapping_add(index).read_volatile() };
    }
    Some(bytes)
}
