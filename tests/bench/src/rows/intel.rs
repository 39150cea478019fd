//! Intel: the whole work before an entry and after an exit, on a VMCS in memory. What VMREAD and VMWRITE cost beyond a
//! load and a store is the processor's, and not in these numbers.

use std::hint::black_box;

use apicv::{Addresses, Capabilities, Exit, HostMode, MsrBitmap, PostedDescriptor, Posting, Vcpu};
use apicv::{Feature, Wanted, field, reason};
use vlapic_core::{
    ApicPage, EntryInput, ExitOutcome, Next, Profile, Register, Slot, Trigger, Width,
};
use vlapic_hal::{PhysAddr, Vmcs, VmcsError, VmcsField};
use vlapic_tests::model::Capability;

use super::posting::VECTORS;
use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{NOW, enable, leak};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for mode in [Mode::XApic, Mode::X2Apic] {
        rows.push(entry(mode));
        rows.push(entry_with_post(mode));
        rows.push(not_ours(mode));
        rows.push(write_of_icr(mode));
        rows.push(end_of_level(mode));
    }
    rows.extend([below_threshold(), window_access(), injection(), block(), preempt()]);
    rows
}

const INPUT: EntryInput = EntryInput { now: NOW, cpu: 1, interruptible: true, injecting: false };

fn row(name: &str, mode: Mode, what: &'static str, make: impl Fn() -> Contender + 'static) -> Row {
    Row::new("intel", name, mode, what, move || {
        Contenders::ours(make()).floor(floor::drain_by_loads())
    })
}

fn entry(mode: Mode) -> Row {
    Row::new("intel", "entry", mode, "before entry, nothing to do", move || {
        let subject = Subject::new(mode, Wanted::up_to(Feature::PostedInterrupts));
        let ours = Contender::new("ours", subject, |subject, _| {
            subject.enter();
        });
        Contenders::ours(ours).floor(floor::looks_of_entry())
    })
}

fn entry_with_post(mode: Mode) -> Row {
    row("entry-posted", mode, "post, before entry, IRR emptied", move || {
        Contender::new(
            "ours",
            Subject::new(mode, Wanted::up_to(Feature::PostedInterrupts)),
            |subject, _| {
                let slot = subject.vcpu.apic().slot();
                let _ = black_box(slot.request(black_box(0x61), Trigger::Edge));
                subject.enter();
                slot.page().store(0x230, 0);
            },
        )
    })
}

fn not_ours(mode: Mode) -> Row {
    row("exit-other", mode, "an exit that is not the APIC's, before entry", move || {
        Contender::new(
            "ours",
            Subject::new(mode, Wanted::up_to(Feature::PostedInterrupts)),
            |subject, _| {
                let _ = black_box(subject.exit(1, 0));
                subject.enter();
            },
        )
    })
}

fn write_of_icr(mode: Mode) -> Row {
    row("exit-icr", mode, "APIC-write exit of ICR, decoded; before entry", move || {
        let subject = Subject::new(mode, Wanted::up_to(Feature::PostedInterrupts));
        let page = subject.vcpu.apic().slot().page();
        if mode == Mode::XApic {
            page.write(Register::IcrHigh, 1 << 24);
        } else {
            page.store(0x304, 1);
        }
        Contender::new("ours", subject, move |subject, _| {
            page.write(Register::IcrLow, black_box(0x4061));
            let _ = black_box(subject.exit(reason::APIC_WRITE, 0x300));
            subject.enter();
        })
    })
}

fn end_of_level(mode: Mode) -> Row {
    row("exit-eoi", mode, "virtualized-EOI exit of a level; before entry", move || {
        let subject = Subject::new(mode, Wanted::up_to(Feature::PostedInterrupts));
        subject.vcpu.apic().slot().page().store(0x1B0, 2);
        Contender::new("ours", subject, |subject, _| {
            let _ = black_box(subject.exit(reason::VIRTUALIZED_EOI, 0x61));
            subject.enter();
        })
    })
}

fn below_threshold() -> Row {
    row("exit-tpr", Mode::XApic, "TPR-below-threshold exit; before entry", || {
        Contender::new(
            "ours",
            Subject::new(Mode::XApic, Wanted::up_to(Feature::TprShadow)),
            |subject, _| {
                let _ = black_box(subject.exit(reason::TPR_BELOW_THRESHOLD, 0));
                subject.enter();
            },
        )
    })
}

fn window_access() -> Row {
    let what = "APIC-access exit, a read of the current count emulated; before entry";
    row("exit-access", Mode::XApic, what, || {
        let subject = Subject::new(Mode::XApic, Wanted::up_to(Feature::PostedInterrupts));
        Contender::new("ours", subject, |subject, _| {
            if let ExitOutcome::Decode(access) = subject.exit(reason::APIC_ACCESS, 0x390) {
                let apic = subject.vcpu.apic_mut();
                black_box(apic.read_mmio(access.offset, Width::Dword, black_box(NOW)));
            }
            subject.enter();
        })
    })
}

