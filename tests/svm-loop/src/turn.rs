//! The loop: before entry, VMRUN, after exit.

use core::convert::Infallible;
use core::marker::PhantomData;

use avic::{Exit, Vmcb, Window};
use vlapic_core::{Backend, Effect, EntryInput, Event, ExitOutcome, Next};

use crate::code;
use crate::injection;
use crate::machine::{After, Cpu, Host};

/// One vCPU on the CPU that runs it.
#[derive(Debug)]
pub struct Loop<'s, 'h, H, C, B> {
    pub(crate) host: &'h H,
    pub(crate) cpu: C,
    pub(crate) driver: B,
    /// The register window, where AVIC may serve it.
    pub(crate) window: Option<&'s Window>,
    /// The vCPU has been started: it is not waiting for its SIPI.
    started: bool,
    slot: PhantomData<&'s ()>,
}

/// How a vCPU has left its loop.
#[derive(Debug)]
pub struct Left<B, R> {
    /// Its result, or that it goes on elsewhere.
    pub result: R,
    /// Its driver.
    pub driver: B,
    /// Whether it is not waiting for a SIPI.
    pub started: bool,
}

/// Why a vCPU could not run on.
#[derive(Debug)]
pub enum Error<C: Cpu, H: Host> {
    /// The processor.
    Cpu(C::Error),
    /// The hypervisor.
    Host(H::Error),
    /// It was told to stop before its program had finished.
    Stopped,
    /// The driver asks for something that nobody here knows.
    Driver(Next),
    /// An exit that nobody here knows.
    UnknownExit(Exit),
    /// A guest-physical address that is neither memory nor the register window.
    NoDevice(u64),
    /// An instruction at the register window that is not decoded.
    NotDecoded,
}

