//! Guest instructions that an exit leaves to the hypervisor: fetched, and understood.
//!
//! ```text
//! mov         which MOV to or from memory it is, and what it wants
//! privileged  how long an instruction is that exits as a whole, where the processor does not say
//! fetch       the bytes at the guest's RIP
//! ```

pub(crate) mod fetch;
pub(crate) mod mov;
pub(crate) mod privileged;
