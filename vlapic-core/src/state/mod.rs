//! A vCPU's APIC out of its page and into another: three formats.
//!
//! | | [ours](LocalApic::export_state) | [KVM's](LocalApic::export_kvm) | [Xen's](LocalApic::export_xen) |
//! |---|---|---|---|
//! | registers, IA32_APIC_BASE, IA32_TSC_DEADLINE | yes | yes | yes |
//! | vectors posted and not yet in IRR | in IRR | in IRR | in IRR |
//! | AMD's extended space | yes | no | no |
//! | phase of a running count | to the tick | to the divided tick | no: starts anew |
//! | errors not yet in ESR | yes | no | yes, but not in the 24-byte record |
//! | INIT, SIPI, NMI, SMI, ExtINT, wait-for-SIPI | yes | by [`Outside`] | by [`Outside`] |
//! | level and remote IRR of the LINT pins | yes | remote IRR of LINT0 | remote IRR of LINT0 |
//! | upcall: vector | yes | by [`Outside`] | by [`Outside`] |
//! | upcall: whether an edge is owed | yes | no: the pending byte decides | no: the pending byte decides |
//!
//! Nothing of hardware is in any of them: RVI, SVI, EOI-exit bitmap, V_TPR, descriptor and tables follow
//! from the page, and backends take them from it before each entry. Nor is what the hypervisor has taken
//! out already: an event from [`LocalApic::take_event`], or an injection that an exit interrupted.
//!
//! # Export
//! The vCPU is outside guest mode, and its backend's work after the last exit is done. Whatever may post
//! to it (devices, the IOMMU, other vCPUs) has been stopped or led elsewhere: what is posted later is not
//! in the export. The APIC goes on as it was; export does no more to it than
//! [`LocalApic::prepare`] would.
//!
//! # Import
//! The vCPU is outside guest mode, and nobody posts to it until the import is over. On an error nothing
//! has changed. Otherwise the APIC is what the bytes say, as far as the slot's
//! [`Profile`](crate::Profile) can be that: what had to be put right is said by name
//! ([`Corrections`]), and what the guest uses and the profile lacks is an error
//! ([`ImportError::Unsupported`]). No flag that repeats what a register says is believed.
//!
//! Times are in ticks of the guest's TSC, which has to be carried over as well: the counter that
//! the deadline in IA32_TSC_DEADLINE is about is the guest's.
//!
//! Then the backend has to follow the page: see the hypervisor's guide.

mod bytes;
mod correction;
mod error;
mod foreign;
mod image;
mod kvm;
mod native;
mod outside;
mod transfer;
mod xen;
mod xen_records;

pub use correction::{Correction, Corrections};
pub use error::{Feature, ImportError};
pub use kvm::{KvmBeside, KvmIds};
pub use outside::{OneShot, Outside};
pub use xen::XenLapic;
pub use xen_records::XenRecords;

pub use crate::latches::Latched;

/// Our own format, version 1: its length in bytes. All fields are little-endian.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | magic: `vLAPICst` |
/// | 8 | 2 | version: 1 |
/// | 10 | 2 | length: 432 |
/// | 12 | 4 | CRC-32 (ISO 3309) of all other bytes |
/// | 16 | 4 | x2APIC ID |
/// | 20 | 4 | the profile: bit 0 AMD, 1 CMCI entry, 2 EOI-broadcast suppression, 3 TSC-deadline, 4 x2APIC, 5 writable xAPIC ID, 6 focus check, 7 extended space; others zero |
/// | 24 | 4 | timer clock: TSC ticks, not zero |
/// | 28 | 4 | timer clock: base-clock ticks in that time, not zero |
/// | 32 | 8 | IA32_APIC_BASE |
/// | 40 | 8 | guest TSC at export |
/// | 48 | 8 | guest TSC at which the running count had `count` divided ticks left; not after export |
/// | 56 | 4 | `count`; zero: no count runs, and the fields before and after are zero |
/// | 60 | 1 | log2 of the divider in force, 0 to 7 |
/// | 61 | 1 | upcall vector; zero: none |
/// | 62 | 1 | 1: an upcall's edge is owed; else 0 |
/// | 63 | 1 | zero |
/// | 64 | 8 | IA32_TSC_DEADLINE |
/// | 72 | 4 | latches: bit 0 INIT, 1 NMI, 2 SMI, 3 ExtINT, 4 SIPI, 5 waits for SIPI, 15:8 the SIPI's page, 17:16 level of LINT1 and LINT0, 19:18 they rose, 21:20 their remote IRR; others zero |
/// | 76 | 4 | errors not yet in ESR, bits 7:0 |
/// | 80 | 16 | zero |
/// | 96 | 336 | word `n`: the register at page offset `16 * n`, as the guest sees it. ICR's high half, or x2APIC destination, at 310. Zero: EOI, arbitration priority, remote read, current count, and where no register is |
///
/// A reader takes this version and length only. A later version has another number.
pub const STATE_LENGTH: usize = native::LENGTH;

/// The length of a register record of KVM (`kvm_lapic_state`) and of Xen (LAPIC_REGS), in bytes.
pub const REGISTERS_LENGTH: usize = 1024;

#[cfg(doc)]
use crate::LocalApic;
