//! A vCPU's APIC out and in.

use std::hint::black_box;

use vlapic_core::state;

use crate::contender::Contender;
use crate::floor;
use crate::kernel;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{NOW, emulated_one};

pub(super) fn rows() -> Vec<Row> {
    let export = Row::new("state", "export", Mode::X2Apic, "export, our format", || {
        let state = (emulated_one(Mode::X2Apic), [0; state::STATE_LENGTH]);
        let ours = Contender::new("ours", state, |(apic, bytes), _| {
            apic.export_state(black_box(NOW), bytes);
            black_box(bytes);
        });
        Contenders::ours(ours).floor(floor::copy_of(state::STATE_LENGTH)).kernel(kernel::export())
    });
    let import = Row::new("state", "import", Mode::X2Apic, "import, our format", || {
        let mut bytes = [0; state::STATE_LENGTH];
        emulated_one(Mode::X2Apic).export_state(NOW, &mut bytes);
        let state = (emulated_one(Mode::X2Apic), bytes);
        let ours = Contender::new("ours", state, |(apic, bytes), _| {
            let imported = apic.import_state(black_box(NOW), black_box(bytes));
            let _ = black_box(imported);
        });
        Contenders::ours(ours).floor(floor::copy_of(state::STATE_LENGTH)).kernel(kernel::import())
    });
    vec![export, import]
}
