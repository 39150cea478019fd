//! The loop of one vCPU on SVM, as an integrator writes it around `avic`: with AVIC, or with plain emulation.
//!
//! ```text
//! machine  what the loop needs: the vCPU's processor, and the hypervisor around it
//! turn     before entry, VMRUN, after exit
//! access   guest accesses that exit before they are done: the register window, MSRs, CR8
//! injection  events in the VMCB
//! plain    plain emulation programmed into a VMCB
//! level    how much help, and the driver for it
//! cases    what only AVIC does: guest programs and what their host looks at
//! ```
//!
//! Nothing here touches a machine. The bare-metal image runs it on VMRUN, the tests on the silicon model: no emulator
//! has AVIC, so that is where the code is tried that a processor with AVIC will run.
#![no_std]
#![forbid(unsafe_code)]

mod access;
pub mod cases;
mod injection;
mod level;
mod machine;
mod plain;
mod turn;

pub use level::{Level, NotGranted, Setup, driver};
pub use machine::{Access, After, Cpu, Host, REGISTERS};
pub use plain::Plain;
pub use turn::{Error, Left, Loop};

/// Exit codes that the loop tells apart (APM Vol. 2 appendix C).
pub mod code {
    /// Read of CR8.
    pub const READ_CR8: u64 = 0x008;
    /// Write of CR8.
    pub const WRITE_CR8: u64 = 0x018;
    /// A physical interrupt.
    pub const INTERRUPT: u64 = 0x060;
    /// A physical NMI.
    pub const NMI: u64 = 0x061;
    /// The interrupt window.
    pub const VIRTUAL_INTERRUPT: u64 = 0x064;
    /// HLT.
    pub const HLT: u64 = 0x078;
    /// RDMSR or WRMSR.
    pub const MSR: u64 = 0x07c;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x081;
    /// A nested page fault.
    pub const NESTED_PAGE_FAULT: u64 = 0x400;
    /// AVIC: an IPI that is not, or not wholly, delivered.
    pub const INCOMPLETE_IPI: u64 = 0x401;
    /// AVIC: an access that is not accelerated.
    pub const NO_ACCELERATION: u64 = 0x402;
}
