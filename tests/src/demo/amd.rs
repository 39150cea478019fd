//! On the model of a processor with AVIC, whether it is used or not.

use std::sync::atomic::Ordering;

use avic::{Face, Wanted};
use vlapic_core::{Mode, Register, SvrWrites};

use super::{RECHECK, Teller, UpcallRow, VECTOR, Way, Who};
use crate::avic_hypervisor::{Config, Hypervisor, run};
use crate::avic_model::Knobs;

/// AVIC is not asked for: the model is then a processor without it. In the silent way the guest has its page as memory.
pub(super) fn without_avic(way: Way, who: Who, mode: Mode) -> UpcallRow {
    let mut config = Config { wanted: Wanted::NONE, mode, ..Config::new(2) };
    if way == Way::Silent {
        config.svr_writes = SvrWrites::Silent { recheck: RECHECK };
    }
    told(config, way, who, Face::Emulated)
}

/// The silent way is a processor that does not exist yet: it stores SVR, and there is no exit.
pub(super) fn with_avic(way: Way, who: Who, mode: Mode) -> UpcallRow {
    let mut config = Config { mode, ..Config::new(2) };
    if way == Way::Silent {
        config.svr_writes = SvrWrites::Silent { recheck: RECHECK };
        config.knobs = Knobs { svr_writes_never_exit: true, ..config.knobs };
    }
    let face = if mode == Mode::X2Apic { Face::X2Avic } else { Face::XAvic };
    told(config, way, who, face)
}

fn told(config: Config, way: Way, who: Who, face: Face) -> UpcallRow {
    run(config, |hypervisor| {
        if who == Who::Contrast {
            hypervisor.use_contrast();
        }
        let row = super::tell(hypervisor, way, who, config.mode);
        assert_eq!(hypervisor.face(1), face, "the processor helps as it was asked to");
        row
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

    fn write_svr(&mut self, way: Way, value: u32) {
        match (way, self.face(1)) {
            (Way::Silent, Face::Emulated) => self.store_silently(1, Register::Svr, value),
            (Way::Silent, Face::X2Avic) => {
                // The driver intercepts the MSR; a processor that does all of SVR itself would need no such thing.
                let (word, bit) = (0x80f * 2 / 64, 0x80f * 2 % 64 + 1);
                let word = &self.storage().permissions(1).words()[word];
                word.fetch_and(!(1 << bit), Ordering::SeqCst);
                self.write(1, Register::Svr, value.into());
                word.fetch_or(1 << bit, Ordering::SeqCst);
            }
            _ => {
                self.write(1, Register::Svr, value.into());
            }
        }
    }

    fn eoi(&mut self) {
        self.eoi(1);
    }

    fn forget_taken(&mut self) {
        self.vcpu_mut(1).forget_taken();
    }
}