impl<'s, 'h, H, C, B> Loop<'s, 'h, H, C, B>
where
    H: Host,
    C: Cpu,
    B: Backend<'s, C::Vmcb, Exit = Exit, Error = Infallible>,
{
    /// A vCPU that was `started`, or is not yet. `window` is the register window if AVIC may serve it.
    pub const fn new(
        host: &'h H,
        cpu: C,
        driver: B,
        window: Option<&'s Window>,
        started: bool,
    ) -> Self {
        Self { host, cpu, driver, window, started, slot: PhantomData }
    }

    /// Runs the vCPU, from its first instruction if it `begins`, until its program finishes (its result) or it has to leave
    /// this CPU (`None`).
    pub fn run(mut self, begins: bool) -> Left<B, Result<Option<u64>, Error<C, H>>> {
        if begins {
            self.start(None);
        }
        let result = self.turns();
        if matches!(result, Ok(None)) {
            // Posts need not tell anybody until it runs again.
            self.driver.preempt();
        }
        Left { result, driver: self.driver, started: self.started }
    }

    fn turns(&mut self) -> Result<Option<u64>, Error<C, H>> {
        loop {
            if self.host.is_stopped() {
                return Err(Error::Stopped);
            }
            if self.host.take_leave() {
                return Ok(None);
            }
            self.host.take_request();
            if let After::Finish(value) = self.turn()? {
                return Ok(Some(value));
            }
        }
    }

    /// One entry and one exit, or what comes first. Interrupts of this CPU are off from the driver's last look to the
    /// entry.
    fn turn(&mut self) -> Result<After, Error<C, H>> {
        let host = self.host;
        let first = host.uninterrupted(|| {
            let first = self.enter();
            host.left();
            if let Ok(None) = first {
                // The interrupt that ended the turn is the host's.
                self.cpu.dispatch_interrupt();
            }
            first
        })?;
        match first {
            None => return self.after_exit(),
            Some(Next::TakeEvent) => {
                if let Some(event) = self.driver.apic_mut().take_event() {
                    self.carry_out_event(event);
                }
            }
            Some(Next::UnmapWindow) => {
                host.unmap_window();
                if let Some(window) = self.window {
                    window.unmapped();
                }
            }
            Some(Next::KickOthers) => host.kick_others(),
            Some(Next::AwaitStartup | Next::Enter) if !self.started => host.sleep(None),
            Some(Next::AwaitStartup | Next::Enter) => {}
            Some(other) => return Err(Error::Driver(other)),
        }
        Ok(After::Enter)
    }

    /// Enters, and returns after the exit; or what comes first: [`Next::Enter`] means to begin anew.
    fn enter(&mut self) -> Result<Option<Next>, Error<C, H>> {
        let interruptible = injection::is_interruptible(self.cpu.vmcb());
        let input = self.input(interruptible);
        let Ok(entry) = self.driver.before_entry(self.cpu.vmcb(), input);
        if self.host.intercepts_cr8() {
            const CR_INTERCEPTS: u16 = 0x000;
            const WRITES_OF_CR8: u64 = 1 << 24;
            let vmcb = self.cpu.vmcb();
            let intercepts = vmcb.load(CR_INTERCEPTS);
            vmcb.store(CR_INTERCEPTS, intercepts | WRITES_OF_CR8);
        }
        if entry.next != Next::Enter || !self.started {
            return Ok(Some(entry.next));
        }
        if self.host.enters() {
            self.cpu.flush_translations();
        }
        if self.host.is_requested() {
            return Ok(Some(Next::Enter));
        }
        let longest = entry.exit_by.map(|time| time.saturating_sub(input.now));
        self.cpu.run(longest).map_err(Error::Cpu)?;
        Ok(None)
    }

    fn after_exit(&mut self) -> Result<After, Error<C, H>> {
        let exit = Exit::of(self.cpu.vmcb());
        let [_, rcx, ..] = *self.cpu.registers();
        injection::reinject(self.cpu.vmcb());
        let now = self.host.now();
        let Ok(outcome) = self.driver.after_exit(self.cpu.vmcb(), &exit, now);
        let next = match outcome {
            ExitOutcome::Done(effect) => {
                self.carry_out(effect);
                After::Enter
            }
            ExitOutcome::Decode(access) => {
                self.register_window(access.offset)?;
                After::Enter
            }
            ExitOutcome::Msr { write, .. } => {
                self.msr(write)?;
                After::Enter
            }
            _ => self.other_exit(&exit)?,
        };
        if exit.code != code::INTERRUPT {
            self.host.handled(&exit, rcx);
        }
        Ok(next)
    }

    /// Exits that have nothing to do with the APIC, or only in part.
    fn other_exit(&mut self, exit: &Exit) -> Result<After, Error<C, H>> {
        match exit.code {
            code::INTERRUPT | code::NMI | code::VIRTUAL_INTERRUPT => {}
            code::HLT => {
                self.cpu.skip_instruction().map_err(Error::Cpu)?;
                self.halted();
            }
            code::VMMCALL => {
                self.cpu.skip_instruction().map_err(Error::Cpu)?;
                return self.host.hypercall(self.cpu.registers()).map_err(Error::Host);
            }
            code::MSR => self.msr(exit.info_1 & 1 != 0)?,
            code::READ_CR8 => self.read_cr8()?,
            code::WRITE_CR8 => self.write_cr8()?,
            code::NESTED_PAGE_FAULT => self.nested_page_fault(exit)?,
            _ => return Err(Error::UnknownExit(*exit)),
        }
        Ok(After::Enter)
    }

    /// What a write asked of the hypervisor.
    pub(crate) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ipi(message) => self.host.send(&message),
            Effect::Announce(message) => self.host.announce(message.destination()),
            Effect::EndOfInterrupt(vector) => self.host.end_of_interrupt(vector),
            // The next deadline and the APIC's mode are looked at by the next entry.
            _ => {}
        }
    }

    fn carry_out_event(&mut self, event: Event) {
        match event {
            Event::Init { waits: true } => self.started = false,
            Event::Init { waits: false } => self.start(None),
            Event::Startup { page } => self.start(Some(page)),
            Event::Nmi => injection::inject_nmi(self.cpu.vmcb()),
            // No SMM and no 8259 here.
            _ => {}
        }
    }

    /// Makes the vCPU's next entry its first.
    fn start(&mut self, page: Option<u8>) {
        self.started = self.cpu.start(page);
    }

    /// The guest executed HLT: sleeps until it has something to take.
    fn halted(&mut self) {
        loop {
            let interruptible = injection::interrupts_enabled(self.cpu.vmcb());
            let input = EntryInput { injecting: false, ..self.input(interruptible) };
            if !self.driver.block(input) || self.host.is_requested() || self.host.is_stopped() {
                return;
            }
            let deadline = self.driver.apic().next_deadline();
            self.host.sleep(deadline);
        }
    }

    fn input(&mut self, interruptible: bool) -> EntryInput {
        EntryInput {
            now: self.host.now(),
            cpu: self.host.cpu(),
            interruptible,
            injecting: injection::is_injecting(self.cpu.vmcb()),
        }
    }
}
