//! Pages that are stored to by anybody at any moment, with nobody told.

use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::{LocalApic, Vm};

use super::OPERATIONS;
use super::plain::{Memory, Op, apply, profile, value};

/// Three vCPUs and a neighbour. Between the operations any word of any page becomes anything.
pub fn scribble(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let profile = profile(bytes)?;
    let (memory, neighbour) = (Memory::<3>::new(), Memory::<1>::new());
    let slots = memory.slots([0, 1, 0xff], profile);
    let other = neighbour.slots([1], profile);
    let Ok(vm) = Vm::new(&slots) else { unreachable!("IDs ascend") };
    let mut owners = [0, 1, 2].map(|index| {
        let mut apic = LocalApic::new(&slots[index], index == 0);
        apic.bind_upcall(&memory.pending[index]);
        apic
    });
    let _ = LocalApic::new(&other[0], true);
    let before = neighbour.words();
    let mut now = 1000;
    for _ in 0..OPERATIONS {
        if bytes.is_empty() {
            break;
        }
        let choice = u8::arbitrary(bytes)?;
        let index = usize::from(choice & 3).min(2);
        if choice & 4 == 0 {
            let offset = u16::arbitrary(bytes)?;
            let offset = if choice & 8 == 0 { offset & 0x7f0 } else { offset };
            memory.pages[index].store(offset, value(bytes)? as u32);
            continue;
        }
        let op = Op::take_any(bytes)?;
        let told: &mut dyn FnMut(usize, _) = &mut |target, _| assert!(target < 3, "vCPU {target}");
        apply(&vm, &mut owners[index], index, &memory.pending[index], &mut now, op, told);
        let apic = &owners[index];
        let nominated = apic.nominate().map_or(0x10, vlapic_core::Vector::get);
        assert!(nominated >= 16, "vector {nominated:#x} is delivered");
        let _ = (apic.next_deadline(), apic.passes_external_interrupts());
        let _ = slots[index].display().to_string();
    }
    assert!(neighbour.words() == before, "the neighbour's page has changed");
    Ok(())
}
