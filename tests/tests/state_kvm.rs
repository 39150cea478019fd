//! KVM's `kvm_lapic_state`, through the kernel itself: what we export it takes, what it exports we take, and nothing is
//! lost on the way, in xAPIC and x2APIC mode and with both ways of writing an ID.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that gets here has failed")]

use std::io::Write;

use kvm_bindings::{
    KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_USE_32BIT_IDS, Msrs, kvm_enable_cap,
    kvm_lapic_state, kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vlapic_core::state::{
    Correction, Feature, ImportError, KvmBeside, KvmIds, OneShot, Outside, REGISTERS_LENGTH,
    STATE_LENGTH,
};
use vlapic_core::{
    ApicPage, Bank, DirectInbox, LocalApic, LvtEntry, Mode, Profile, Register, Slot, Trigger, Width,
};
use vlapic_tests::plain::Plain;
use vlapic_tests::steps::Random;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const PPR: usize = 0xa0;
const CURRENT_COUNT: usize = 0x390;
/// Where the kernel itself has the destination in x2APIC mode; in its record it stands at 310 as well.
const ICR_TOP: usize = 0x304;

/// The four conventions, and an ID that tells them apart.
const CONVENTIONS: [(Mode, KvmIds, u32); 6] = [
    (Mode::XApic, KvmIds::Narrow, 0x23),
    (Mode::XApic, KvmIds::Wide, 0x23),
    (Mode::X2Apic, KvmIds::Narrow, 0x23),
    (Mode::X2Apic, KvmIds::Wide, 0x23),
    (Mode::X2Apic, KvmIds::Narrow, 0x123),
    (Mode::X2Apic, KvmIds::Wide, 0x123),
];

/// One vCPU of the kernel's, that never runs.
struct Kernel {
    _vm: VmFd,
    vcpu: VcpuFd,
}

impl Kernel {
    /// `None`, with a word to say so, where there is no KVM.
    fn new(ids: KvmIds, id: u32) -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                // Past the capture of a passing test's output.
                let mut out = std::io::stderr();
                let _ = writeln!(out, "SKIPPED {name}: /dev/kvm cannot be opened: {error}");
                return None;
            }
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        if ids == KvmIds::Wide {
            let mut format = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
            format.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS);
            vm.enable_cap(&format).unwrap();
        }
        let vcpu = vm.create_vcpu(id.into()).unwrap();
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= 1 << 21 | 1 << 24;
        }
        vcpu.set_cpuid2(&cpuid).unwrap();
        Some(Self { _vm: vm, vcpu })
    }

    fn msr(&self, index: u32) -> u64 {
        let mut msrs = one(index, 0);
        assert_eq!(self.vcpu.get_msrs(&mut msrs).unwrap(), 1, "RDMSR {index:#x}");
        msrs.as_slice()[0].data
    }

    fn set_msr(&self, index: u32, value: u64) {
        let done = self.vcpu.set_msrs(&one(index, value)).unwrap();
        assert_eq!(done, 1, "WRMSR {index:#x} {value:#x}");
    }

    /// In the order that KVM wants.
    fn restore(&self, registers: &[u8; REGISTERS_LENGTH], beside: &KvmBeside) {
        self.set_msr(APIC_BASE, beside.apic_base);
        let regs = registers.map(|byte| byte as i8);
        self.vcpu.set_lapic(&kvm_lapic_state { regs }).unwrap();
        self.set_msr(TSC_DEADLINE, beside.tsc_deadline);
    }

    fn save(&self) -> ([u8; REGISTERS_LENGTH], KvmBeside) {
        let registers = self.vcpu.get_lapic().unwrap().regs.map(|byte| byte as u8);
        let beside = KvmBeside {
            apic_base: self.msr(APIC_BASE),
            tsc_deadline: self.msr(TSC_DEADLINE),
            outside: Outside::default(),
        };
        (registers, beside)
    }
}

fn one(index: u32, data: u64) -> Msrs {
    Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).unwrap()
}

/// The APIC that KVM shows its guests.
fn profile() -> Profile {
    Profile::intel()
        .with_version_number(0x14)
        .with_cmci(false)
        .with_eoi_suppression(false)
        .with_focus_check(true)
}

fn owner(id: u32, mode: Mode, profile: Profile) -> LocalApic<'static, DirectInbox> {
    let page = Box::leak(Box::new(ApicPage::new()));
    let slot = Box::leak(Box::new(Slot::new(page, id, profile, DirectInbox)));
    let mut apic = LocalApic::new(slot, true);
    if mode == Mode::X2Apic {
        let _ = apic.write_msr(APIC_BASE, 0xfee0_0d00, 0).unwrap();
    }
    apic
}

