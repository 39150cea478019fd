//! What the processor says it can do, bit by bit, against what the driver makes of it (SDM Vol. 3D appendix A).

use apicv::{Capabilities, Feature, Wanted, negotiate};
use vlapic_hal::x86::Msrs;

use crate::cases::{Case, Failure, Mode, Setting, equal};
use crate::hypervisor::Level;
use crate::log;
use crate::machine::msr;
use crate::vmx::VmxError;
use crate::vmx::capability;

pub(super) const CASES: &[Case] =
    &[Case { name: "rows-capabilities", cpus: 1, applies: once, run: capabilities }];

/// No guest, so one setting is enough.
fn once(setting: Setting) -> bool {
    setting.level == Level::TprShadow && setting.mode == Mode::XApic
}

const FEATURE_CONTROL: u32 = 0x3a;
const BASIC: u32 = 0x480;
const SECONDARY: u32 = 0x48b;
const TERTIARY: u32 = 0x492;

fn capabilities(_: Setting) -> Result<(), Failure> {
    capability::enable()?;
    equal("IA32_FEATURE_CONTROL: locked, VMX on", msr::read(FEATURE_CONTROL) & 0b101, 0b101u64)?;
    // The newer MSRs of each pair exist if bit 55 of the first says so.
    let newer = msr::read(BASIC) >> 55 & 1 != 0;
    let [pin, primary, exit] = [(0x481, 0x48d), (0x482, 0x48e), (0x483, 0x48f)]
        .map(|(old, new)| msr::read(if newer { new } else { old }));
    let has = |word: u64, bit: u32| word >> bit & 1 != 0;
    let secondary = if has(primary, 63) { msr::read(SECONDARY) } else { 0 };
    let tertiary = if has(primary, 49) { msr::read(TERTIARY) } else { 0 };
    log!("pin {pin:#x} primary {primary:#x} secondary {secondary:#x} tertiary {tertiary:#x}");

    let shadow = has(primary, 53);
    let delivery = shadow && has(secondary, 41) && has(pin, 32);
    let posted = delivery && has(pin, 39) && has(exit, 47);
    let expected = [
        (Feature::TprShadow, "TPR shadow", shadow),
        (Feature::ApicAccess, "APIC accesses", shadow && has(secondary, 32)),
        (Feature::X2Apic, "x2APIC mode", shadow && has(secondary, 36) && has(primary, 60)),
        (Feature::RegisterVirtualization, "registers", shadow && has(secondary, 40)),
        (Feature::VirtualInterruptDelivery, "delivery", delivery),
        (Feature::PostedInterrupts, "posting", posted),
        (Feature::IpiVirtualization, "IPIs", posted && has(tertiary, 4)),
    ];
    // SAFETY: this runs at CPL 0, and VMX has just been switched on, so the capability MSRs exist.
    let msrs = unsafe { Msrs::new() };
    let capabilities = Capabilities::detect(&msrs).map_err(|_| VmxError::NoVmx)?;
    let granted = negotiate(Wanted::ALL, &capabilities).features();
    expected
        .into_iter()
        .try_for_each(|(feature, name, here)| equal(name, granted.contains(feature), here))
}
