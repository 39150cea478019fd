//! The virtual machine control block (APM Vol. 2 appendix B).

use core::mem::offset_of;
use core::ops::{Deref, DerefMut};

use crate::machine::frames::OwnedFrame;

/// The page as the processor lays it out. What is in nobody's use here is left out by name, not by place.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Vmcb {
    /// Control area.
    pub(crate) control: Control,
    /// State-save area.
    pub(crate) save: Save,
}

/// Control area (table B-1).
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Control {
    /// Bit `n`: reads of CRn exit.
    pub(crate) intercept_cr_reads: u16,
    /// Bit `n`: writes of CRn exit.
    pub(crate) intercept_cr_writes: u16,
    _debug_registers: u32,
    /// Bit `n`: exception `n` exits.
    pub(crate) intercept_exceptions: u32,
    /// The two words of other intercepts at 00C and 010: see [`intercept`].
    pub(crate) intercepts: [u32; 2],
    _more_intercepts: [u32; 11],
    /// Physical address of the I/O permission map.
    pub(crate) io_permissions: u64,
    /// Physical address of the MSR permission map.
    pub(crate) msr_permissions: u64,
    /// Added to what the guest reads as its TSC.
    pub(crate) tsc_offset: u64,
    /// Address space of the guest; 0 is the host's.
    pub(crate) asid: u32,
    /// What is flushed at entry: see [`super::vcpu::Current::flush_translations`].
    pub(crate) tlb_control: u32,
    /// V_TPR, V_IRQ and their kin: see [`virtual_interrupt`].
    pub(crate) virtual_interrupt: u64,
    /// Bit 0: the guest is in the shadow of STI or of a load of SS.
    pub(crate) interrupt_shadow: u64,
    pub(crate) exit_code: u64,
    pub(crate) exit_info_1: u64,
    pub(crate) exit_info_2: u64,
    /// EXITINTINFO: the event during whose delivery the exit happened.
    pub(crate) exit_interrupt_info: u64,
    /// Bit 0: nested paging.
    pub(crate) nested_paging: u64,
    /// AVIC_APIC_BAR.
    pub(crate) apic_bar: u64,
    _ghcb: u64,
    /// EVENTINJ: the event that entry delivers.
    pub(crate) event_injection: u64,
    /// Root of the nested page tables.
    pub(crate) nested_cr3: u64,
    _branch_records: u64,
    /// A set bit: this group of fields is as the processor has it cached.
    pub(crate) clean: u64,
    /// The next instruction, after an exit for an instruction, where the processor says it.
    pub(crate) next_rip: u64,
    _fetched: [u64; 2],
    /// AVIC backing page.
    pub(crate) apic_backing_page: u64,
    _reserved_0e8: u64,
    /// AVIC logical table.
    pub(crate) apic_logical_table: u64,
    /// AVIC physical table, and its last index in bits 11:0.
    pub(crate) apic_physical_table: u64,
    _reserved_100: [u64; 96],
}

/// State-save area (table B-2), from 400.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Save {
    pub(crate) es: Segment,
    pub(crate) cs: Segment,
    pub(crate) ss: Segment,
    pub(crate) ds: Segment,
    pub(crate) fs: Segment,
    pub(crate) gs: Segment,
    pub(crate) gdtr: Segment,
    pub(crate) ldtr: Segment,
    pub(crate) idtr: Segment,
    pub(crate) tr: Segment,
    _reserved_4a0: [u8; 43],
    pub(crate) cpl: u8,
    _reserved_4cc: u32,
    pub(crate) efer: u64,
    _reserved_4d8: [u64; 14],
    pub(crate) cr4: u64,
    pub(crate) cr3: u64,
    pub(crate) cr0: u64,
    pub(crate) dr7: u64,
    pub(crate) dr6: u64,
    pub(crate) rflags: u64,
    pub(crate) rip: u64,
    _reserved_580: [u64; 11],
    pub(crate) rsp: u64,
    _shadow_stack: [u64; 3],
    pub(crate) rax: u64,
    _system_call: [u64; 4],
    pub(crate) kernel_gs_base: u64,
    _system_enter: [u64; 3],
    pub(crate) cr2: u64,
    _reserved_648: [u64; 4],
    /// The guest's PAT, used with nested paging.
    pub(crate) pat: u64,
    pub(crate) debug_control: u64,
    _reserved_678: [u64; 305],
}

