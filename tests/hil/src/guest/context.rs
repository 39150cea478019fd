//! What one guest CPU has for itself, and what its host may look at.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::apic;
use super::interrupts::{self, Hook};

/// As many guest CPUs as any case needs.
pub(crate) const MAX_VCPUS: usize = 8;

/// The context of the guest CPU with this index below [`MAX_VCPUS`].
pub(crate) fn context(index: usize) -> &'static Context {
    &CONTEXTS[index]
}

static CONTEXTS: [Context; MAX_VCPUS] = [const { Context::new() }; MAX_VCPUS];

/// One guest CPU: its tables and stack, and what its program and its host tell each other.
///
/// All shared words are atomics; `Relaxed` where only the value matters, since host and guest take turns on one CPU, and
/// exits and entries order what comes before and after them (SDM Vol. 3A 9.3: they are serializing).
#[repr(C, align(4096))]
pub(crate) struct Context {
    /// Its own address: what GS:0 reads.
    this: AtomicU64,
    /// Where an exception goes on that the next instruction may cause; 0 where none may.
    pub(super) fixup: AtomicU64,
    /// The exception that used the fixup: vector, error code << 32, and bit 31 for its presence.
    pub(super) fault: AtomicU64,
    pub(super) fault_rip: AtomicU64,
    /// How the handlers end an interrupt: an [`Apic`] by number.
    apic: AtomicU8,
    apic_base: AtomicU64,
    /// How often each vector was taken.
    counts: [AtomicU32; 256],
    /// What the handler of each vector does: an [`Eoi`] by number, and a [`Hook`] by address, or 0.
    policies: [AtomicU8; 256],
    hooks: [AtomicUsize; 256],
    /// The last vectors taken, oldest first until it wraps.
    trace: [AtomicU8; Self::TRACE],
    taken: AtomicU32,
    /// For the program and its host to use as they like.
    words: [AtomicU64; 16],
    gdt: [AtomicU64; 3],
    task: [AtomicU64; 13],
    idt: [AtomicU64; 512],
    stack: Stack,
}

/// The guest's program has it to itself; nobody makes a reference to it.
#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "reached through RSP")] UnsafeCell<[u8; 32 << 10]>);

// SAFETY: only the guest CPU that owns it reads and writes it, through its stack pointer.
unsafe impl Sync for Stack {}

impl Context {
    const TRACE: usize = 256;

    const fn new() -> Self {
        Self {
            this: AtomicU64::new(0),
            fixup: AtomicU64::new(0),
            fault: AtomicU64::new(0),
            fault_rip: AtomicU64::new(0),
            apic: AtomicU8::new(0),
            apic_base: AtomicU64::new(0),
            counts: [const { AtomicU32::new(0) }; 256],
            policies: [const { AtomicU8::new(0) }; 256],
            hooks: [const { AtomicUsize::new(0) }; 256],
            trace: [const { AtomicU8::new(0) }; Self::TRACE],
            taken: AtomicU32::new(0),
            words: [const { AtomicU64::new(0) }; 16],
            gdt: [const { AtomicU64::new(0) }; 3],
            task: [const { AtomicU64::new(0) }; 13],
            idt: [const { AtomicU64::new(0) }; 512],
            stack: Stack(UnsafeCell::new([0; 32 << 10])),
        }
    }

