use std::string::ToString;

use super::*;
use crate::inbox::DirectInbox;
use crate::mmio::Width;
use crate::page::ApicPage;
use crate::profile::{Profile, Vendor};

#[test]
fn after_reset() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 3, Profile::intel(), DirectInbox);
    let apic = LocalApic::new(&slot, true);
    let expected = "\
local APIC 3, xAPIC, base 0xfee00000
LVT0     0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVT1     0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVTPC    0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVTERR   0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVTTHMR  0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVTCMCI  0x00010000 active-hi edge  masked              Fixed  (vec 0)
LVTT     0x00010000 active-hi edge  masked one-shot     Fixed  (vec 0)
Timer    DCR=0x0 (divide by 2) initial_count = 0 current_count = 0
SPIV     0x000000ff APIC disabled, focus=off, spurious vec 255
ICR      0x00000000 Fixed physical edge de-assert no-shorthand (vec 0)
ICR2     0x00000000 cpu 0 (xAPIC ID)
ESR      0x00000000
ISR      (none)
IRR      (none)
APR 0x00 TPR 0x00 DFR 0x0f LDR 0x00 PPR 0x00
";
    assert_eq!(apic.display(0).to_string(), expected);
}

#[test]
fn a_busy_apic() {
    let page = ApicPage::new();
    let slot = Slot::new(&page, 0, Profile::amd(), DirectInbox);
    let mut apic = LocalApic::new(&slot, true);
    let writes: [(u16, u64); 9] = [
        (0x0F0, 0x1FF),
        (0x350, 0xA733),
        (0x360, 0x400),
        (0x320, 0x2_0040),
        (0x3E0, 0xB),
        (0x380, 1000),
        (0x080, 0x20),
        (0x310, 0x0300_0000),
        (0x300, 0x0000_0841),
    ];
    for (offset, value) in writes {
        let _ = apic.write_mmio(offset, Width::Dword, value, 0);
    }
    for (vector, trigger) in [(0x31, Trigger::Edge), (0x51, Trigger::Level), (0x50, Trigger::Edge)]
    {
        assert_eq!(slot.request(vector, trigger).outcome, crate::Outcome::Accepted);
    }
    assert_eq!(apic.acknowledge(), 0x51);
    let text = apic.display(400).to_string();
    let lines: std::vec::Vec<&str> = text.lines().collect();
    assert_eq!(slot.profile().vendor(), Vendor::Amd);
    assert_eq!(
        lines,
        [
            "local APIC 0, xAPIC, base 0xfee00000",
            "LVT0     0x00008733 active-hi level                     ExtINT",
            "LVT1     0x00000400 active-hi edge                      NMI   ",
            "LVTPC    0x00010000 active-hi edge  masked              Fixed  (vec 0)",
            "LVTERR   0x00010000 active-hi edge  masked              Fixed  (vec 0)",
            "LVTTHMR  0x00010000 active-hi edge  masked              Fixed  (vec 0)",
            "LVTT     0x00020040 active-hi edge         periodic     Fixed  (vec 64)",
            "Timer    DCR=0xb (divide by 1) initial_count = 1000 current_count = 600",
            "SPIV     0x000001ff APIC enabled, focus=on, spurious vec 255",
            "ICR      0x00000841 Fixed logical edge de-assert no-shorthand (vec 65)",
            "ICR2     0x03000000 mask 0x3 (xAPIC)",
            "ESR      0x00000000",
            "ISR      81 (level)",
            "IRR      80 49",
            "APR 0x50 TPR 0x20 DFR 0x0f LDR 0x00 PPR 0x50",
        ]
    );
    assert!(!slot.display().to_string().contains("current_count"));
}

#[test]
fn any_page_can_be_shown() {
    for fill in [0, u32::MAX, 0x5A5A_A5A5] {
        let page = ApicPage::new();
        let slot = Slot::new(&page, 7, Profile::intel(), DirectInbox);
        let apic = LocalApic::new(&slot, true);
        for word in page.words() {
            word.store(fill, core::sync::atomic::Ordering::Relaxed);
        }
        assert!(apic.display(u64::MAX).to_string().lines().count() == 16);
    }
}
