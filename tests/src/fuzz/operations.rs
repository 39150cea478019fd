//! Whatever guests and devices do, in plain emulation.

use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::{LocalApic, Vm};

use super::OPERATIONS;
use super::plain::{Memory, Op, apply, is_sound, profile};

/// Three vCPUs and a neighbour: any operations. Each page stays one that an APIC can have, and the neighbour's is not
/// touched.
pub fn operations(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(bytes: &mut Unstructured<'_>) -> Result<()> {
    let profile = profile(bytes)?;
    let wide = bool::arbitrary(bytes)?;
    let (memory, neighbour) = (Memory::<3>::new(), Memory::<1>::new());
    let slots = memory.slots(if wide { [0, 0x1ff, 0x12_0003] } else { [0, 1, 5] }, profile);
    let other = neighbour.slots([0], profile);
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
        let index = usize::from(u8::arbitrary(bytes)? % 4).min(2);
        let op = Op::take(bytes)?;
        let told: &mut dyn FnMut(usize, _) = &mut |target, _| assert!(target < 3, "vCPU {target}");
        apply(&vm, &mut owners[index], index, &memory.pending[index], &mut now, op, told);
        for page in &memory.pages {
            let low = [0x100, 0x180, 0x200].map(|offset| page.load(offset) & 0xffff);
            assert_eq!(low, [0; 3], "a vector below 16 after {op:x?}");
        }
    }
    for apic in &mut owners {
        is_sound(apic, now);
    }
    assert!(neighbour.words() == before, "the neighbour's page has changed");
    Ok(())
}