fn injection() -> Row {
    let what = "request, before entry with injection, EOI; no APICv";
    row("inject", Mode::XApic, what, || {
        Contender::new("ours", Subject::new(Mode::XApic, Wanted::NONE), |subject, _| {
            let _ = black_box(subject.vcpu.apic().slot().request(black_box(0x61), Trigger::Edge));
            subject.enter();
            // The processor clears it as the guest takes the interrupt.
            let _ = subject.vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, 0);
            let apic = subject.vcpu.apic_mut();
            let _ = black_box(apic.write_mmio(black_box(0xB0), Width::Dword, 0, black_box(NOW)));
        })
    })
}

fn block() -> Row {
    row("block", Mode::X2Apic, "block and before entry again", || {
        Contender::new(
            "ours",
            Subject::new(Mode::X2Apic, Wanted::up_to(Feature::PostedInterrupts)),
            |subject, _| {
                black_box(subject.vcpu.block(black_box(INPUT)));
                subject.enter();
            },
        )
    })
}

fn preempt() -> Row {
    row("preempt", Mode::X2Apic, "preempt and before entry again", || {
        Contender::new(
            "ours",
            Subject::new(Mode::X2Apic, Wanted::up_to(Feature::PostedInterrupts)),
            |subject, _| {
                subject.vcpu.apic().slot().inbox().preempt();
                subject.enter();
            },
        )
    })
}

/// A vCPU and its VMCS.
struct Subject {
    vcpu: Vcpu<'static>,
    vmcs: Fields,
}

impl Subject {
    fn new(mode: Mode, wanted: Wanted) -> Self {
        let posting = Posting::new(leak(PostedDescriptor::new()), VECTORS, HostMode::X2Apic);
        let slot = leak(Slot::new(leak(ApicPage::new()), 0, Profile::intel(), posting));
        let mut vcpu = Vcpu::new(slot, true);
        let capabilities = Capabilities::detect(&Capability::full());
        let capabilities = capabilities.unwrap_or_else(|error| unreachable!("{error}"));
        let mut vmcs = Fields::new();
        // What a hypervisor has set before: external interrupts exit and are acknowledged.
        let _ = vmcs.write(field::PIN_CONTROLS, 1);
        let _ = vmcs.write(field::EXIT_CONTROLS, 1 << 15);
        let addresses = Addresses {
            virtual_apic: Some(PhysAddr::new(0x1000)),
            apic_access: Some(PhysAddr::new(0x2000)),
            posted_interrupt_descriptor: Some(PhysAddr::new(0x3000)),
            msr_bitmap: Some((leak(MsrBitmap::new()), PhysAddr::new(0x4000))),
            pid_pointer_table: None,
        };
        let grant = vcpu.configure(&mut vmcs, &capabilities, wanted, &addresses);
        let granted = grant.unwrap_or_else(|error| unreachable!("{error}")).features();
        assert!(granted.contains_all(wanted.features()), "granted {granted}");
        enable(vcpu.apic_mut(), mode);
        let mut subject = Self { vcpu, vmcs };
        let entered = subject.vcpu.before_entry(&mut subject.vmcs, INPUT);
        assert!(entered.is_ok_and(|entry| entry.next == Next::Enter));
        subject
    }

    #[inline(always)]
    fn exit(&mut self, reason: u16, qualification: u64) -> ExitOutcome {
        let exit = black_box(Exit { reason, qualification });
        self.vcpu.after_exit(exit, black_box(NOW))
    }

    #[inline(always)]
    fn enter(&mut self) {
        let _ = black_box(self.vcpu.before_entry(&mut self.vmcs, black_box(INPUT)));
    }
}

/// A VMCS whose fields are a load and a store away.
struct Fields(Box<[u64; 0x8000]>);

impl Fields {
    fn new() -> Self {
        let fields: Result<Box<[u64; 0x8000]>, _> = vec![0; 0x8000].try_into();
        Self(fields.unwrap_or_else(|_| unreachable!("as long as asked for")))
    }
}

impl Vmcs for Fields {
    #[inline]
    fn read(&self, field: VmcsField) -> Result<u64, VmcsError> {
        Ok(self.0[field.encoding() as usize & 0x7FFF])
    }

    #[inline]
    fn write(&mut self, field: VmcsField, value: u64) -> Result<(), VmcsError> {
        self.0[field.encoding() as usize & 0x7FFF] = value;
        Ok(())
    }
}
