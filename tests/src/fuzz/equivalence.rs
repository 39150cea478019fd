//! The driver on the silicon model against plain emulation.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use arbitrary::{Arbitrary, Result, Unstructured};
use vlapic_core::Mode;

use crate::hypervisor::{Config, Level, run};
use crate::reference::Reference;
use crate::steps::{Random, Subject, random_step};

/// What a guest reads counts: what stands in the page is the processor's affair.
const PPR: u16 = 0x0a0;

/// IA32_APIC_BASE.EN.
const ENABLED: u64 = 1 << 11;

/// IRR. Hardware that posts does not ask whether there is an APIC: what comes while there is none stands here, where no guest
/// looks, until the APIC is there again and begins anew.
const IRR: RangeInclusive<u16> = 0x200..=0x270;

/// Two vCPUs under APICv at a level that the first byte asks for, and the same in plain emulation: each pair of bytes
/// is a step, and after each the guests have seen the same and the pages hold the same.
pub fn equivalence(data: &[u8]) {
    let _ = compare(&mut Unstructured::new(data));
}

fn compare(bytes: &mut Unstructured<'_>) -> Result<()> {
    let choice = u8::arbitrary(bytes)?;
    let level = Level::ALL[usize::from(choice & 0x7f) % Level::ALL.len()];
    let mode = if choice & 0x80 == 0 { Mode::XApic } else { Mode::X2Apic };
    let config = Config::new(level).mode(mode).vcpus(2).seed(1);
    REFERENCE.with_borrow_mut(|reference| {
        let reference =
            reference.get_or_insert_with(|| Reference::new(2, config.profile, Mode::XApic));
        reference.restart(mode);
        reference.register_upcalls();
        on_the_model(config, level, reference, bytes)
    })
}

thread_local! {
    /// A reference lives for ever, so one has to do for all inputs.
    static REFERENCE: RefCell<Option<Reference>> = const { RefCell::new(None) };
}

fn on_the_model(
    config: Config,
    level: Level,
    reference: &mut Reference,
    bytes: &mut Unstructured<'_>,
) -> Result<()> {
    run(config, |hypervisor| {
        hypervisor.register_upcalls();
        for number in 0..64 {
            if bytes.is_empty() {
                break;
            }
            let step = random_step(&mut Random::new(u16::arbitrary(bytes)?.into()), 2);
            let (expected, found) = (step.apply(reference), step.apply(hypervisor));
            assert_eq!(found, expected, "{level:?} answer to step {number}, {step:x?}");
            for vcpu in 0..2 {
                let same = hypervisor.seen(vcpu) == reference.seen(vcpu);
                assert!(same, "{level:?} vCPU {vcpu} at step {number}, {step:x?}");
            }
        }
        for (vcpu, offset) in
            (0..2).flat_map(|vcpu| (0..0x400).step_by(4).map(move |at| (vcpu, at)))
        {
            let absent = reference.seen(vcpu).base & ENABLED == 0;
            if offset != PPR && !(absent && IRR.contains(&offset)) {
                let (expected, found) =
                    (reference.word(vcpu, offset), hypervisor.word(vcpu, offset));
                assert_eq!(found, expected, "{level:?} vCPU {vcpu} page {offset:#x}");
            }
        }
        Ok(())
    })
}