/// Something of everything but a count that runs.
fn live(apic: &mut LocalApic<'static, DirectInbox>, random: &mut Random, counts: bool) {
    let mode = apic.slot().mode();
    let write = |apic: &mut LocalApic<'static, DirectInbox>, register: Register, value: u64| {
        if mode == Mode::X2Apic {
            let _ = apic.write_msr(register.msr(), value, 0);
        } else {
            if register == Register::IcrLow {
                let _ = apic.write_mmio(0x310, Width::Dword, value >> 32 << 24, 0);
            }
            let _ = apic.write_mmio(register.offset(), Width::Dword, value & 0xffff_ffff, 0);
        }
    };
    write(apic, Register::Svr, 0x1ff);
    for _ in 0..30 {
        let vector = 16 + random.below(240);
        match random.below(12) {
            0 => write(apic, Register::Tpr, random.below(256)),
            1 => write(apic, Register::Ldr, random.bits() & 0xff00_0000),
            2 => write(apic, Register::Dfr, random.bits() & 0xf000_0000),
            3 => write(apic, Register::IcrLow, random.bits() & 0xffff_ffff_0000_08ff),
            4 => {
                let entry = random.pick(&LvtEntry::ALL);
                let wide = if entry == LvtEntry::Timer { 0x6_0000 } else { 0x2400 };
                let value = random.bits() & (0x1_00ff | wide);
                write(apic, Register::Lvt(entry), value);
            }
            5 => write(apic, Register::DivideConfiguration, random.below(16) & 0xb),
            6 if counts => write(apic, Register::InitialCount, random.bits() & 0xffff_ffff),
            7 => {
                let _ = apic.write_msr(TSC_DEADLINE, random.bits() >> 1 | 1 << 62, 0);
            }
            8 => write(apic, Register::Svr, random.pick(&[0x1ff, 0x3ff, 0xff, 0x1f3])),
            9 => {
                if let Some(vector) = apic.nominate() {
                    apic.commit(vector);
                }
            }
            _ => {
                let trigger = random.pick(&[Trigger::Edge, Trigger::Level]);
                let _ = apic.slot().request(vector as u8, trigger);
            }
        }
    }
}

fn same(found: &[u8], expected: &[u8], context: &str) {
    for offset in (0..REGISTERS_LENGTH)
        .filter(|offset| ![PPR, ICR_TOP, CURRENT_COUNT].contains(&(offset & !3)))
    {
        assert_eq!(found[offset], expected[offset], "{context}: byte {offset:#x}");
    }
}

/// Ours, the kernel's, and ours again: the same APIC.
#[test]
fn through_the_kernel() {
    for (mode, ids, id) in CONVENTIONS {
        let Some(kernel) = Kernel::new(ids, id) else { return };
        for seed in 0..150 {
            let context = format!("{mode:?} {ids:?} ID {id:#x} seed {seed}");
            let mut original = owner(id, mode, profile());
            live(&mut original, &mut Random::new(seed), false);
            let mut registers = [0; REGISTERS_LENGTH];
            let beside = original.export_kvm(ids, 0, &mut registers);
            kernel.restore(&registers, &beside);
            let (returned, kept) = kernel.save();
            same(&returned, &registers, &context);
            assert_eq!(kept.apic_base, beside.apic_base, "{context}");
            assert_eq!(kept.tsc_deadline, beside.tsc_deadline, "{context}");
            let mut copy = owner(id, Mode::XApic, profile());
            let corrections = copy.import_kvm(ids, 0, &returned, &kept).unwrap();
            assert!(corrections.is_empty(), "{context}: {corrections:?}");
            let states = [&mut original, &mut copy].map(|apic| {
                let mut state = [0; STATE_LENGTH];
                apic.export_state(0, &mut state);
                // All but the checksum, the upcall, which the pending byte decides, and errors not yet in ESR,
                // which KVM does not have.
                [&state[16..61], &state[64..76], &state[80..]].concat()
            });
            assert!(states[0] == states[1], "{context}: {:x?}", states);
        }
    }
}

