//! On the model of a processor with APICv.

use vlapic_core::{Mode, Register};

use super::{RECHECK, Teller, UpcallRow, VECTOR, Way, Who};
use crate::hypervisor::{Config, Hypervisor, Level, run};

pub(super) fn tell(way: Way, who: Who, mode: Mode) -> UpcallRow {
    let level = if way == Way::Emulated { Level::ApicAccess } else { Level::Posted };
    let mut config = Config::new(level).vcpus(2).mode(mode);
    if way == Way::Silent {
        config = config.silent(RECHECK);
    }
    run(config, |hypervisor| {
        if who == Who::Contrast {
            hypervisor.use_contrast();
        }
        super::tell(hypervisor, way, who, mode)
    })
}

impl Teller for Hypervisor<'_> {
    fn register(&mut self) {
        self.register_upcall(1, VECTOR);
    }

    fn exits(&self) -> u64 {
        self.exits(1)
    }

    fn read(&mut self, register: Register) -> u32 {
        self.read(1, register)
    }

    /// In the silent way the window is the page, whatever the mode; a plain store reaches it.
    fn write_svr(&mut self, way: Way, value: u32) {
        if way == Way::Silent {
            self.store_silently(1, Register::Svr, value);
        } else {
            self.write(1, Register::Svr, value.into());
        }
    }

    fn eoi(&mut self) {
        self.eoi(1);
    }

    fn forget_taken(&mut self) {
        self.vcpu_mut(1).forget_taken();
    }
}
