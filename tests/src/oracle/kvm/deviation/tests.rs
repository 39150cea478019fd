use vlapic_core::{ApicBase, LvtEntry, Register};

use super::{Deviation, Step, explain};
use crate::oracle::kvm::operation::{Operation, Size};
use crate::oracle::kvm::setup::Setup;
use crate::oracle::kvm::state::{Answer, Events, View};

const SETUP: Setup = Setup { ids: &[0, 1], split: false, writable_id: false };

/// An enabled xAPIC-mode APIC after RESET.
fn view(id: u32) -> View {
    let mut view = View { words: [0; 64], events: Events::default() };
    view.set_word(Register::Version, SETUP.kernel_version());
    let mut view = view.after_init(ApicBase::reset(true));
    view.set_word(Register::Id, id << 24);
    view.set_word(Register::Svr, 0x1FF);
    view
}

/// What `explain` makes of two vCPUs; `change` gets them as they would be without a deviation.
fn rows(
    operation: Operation,
    change: impl FnOnce(&mut Step<'_>),
) -> Result<Vec<Deviation>, String> {
    let before = [view(0), view(1)];
    let mut step = Step {
        operation,
        setup: &SETUP,
        smm: true,
        before: &before,
        bases: &[ApicBase::reset(true); 2],
        ours: before.to_vec(),
        kernel: before.to_vec(),
        our_answer: Answer::default(),
        kernel_answer: Answer::default(),
        unseen: false,
        several: None,
        rows: Vec::new(),
    };
    change(&mut step);
    match explain(&mut step) {
        None => Ok(step.rows),
        Some(difference) => Err(format!("{difference:x?}")),
    }
}

fn store(register: Register, value: u32) -> Operation {
    let address = 0xFEE0_0000 + u32::from(register.offset());
    Operation::Store { vcpu: 0, address, size: Size::Dword, value }
}

#[test]
fn all_rows_stand_in_the_order_of_their_numbers() {
    for (index, row) in Deviation::ALL.into_iter().enumerate() {
        assert_eq!(row as usize, index, "{row:?}");
    }
}

#[test]
fn what_is_equal_needs_no_row() {
    assert_eq!(rows(store(Register::Tpr, 0), |_| {}), Ok(vec![]));
}

#[test]
fn a_low_vector_is_that_vector_and_no_other() {
    let send = store(Register::IcrLow, 0x4_0005);
    let both = |step: &mut Step<'_>| {
        step.ours[0].set_word(Register::IcrLow, 0x4_0005);
        step.kernel[0].set_word(Register::IcrLow, 0x4_0005);
    };
    let found = rows(send, |step| {
        both(step);
        step.kernel[0] = step.kernel[0].with_request(5, false);
    });
    assert_eq!(found, Ok(vec![Deviation::LowVector]));
    let other_vector = rows(send, |step| {
        both(step);
        step.kernel[0] = step.kernel[0].with_request(6, false);
    });
    assert!(other_vector.is_err());
    let ours_instead = rows(send, |step| {
        both(step);
        step.ours[0] = step.ours[0].with_request(5, false);
    });
    assert!(ours_instead.is_err(), "the row is about the kernel");
    let more = rows(send, |step| {
        both(step);
        step.kernel[0] = step.kernel[0].with_request(5, false);
        step.kernel[0].set_word(Register::Tpr, 1);
    });
    assert!(more.is_err(), "nothing else may differ with it");
}

#[test]
fn lowest_priority_is_one_each() {
    let msi = Operation::Msi { address: 0xFEE0_3004, data: 0x4151 };
    let found = rows(msi, |step| {
        step.ours[0] = step.ours[0].with_request(0x51, false);
        step.kernel[1] = step.kernel[1].with_request(0x51, false);
    });
    assert_eq!(found, Ok(vec![Deviation::LowestPriority; 2]));
    let twice = rows(msi, |step| {
        for vcpu in 0..2 {
            step.ours[vcpu] = step.ours[vcpu].with_request(0x51, false);
        }
        step.kernel[1] = step.kernel[1].with_request(0x51, false);
    });
    assert!(twice.is_err());
    let fixed = Operation::Msi { address: 0xFEE0_3004, data: 0x4051 };
    let lost = rows(fixed, |step| step.ours[0] = step.ours[0].with_request(0x51, false));
    assert!(lost.is_err(), "fixed is for all");
}

#[test]
fn a_lost_nmi_needs_a_reason() {
    let nmi = Operation::Msi { address: 0xFEE0_1004, data: 0x4400 };
    let lost = |step: &mut Step<'_>| step.ours[0].events.nmi = true;
    assert!(rows(nmi, lost).is_err(), "an enabled APIC has its logical destination");
    let other = Operation::Msi { address: 0xFEE0_0000, data: 0x4400 };
    assert!(rows(other, lost).is_err());
}

#[test]
fn stored_read_only_bits_are_those_that_were_written() {
    let lint = Register::Lvt(LvtEntry::Lint0);
    let write = store(lint, 0x1_5041);
    let with = |ours: u32, kernel: u32| {
        rows(write, move |step| {
            step.ours[0].set_word(lint, ours);
            step.kernel[0].set_word(lint, kernel);
        })
    };
    assert_eq!(with(0x1_0041, 0x1_5041), Ok(vec![Deviation::LvtReadOnly]));
    assert!(with(0x1_5041, 0x1_0041).is_err(), "the row is about the kernel");
    assert!(with(0x1_0041, 0x1_1041).is_err(), "all of them or none");
    assert!(with(0x1_0041, 0x1_5042).is_err());
}

#[test]
fn undefined_loads_are_those_outside_registers() {
    let load = |offset: u32| {
        let address = 0xFEE0_0000 + offset;
        rows(Operation::Load { vcpu: 0, address, size: Size::Dword }, |step| {
            step.our_answer.value = Some(0);
            step.kernel_answer.value = Some(7);
        })
    };
    for offset in [0x000, 0x040, 0x0B0, 0x0C0, 0x0F4, 0x2F0, 0x3F0, 0x400] {
        assert_eq!(load(offset), Ok(vec![Deviation::ReservedRead]), "{offset:#x}");
    }
    for offset in [0x020, 0x080, 0x0D0, 0x100, 0x270, 0x300, 0x380, 0x3E0] {
        assert!(load(offset).is_err(), "{offset:#x}");
    }
}