/// A segment register, or a table register of which only base and limit count.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) selector: u16,
    /// Descriptor bits 55:52 and 47:40 side by side.
    pub(crate) attributes: u16,
    pub(crate) limit: u32,
    pub(crate) base: u64,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Control, intercepts) == 0x00c);
    assert!(offset_of!(Control, io_permissions) == 0x040);
    assert!(offset_of!(Control, asid) == 0x058);
    assert!(offset_of!(Control, virtual_interrupt) == 0x060);
    assert!(offset_of!(Control, exit_code) == 0x070);
    assert!(offset_of!(Control, exit_interrupt_info) == 0x088);
    assert!(offset_of!(Control, nested_paging) == 0x090);
    assert!(offset_of!(Control, apic_bar) == 0x098);
    assert!(offset_of!(Control, event_injection) == 0x0a8);
    assert!(offset_of!(Control, nested_cr3) == 0x0b0);
    assert!(offset_of!(Control, clean) == 0x0c0);
    assert!(offset_of!(Control, next_rip) == 0x0c8);
    assert!(offset_of!(Control, apic_backing_page) == 0x0e0);
    assert!(offset_of!(Control, apic_logical_table) == 0x0f0);
    assert!(offset_of!(Control, apic_physical_table) == 0x0f8);
    assert!(offset_of!(Save, cpl) == 0x4cb - 0x400);
    assert!(offset_of!(Save, efer) == 0x4d0 - 0x400);
    assert!(offset_of!(Save, cr4) == 0x548 - 0x400);
    assert!(offset_of!(Save, rip) == 0x578 - 0x400);
    assert!(offset_of!(Save, rsp) == 0x5d8 - 0x400);
    assert!(offset_of!(Save, rax) == 0x5f8 - 0x400);
    assert!(offset_of!(Save, kernel_gs_base) == 0x620 - 0x400);
    assert!(offset_of!(Save, cr2) == 0x640 - 0x400);
    assert!(offset_of!(Save, pat) == 0x668 - 0x400);
};

/// Bits of [`Control::intercepts`].
pub(crate) mod intercept {
    /// Of the word at 00C.
    pub(crate) const INTR: u32 = 1 << 0;
    pub(crate) const NMI: u32 = 1 << 1;
    pub(crate) const INIT: u32 = 1 << 3;
    pub(crate) const VINTR: u32 = 1 << 4;
    pub(crate) const HLT: u32 = 1 << 24;
    pub(crate) const INVLPGA: u32 = 1 << 26;
    pub(crate) const MSR: u32 = 1 << 28;
    pub(crate) const SHUTDOWN: u32 = 1 << 31;
    /// Of the word at 010: VMRUN, which must be set, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT.
    pub(crate) const SVM_INSTRUCTIONS: u32 = 0x7f;
}

/// Bits of [`Control::virtual_interrupt`].
pub(crate) mod virtual_interrupt {
    /// V_TPR.
    pub(crate) const TASK_PRIORITY: u64 = 0xf;
    /// V_IRQ.
    pub(crate) const REQUEST: u64 = 1 << 8;
    /// V_INTR_PRIO.
    pub(crate) const PRIORITY_SHIFT: u32 = 16;
    /// V_IGN_TPR.
    pub(crate) const IGNORE_TASK_PRIORITY: u64 = 1 << 20;
    /// V_INTR_MASKING.
    pub(crate) const MASKING: u64 = 1 << 24;
    /// V_INTR_VECTOR.
    pub(crate) const VECTOR_SHIFT: u32 = 32;
    /// All of V_IRQ and what it brings.
    pub(crate) const ANY_REQUEST: u64 =
        REQUEST | 0xf << PRIORITY_SHIFT | IGNORE_TASK_PRIORITY | 0xff << VECTOR_SHIFT;
}

/// A control block in a frame of its own.
#[derive(Debug)]
pub(crate) struct OwnedVmcb(OwnedFrame);

impl OwnedVmcb {
    /// All zero.
    pub(crate) fn new() -> Self {
        Self(OwnedFrame::new())
    }

    /// Where it is, for VMRUN, VMLOAD and VMSAVE.
    pub(super) fn pointer(&mut self) -> *mut Vmcb {
        self.0.bytes().as_mut_ptr().cast()
    }
}

impl avic::Vmcb for OwnedVmcb {
    fn load(&self, offset: u16) -> u64 {
        self.0.word(offset.into())
    }

    fn store(&mut self, offset: u16, value: u64) {
        self.0.set_word(offset.into(), value);
    }
}

impl Deref for OwnedVmcb {
    type Target = Vmcb;

    fn deref(&self) -> &Vmcb {
        // SAFETY: an owned frame of 4096 bytes, aligned to as many; the type is integers throughout, so any bytes are one.
        // The processor writes it only in `run`, which has it mutably.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

impl DerefMut for OwnedVmcb {
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { &mut *self.pointer() }
    }
}