/// A count runs on: in the kernel by its clock, so it comes back lower.
#[test]
fn counts_run_on() {
    for (mode, ids, id) in CONVENTIONS {
        let Some(kernel) = Kernel::new(ids, id) else { return };
        for periodic in [0, 1 << 17] {
            let mut original = owner(id, mode, profile());
            let timer = Register::Lvt(LvtEntry::Timer);
            let program = [
                (Register::Svr, 0x1ff),
                (timer, periodic | 0x1_0040),
                (Register::InitialCount, 0x7000_0000),
            ];
            for (register, value) in program {
                let _ = match mode {
                    Mode::X2Apic => original.write_msr(register.msr(), value, 0).unwrap(),
                    _ => original.write_mmio(register.offset(), Width::Dword, value, 0),
                };
            }
            let mut registers = [0; REGISTERS_LENGTH];
            let beside = original.export_kvm(ids, 0x2000_0000, &mut registers);
            let count = |registers: &[u8; REGISTERS_LENGTH]| {
                u32::from_le_bytes(*registers[CURRENT_COUNT..].first_chunk().unwrap())
            };
            assert_eq!(count(&registers), 0x6000_0000, "divided by two");
            kernel.restore(&registers, &beside);
            let (returned, kept) = kernel.save();
            let left = count(&returned);
            assert!((0x5000_0000..=0x6000_0000).contains(&left), "{left:#x}");
            let mut copy = owner(id, mode, profile());
            let corrections = copy.import_kvm(ids, 500, &returned, &kept).unwrap();
            assert!(corrections.is_empty(), "{corrections:?}");
            assert_eq!(copy.next_deadline(), Some(500 + 2 * u64::from(left)));
        }
    }
}

/// The kernel takes anything; so do we, and what we made of it the kernel gives back unchanged.
#[test]
fn made_up_records_through_the_kernel() {
    for (mode, ids, id) in CONVENTIONS {
        let Some(kernel) = Kernel::new(ids, id) else { return };
        let mut imported = 0;
        for seed in 0..150 {
            let context = format!("{mode:?} {ids:?} ID {id:#x} seed {seed}");
            let mut random = Random::new(seed);
            let (mut registers, mut beside) = {
                let mut apic = owner(id, mode, profile());
                live(&mut apic, &mut random, true);
                let mut registers = [0; REGISTERS_LENGTH];
                let beside = apic.export_kvm(ids, 0, &mut registers);
                (registers, beside)
            };
            for _ in 0..random.below(12) {
                let word = (random.bits() as u32).to_le_bytes();
                let at = 16 * random.below(64) as usize;
                // An ID that is not this vCPU's the kernel refuses as well.
                if at != 0x20 {
                    registers[at..at + 4].copy_from_slice(&word);
                }
            }
            beside.tsc_deadline = 0;
            kernel.restore(&registers, &beside);
            let (from_kernel, kept) = kernel.save();
            let mut apic = owner(id, mode, profile());
            match apic.import_kvm(ids, 0, &from_kernel, &kept) {
                Ok(_) => imported += 1,
                Err(error) => unreachable!("{context}: {error}"),
            }
            let mut registers = [0; REGISTERS_LENGTH];
            let beside = apic.export_kvm(ids, 0, &mut registers);
            kernel.restore(&registers, &beside);
            same(&kernel.save().0, &registers, &context);
        }
        assert_eq!(imported, 150);
    }
}

/// What needs no kernel.
fn import(
    ids: KvmIds,
    base: u64,
    stores: &[(Register, u32)],
) -> (LocalApic<'static, DirectInbox>, Result<Vec<Correction>, ImportError>) {
    import_with(ids, &KvmBeside { apic_base: base, ..KvmBeside::default() }, stores)
}

