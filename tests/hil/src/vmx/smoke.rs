//! Bring-up cases: the VMX layer and the guests, with no APIC driver.

use super::ept::Ept;
use super::state::Options;
use super::{Reason, Vcpu, VmxError, capability};
use crate::guest::hypercall::Hypercall;
use crate::guest::{self, Context, Start};
use crate::machine::command_line::CommandLine;
use crate::machine::interrupts;
use crate::machine::self_check::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[Case { name: "vmx-vmcall", run: vmcall }];

extern "C" fn hello(_: &'static Context, argument: u64) -> u64 {
    guest::hypercall::log("hello from the guest");
    argument + 1
}

fn vmcall(_: &CommandLine) -> Outcome {
    match first() {
        Ok(8) => Outcome::Pass,
        Ok(_) => Outcome::Fail("wrong answer"),
        Err(error) => {
            crate::log!("{error}");
            Outcome::Fail("vmx")
        }
    }
}

fn first() -> Result<u64, VmxError> {
    let capability = capability::enable()?;
    let ept = Ept::identity(&capability, 1 << 30)?;
    let context = guest::context(0);
    context.reset();
    let mut vcpu = Vcpu::new(capability, ept.pointer(), Options::default())?;
    let mut current = vcpu.load()?;
    current.start(&Start::new(context, hello, 7))?;
    loop {
        let exit = interrupts::without(|| current.run())?;
        if exit.reason == Reason::Vmcall {
            current.skip_instruction(&exit)?;
            match Hypercall::decode(current.general()) {
                Hypercall::Log(text) => crate::log!("guest: {text}"),
                Hypercall::Finish(value) => return Ok(value),
                other => crate::log!("{other:?}"),
            }
        } else {
            crate::log!("{exit:?}");
            return Ok(0);
        }
    }
}
