//! What a guest does.

/// One step. `H` is what its host does when it is the host's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<H> {
    /// A read of the APIC window: byte offset, bytes.
    Load(u16, u8),
    /// A write of the APIC window: byte offset, bytes, value.
    Store(u16, u8, u64),
    /// RDMSR.
    ReadMsr(u32),
    /// WRMSR.
    WriteMsr(u32, u64),
    /// MOV from CR8.
    ReadCr8,
    /// MOV to CR8.
    WriteCr8(u64),
    /// STI and an instruction after it, or CLI.
    Interrupts(bool),
    /// VMCALL: the host does this.
    Host(H),
}