fn import_with(
    ids: KvmIds,
    beside: &KvmBeside,
    stores: &[(Register, u32)],
) -> (LocalApic<'static, DirectInbox>, Result<Vec<Correction>, ImportError>) {
    let mut registers = [0; REGISTERS_LENGTH];
    let mut source = owner(5, Mode::XApic, profile());
    let _ = source.export_kvm(ids, 0, &mut registers);
    for (register, value) in stores {
        let at = usize::from(register.offset());
        registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let mut apic = owner(5, Mode::XApic, profile());
    let result = apic.import_kvm(ids, 1000, &registers, beside);
    (apic, result.map(|corrections| corrections.iter().collect()))
}

const XAPIC: u64 = 0xfee0_0900;
const X2APIC: u64 = 0xfee0_0d00;

#[test]
fn ids_by_convention() {
    let id = |value| (Register::Id, value);
    let ldr = (Register::Ldr, 0x20);
    let table = [
        (KvmIds::Narrow, XAPIC, 5 << 24, Ok(vec![])),
        (KvmIds::Wide, XAPIC, 5 << 24, Ok(vec![])),
        (KvmIds::Wide, XAPIC, 6 << 24, Ok(vec![Correction::Id, Correction::Ldr])),
        (KvmIds::Narrow, X2APIC, 5 << 24, Ok(vec![])),
        (KvmIds::Narrow, X2APIC, 6 << 24, Ok(vec![Correction::Id])),
        (KvmIds::Wide, X2APIC, 5, Ok(vec![])),
        (KvmIds::Wide, X2APIC, 5 << 24, Err(ImportError::ApicId { found: 5 << 24, expected: 5 })),
    ];
    for (ids, base, value, expected) in table {
        let ldr = if base == X2APIC { vec![id(value), ldr] } else { vec![id(value)] };
        let (apic, result) = import(ids, base, &ldr);
        let expected = expected.map(|found| {
            found.into_iter().filter(|&one| one != Correction::Ldr).collect::<Vec<_>>()
        });
        assert_eq!(result, expected, "{ids:?} {base:#x} {value:#x}");
        if result.is_ok() {
            let expected = if base == X2APIC { 5 } else { 5 << 24 };
            assert_eq!(apic.slot().page().read(Register::Id), expected);
        }
    }
}

#[test]
fn what_kvm_takes_and_no_apic_does() {
    let table = [
        (Register::Svr, 0xffff_ffff, vec![Correction::Svr]),
        (Register::Tpr, 0xffff_ffff, vec![Correction::Tpr]),
        (Register::Irr(Bank::new(0)), 0x8000_0002, vec![Correction::IllegalVectors]),
        (Register::Lvt(LvtEntry::Error), 0x1_10ff, vec![Correction::LvtBits]),
        (Register::Lvt(LvtEntry::Lint0), 0x700, vec![Correction::LvtMasks]),
        (Register::CurrentCount, 7, vec![Correction::CurrentCount]),
        (Register::Ppr, 0xf0, vec![]),
        (Register::Version, 0x0105_0014, vec![Correction::Version]),
    ];
    for (register, value, corrections) in table {
        let (_, result) = import(KvmIds::Wide, XAPIC, &[(register, value)]);
        assert_eq!(result, Ok(corrections), "{register:?}");
    }
    // An entry more, and masked.
    let entry = [(Register::Version, 0x0006_0014), (Register::Lvt(LvtEntry::Cmci), 0x1_0000)];
    let (_, result) = import(KvmIds::Wide, XAPIC, &entry);
    assert_eq!(result, Ok(vec![Correction::Version, Correction::LvtBits]));
    let timer = Register::Lvt(LvtEntry::Timer);
    let reserved = [(Register::Svr, 0x1ff), (timer, 3 << 17 | 0x40), (Register::InitialCount, 9)];
    let (apic, result) = import(KvmIds::Wide, XAPIC, &reserved);
    assert_eq!((result, apic.next_deadline()), (Ok(vec![]), None));
}

#[test]
fn refused_by_name() {
    let (_, result) = import(KvmIds::Wide, 0xfee0_0400, &[]);
    assert_eq!(result, Err(ImportError::ApicBase(0xfee0_0400)));
    let cmci = [(Register::Version, 0x0006_0014), (Register::Lvt(LvtEntry::Cmci), 0x40)];
    let (_, result) = import(KvmIds::Wide, XAPIC, &cmci);
    assert_eq!(result, Err(ImportError::Unsupported(Feature::Cmci)));
    let mut plain = Plain::new(profile());
    let error = plain.apic.import_kvm(KvmIds::Wide, 0, &[0; 1023], &KvmBeside::default());
    assert_eq!(error.unwrap_err(), ImportError::Length(1023));
}

/// KVM's record of a one-shot count says zero when it has fired; whether the interrupt has come so far it does not say.
#[test]
fn a_one_shot_that_shows_zero() {
    let timer = Register::Lvt(LvtEntry::Timer);
    let stores = [(Register::Svr, 0x1ff), (timer, 0x40), (Register::InitialCount, 100)];
    let held = [&stores[..], &[(Register::Irr(Bank::new(2)), 1)]].concat();
    for (one_shot, stores, due) in [
        (OneShot::Unknown, &stores[..], true),
        (OneShot::Unknown, &held, false),
        (OneShot::Fired, &stores, false),
        (OneShot::Running, &held, true),
    ] {
        let outside = Outside { one_shot, ..Outside::default() };
        let beside = KvmBeside { apic_base: XAPIC, outside, ..KvmBeside::default() };
        let (apic, result) = import_with(KvmIds::Wide, &beside, stores);
        assert_eq!(result, Ok(vec![]));
        assert_eq!(apic.next_deadline(), due.then_some(1002), "{one_shot:?}");
    }
}
