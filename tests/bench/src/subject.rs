//! Ours, made ready to be measured. What is made is never freed: it has to outlive every closure.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use vlapic_core::{
    ApicPage, DirectInbox, Directory, Effect, Fault, IA32_APIC_BASE, Inbox, LocalApic, Message,
    Profile, Register, Slot, Vm, Width,
};

use crate::row::Mode;

/// Guest time: it stands still.
pub(crate) const NOW: u64 = 1_000_000;

/// Guest time as a variable, so that the compiler does not know it.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// Sets guest time to [`NOW`].
pub(crate) fn start_clock() {
    CLOCK.store(black_box(NOW), Ordering::Relaxed);
}

/// Guest time.
#[inline(always)]
fn now() -> u64 {
    CLOCK.load(Ordering::Relaxed)
}

pub(crate) fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A VM with the handles of its vCPUs.
pub(crate) struct Machine<I: 'static> {
    pub(crate) vm: Vm<'static, I>,
    pub(crate) apics: Vec<LocalApic<'static, I>>,
}

/// A VM of `vcpus` vCPUs in plain emulation, all APICs enabled and in `mode`.
pub(crate) fn emulated(vcpus: u32, mode: Mode) -> Machine<DirectInbox> {
    let pages: &'static [ApicPage] =
        Box::leak((0..vcpus).map(|_| ApicPage::new()).collect::<Box<[_]>>());
    let directory: &'static Directory = Box::leak(Box::new(Directory::new()));
    let slot =
        |(id, page)| Slot::new(page, id, Profile::intel(), DirectInbox).with_directory(directory);
    let slots: &'static [Slot<'static, DirectInbox>] =
        Box::leak((0..vcpus).zip(pages).map(slot).collect::<Box<[_]>>());
    let apics = slots.iter().map(|slot| LocalApic::new(slot, slot.x2apic_id() == 0)).collect();
    let vm = Vm::new(slots).unwrap_or_else(|error| unreachable!("IDs ascend: {error}"));
    let mut machine = Machine { vm, apics };
    machine.apics.iter_mut().for_each(|apic| enable(apic, mode));
    machine
}

/// The handle of a VM's only vCPU.
pub(crate) fn emulated_one(mode: Mode) -> LocalApic<'static, DirectInbox> {
    let mut machine = emulated(1, mode);
    machine.apics.remove(0)
}

/// Switches to `mode` and sets SVR bit 8.
pub(crate) fn enable<I: Inbox>(apic: &mut LocalApic<'_, I>, mode: Mode) {
    if mode == Mode::X2Apic {
        let base = apic.slot().base().bits() | 1 << 10;
        let done = apic.write_msr(IA32_APIC_BASE, base, NOW);
        assert!(done.is_ok(), "x2APIC mode is allowed");
    }
    apic.slot().page().write(Register::Svr, 0x1FF);
    assert!(apic.slot().accepts());
}

/// How a guest gets at its registers: known to the hypervisor by the exit's kind, so to the compiler here.
pub(crate) trait Way: 'static {
    const MODE: Mode;

    /// Where `register` is: an offset into the window, or the number of an MSR.
    fn place(register: Register) -> u32 {
        Self::place_of(register.offset())
    }

    /// The same of the register at `offset` in the page.
    fn place_of(offset: u16) -> u32;

    fn read<I: Inbox>(apic: &mut LocalApic<'_, I>, place: u32, now: u64) -> Result<u64, Fault>;

    fn write<I: Inbox>(
        apic: &mut LocalApic<'_, I>,
        place: u32,
        value: u64,
    ) -> Result<Effect, Fault>;
}

/// By loads and stores in the register window.
pub(crate) struct Memory;

/// By RDMSR and WRMSR.
pub(crate) struct Msr;

impl Way for Memory {
    const MODE: Mode = Mode::XApic;

    fn place_of(offset: u16) -> u32 {
        u32::from(offset)
    }

    #[inline(always)]
    fn read<I: Inbox>(apic: &mut LocalApic<'_, I>, place: u32, now: u64) -> Result<u64, Fault> {
        Ok(apic.read_mmio(black_box(place) as u16, Width::Dword, now))
    }

    #[inline(always)]
    fn write<I: Inbox>(
        apic: &mut LocalApic<'_, I>,
        place: u32,
        value: u64,
    ) -> Result<Effect, Fault> {
        let (offset, value) = (black_box(place) as u16, black_box(value));
        Ok(apic.write_mmio(offset, Width::Dword, value, now()))
    }
}

impl Way for Msr {
    const MODE: Mode = Mode::X2Apic;

    fn place_of(offset: u16) -> u32 {
        0x800 + u32::from(offset >> 4)
    }

    #[inline(always)]
    fn read<I: Inbox>(apic: &mut LocalApic<'_, I>, place: u32, now: u64) -> Result<u64, Fault> {
        apic.read_msr(black_box(place), now)
    }

    #[inline(always)]
    fn write<I: Inbox>(
        apic: &mut LocalApic<'_, I>,
        place: u32,
        value: u64,
    ) -> Result<Effect, Fault> {
        apic.write_msr(black_box(place), black_box(value), now())
    }
}

/// The places of the registers that the rows write, as the mode of `W` has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) tpr: u32,
    pub(crate) eoi: u32,
    pub(crate) icr_low: u32,
    pub(crate) icr_high: u32,
    pub(crate) self_ipi: u32,
}

impl Places {
    pub(crate) fn of<W: Way>() -> Self {
        Self {
            tpr: W::place(Register::Tpr),
            eoi: W::place(Register::Eoi),
            icr_low: W::place(Register::IcrLow),
            icr_high: W::place(Register::IcrHigh),
            self_ipi: W::place(Register::SelfIpi),
        }
    }
}

/// Delivers `message` and looks at how each target is to be told.
pub(crate) fn deliver<I: Inbox>(vm: &Vm<'static, I>, message: &Message, sender: Option<usize>) {
    vm.send(message, sender).for_each(|delivered| {
        let _ = black_box(delivered);
    });
}

/// Carries out what a write left to do, as far as it is to send.
#[inline(always)]
pub(crate) fn carry_out<I: Inbox>(
    vm: &Vm<'static, I>,
    effect: Result<Effect, Fault>,
    sender: usize,
) {
    match effect {
        Ok(Effect::Ipi(message)) => deliver(vm, &message, Some(sender)),
        _ => look_at(effect),
    }
}

/// What the hypervisor does with what a write that sends nothing left to do.
#[inline(always)]
pub(crate) fn look_at(effect: Result<Effect, Fault>) {
    match effect {
        Ok(Effect::None) => {}
        Ok(Effect::EndOfInterrupt(vector)) => left_to_the_hypervisor(vector.get()),
        _ => left_to_the_hypervisor(0),
    }
}

#[cold]
#[inline(never)]
pub(crate) fn left_to_the_hypervisor(what: u8) {
    black_box(what);
}