    /// Makes it as new: counters and shared words 0, no hooks, interrupts ended through the xAPIC after the hook.
    ///
    /// The host calls this while no guest runs on it.
    pub(crate) fn reset(&'static self) {
        self.this.store(self.address(), Ordering::Relaxed);
        self.fixup.store(0, Ordering::Relaxed);
        self.fault.store(0, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
        self.set_apic(Apic::XApic { base: apic::DEFAULT_BASE });
        for vector in 0..=255 {
            self.clear_count(vector);
            self.set_handling(vector, Eoi::Last, None);
        }
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        // Null, 64-bit code, data: flat and accessed (SDM Vol. 3A 3.4.5).
        for (entry, descriptor) in
            self.gdt.iter().zip([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff])
        {
            entry.store(descriptor, Ordering::Relaxed);
        }
        interrupts::fill(&self.idt);
    }

    /// The context of the guest CPU that runs this. Guest code only.
    pub(super) fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: in guest code GS holds the context, whose first word is its address.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags))
        };
        // SAFETY: contexts are static.
        unsafe { &*this }
    }

    /// How often the guest took `vector`. Acquire: whoever sees the count sees what the handler did before.
    pub(crate) fn count(&self, vector: u8) -> u32 {
        self.counts[usize::from(vector)].load(Ordering::Acquire)
    }

    /// All vectors together.
    pub(crate) fn total(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }

    /// Starts the count of `vector` again.
    pub(crate) fn clear_count(&self, vector: u8) {
        self.counts[usize::from(vector)].store(0, Ordering::Relaxed);
    }

    /// The `index`th vector that was taken, of the first 256.
    pub(crate) fn traced(&self, index: u32) -> Option<u8> {
        let slot = self.trace.get(index as usize)?;
        (index < self.total()).then(|| slot.load(Ordering::Relaxed))
    }

    /// Counts one interrupt. Release pairs with the Acquire in [`count`](Self::count).
    pub(super) fn record(&self, vector: u8) {
        let index = self.taken.fetch_add(1, Ordering::Release);
        if let Some(slot) = self.trace.get(index as usize) {
            slot.store(vector, Ordering::Relaxed);
        }
        self.counts[usize::from(vector)].fetch_add(1, Ordering::Release);
    }

    /// Chooses what the handler of `vector` does: when it ends the interrupt, and what else.
    pub(crate) fn set_handling(&self, vector: u8, eoi: Eoi, hook: Option<Hook>) {
        self.policies[usize::from(vector)].store(eoi as u8, Ordering::Relaxed);
        let address = hook.map_or(0, |hook| hook as usize);
        self.hooks[usize::from(vector)].store(address, Ordering::Relaxed);
    }

    /// As set by [`set_handling`](Self::set_handling).
    pub(super) fn handling(&self, vector: u8) -> (Eoi, Option<Hook>) {
        let eoi = match self.policies[usize::from(vector)].load(Ordering::Relaxed) {
            0 => Eoi::Last,
            1 => Eoi::First,
            _ => Eoi::Never,
        };
        let address = self.hooks[usize::from(vector)].load(Ordering::Relaxed);
        // SAFETY: `set_handling` stores the address of a `Hook`, or 0, which is `None`.
        (eoi, unsafe { core::mem::transmute::<usize, Option<Hook>>(address) })
    }

    /// Tells the handlers which interface the guest has switched its APIC to.
    pub(crate) fn set_apic(&self, apic: Apic) {
        let (number, base) = match apic {
            Apic::XApic { base } => (0, base),
            Apic::X2Apic => (1, 0),
        };
        self.apic_base.store(base, Ordering::Relaxed);
        self.apic.store(number, Ordering::Relaxed);
    }

    /// As set by [`set_apic`](Self::set_apic).
    pub(crate) fn apic(&self) -> Apic {
        match self.apic.load(Ordering::Relaxed) {
            0 => Apic::XApic { base: self.apic_base.load(Ordering::Relaxed) },
            _ => Apic::X2Apic,
        }
    }

    /// A word for the program and its host; `index` is taken modulo their number.
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        &self.words[index % self.words.len()]
    }

    /// The exception that the last access which may fail has caused. Asking clears it.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        let fault = self.fault.swap(0, Ordering::Relaxed);
        (fault & 1 << 31 != 0).then(|| Fault {
            vector: fault as u8,
            error_code: (fault >> 32) as u32,
            rip: self.fault_rip.load(Ordering::Relaxed),
        })
    }

    /// Where an exception goes on that the access under way may cause, or a host that skips it; 0 where none is.
    pub(crate) fn resume_address(&self) -> u64 {
        self.fixup.load(Ordering::Relaxed)
    }

    /// Physical and linear address.
    pub(super) fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    pub(super) fn gdt(&self) -> (u64, u16) {
        (self.gdt.as_ptr().expose_provenance() as u64, size_of_val(&self.gdt) as u16 - 1)
    }

    pub(super) fn idt(&self) -> (u64, u16) {
        (self.idt.as_ptr().expose_provenance() as u64, size_of_val(&self.idt) as u16 - 1)
    }

    /// Where the gate of a vector is in the guest's IDT.
    pub(crate) fn gate_address(&self, vector: u8) -> u64 {
        self.idt().0 + 16 * u64::from(vector)
    }

    pub(super) fn task(&self) -> u64 {
        self.task.as_ptr().expose_provenance() as u64
    }

    /// RSP as after a CALL: a multiple of 16 less 8.
    pub(super) fn stack_pointer(&self) -> u64 {
        self.address() + (offset_of!(Self, stack) + size_of::<Stack>()) as u64 - 8
    }
}

impl core::fmt::Debug for Context {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Context({:#x}, {} interrupts)", self.address(), self.total())
    }
}

/// When a handler ends its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eoi {
    /// After the hook.
    Last = 0,
    /// Before the hook.
    First = 1,
    /// Not at all: it stays in service.
    Never = 2,
}

/// The interface through which a guest reaches its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Apic {
    /// Memory at `base`.
    XApic {
        /// Guest-physical, and linear.
        base: u64,
    },
    /// Model-specific registers from 800H.
    X2Apic,
}

/// An exception that a guest's access caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// 13 for general protection.
    pub(crate) vector: u8,
    /// As pushed.
    pub(crate) error_code: u32,
    /// The instruction.
    pub(crate) rip: u64,
}
