//! Device interrupts through an AMD IOMMU in guest virtual-APIC mode.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Memory, Page, PhysicalBus, PhysicalInterrupt};

use super::doorbell::Doorbells;
use super::ga_log::GaLog;
use super::knobs::Knobs;
use super::page::offset;

/// An IOMMU: it takes interrupts of devices, each with the address of its interrupt-remapping entry.
///
/// A device interrupt is under way from [`interrupt`](Iommu::interrupt) until [`step`](Iommu::step) has ended it; the
/// steps read the entry, set the IRR bit, and read the entry again to announce it.
#[derive(Debug)]
pub struct Iommu<'m> {
    /// The guest-APIC log and its registers.
    pub log: GaLog<'m>,
    /// Whether entries may ask for a physical interrupt in place of a log entry (GAPPI).
    pub physical_announcements: bool,
    memory: Arc<Memory<'m>>,
    doorbells: Arc<Doorbells>,
    bus: Arc<PhysicalBus>,
    /// Entries as the IOMMU read them first, until software invalidates them.
    cached: BTreeMap<u64, Irte>,
    in_flight: Vec<DeviceInterrupt>,
    faults: Vec<RemapFault>,
    /// What is not cached of bits 63:0.
    live_low: u64,
}

/// Why a device interrupt was blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemapFault {
    /// The entry's RemapEn bit is 0.
    NotEnabled,
    /// The entry has a reserved bit set.
    Reserved,
    /// The entry asks for an interrupt type other than fixed or arbitrated, or a logical destination.
    Type,
    /// The vector is below 16.
    Vector,
}

#[derive(Debug, Clone, Copy)]
struct DeviceInterrupt {
    device: u16,
    entry_address: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Look,
    Request,
    Announce,
}

impl<'m> Iommu<'m> {
    pub(super) fn new(
        memory: Arc<Memory<'m>>,
        doorbells: Arc<Doorbells>,
        bus: Arc<PhysicalBus>,
        knobs: &Knobs,
    ) -> Self {
        Iommu {
            log: GaLog::new(memory.clone(), bus.clone()),
            physical_announcements: false,
            memory,
            doorbells,
            bus,
            cached: BTreeMap::new(),
            in_flight: Vec::new(),
            faults: Vec::new(),
            live_low: if knobs.log_bit_is_not_cached {
                Irte::LIVE_LOW
            } else {
                Irte::LIVE_LOW & !Irte::LOG
            },
        }
    }

    /// A device raises an interrupt whose 128-bit entry is at `entry_address`.
    pub fn interrupt(&mut self, device: u16, entry_address: u64) {
        self.in_flight.push(DeviceInterrupt { device, entry_address, stage: Stage::Look });
    }

    /// How many device interrupts are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Makes one step of the device interrupt at `index`, in the order they were raised.
    pub fn step(&mut self, index: usize) {
        let interrupt = self.in_flight[index];
        let address = interrupt.entry_address;
        let next = match interrupt.stage {
            Stage::Look => self.look(address),
            Stage::Request => {
                self.request(address);
                Some(Stage::Announce)
            }
            Stage::Announce => {
                self.announce(interrupt);
                None
            }
        };
        match next {
            Some(stage) => self.in_flight[index].stage = stage,
            None => {
                self.in_flight.remove(index);
            }
        }
    }

    /// Carries every device interrupt to its end.
    pub fn finish(&mut self) {
        while !self.in_flight.is_empty() {
            self.step(0);
        }
    }

    /// The INVALIDATE_INTERRUPT_TABLE command: entries are read from memory again.
    pub fn invalidate_interrupt_table(&mut self) {
        self.cached.clear();
    }

    /// The interrupts that were blocked, in order.
    #[must_use]
    pub fn faults(&self) -> &[RemapFault] {
        &self.faults
    }

    /// Reads the entry and decides what becomes of the interrupt. `None` if it ends here.
    fn look(&mut self, address: u64) -> Option<Stage> {
        let entry = self.entry(address);
        match entry.refusal() {
            Some(fault) => self.faults.push(fault),
            None if entry.guest_mode() => return Some(Stage::Request),
            None => self.bus.send(PhysicalInterrupt {
                destination: entry.destination(),
                vector: entry.vector(),
            }),
        }
        None
    }

    fn request(&mut self, address: u64) {
        let entry = self.entry(address);
        Page::new(self.memory.clone(), entry.backing_page())
            .set_vector(offset::IRR, entry.vector());
    }

    fn announce(&mut self, interrupt: DeviceInterrupt) {
        let entry = self.entry(interrupt.entry_address);
        if entry.is_run() {
            self.doorbells.ring(entry.destination());
        } else if self.physical_announcements && !entry.no_physical_announcement() {
            self.bus.send(PhysicalInterrupt {
                destination: entry.destination(),
                vector: entry.tag() as u8,
            });
        } else if entry.logs() {
            self.log.append(interrupt.device, entry.tag());
        }
    }

    /// The entry: fields that are never cached as memory has them now, the others as they were first seen.
    fn entry(&mut self, address: u64) -> Irte {
        let now = Irte { low: self.memory.load64(address), high: self.memory.load64(address + 8) };
        let first = *self.cached.entry(address).or_insert(now);
        if first.guest_mode() { first.with_live_fields(now, self.live_low) } else { first }
    }
}

/// A 128-bit interrupt-remapping entry.
#[derive(Debug, Clone, Copy)]
struct Irte {
    low: u64,
    high: u64,
}

impl Irte {
    /// GALogIntr, GAPPIDis, IsRun, Destination 23:0, GATag.
    const LIVE_LOW: u64 = 0xffff_ffff_ffff_ff00 | 1 << 6 | 1 << 5 | Self::LOG;
    const LOG: u64 = 1 << 2;
    /// Destination 31:24.
    const LIVE_HIGH: u64 = 0xff << 56;
    /// Bits 4:3 in guest mode.
    const RESERVED_LOW: u64 = 3 << 3;
    /// Bits 75:72 and 119:116 in guest mode.
    const RESERVED_HIGH: u64 = 0xf << 8 | 0xf << 52;

    fn with_live_fields(self, now: Irte, live_low: u64) -> Self {
        Irte {
            low: self.low & !live_low | now.low & live_low,
            high: self.high & !Self::LIVE_HIGH | now.high & Self::LIVE_HIGH,
        }
    }

    fn refusal(self) -> Option<RemapFault> {
        let reserved = self.guest_mode()
            && (self.low & Self::RESERVED_LOW != 0 || self.high & Self::RESERVED_HIGH != 0);
        let remapped_oddly =
            !self.guest_mode() && (self.low >> 2 & 7 > 1 || self.low >> 6 & 1 != 0);
        [
            (self.low & 1 == 0, RemapFault::NotEnabled),
            (reserved, RemapFault::Reserved),
            (remapped_oddly, RemapFault::Type),
            (self.vector() < 16, RemapFault::Vector),
        ]
        .into_iter()
        .find_map(|(holds, fault)| holds.then_some(fault))
    }

    fn guest_mode(self) -> bool {
        self.low >> 7 & 1 != 0
    }

    fn logs(self) -> bool {
        self.low & Self::LOG != 0
    }

    fn no_physical_announcement(self) -> bool {
        self.low >> 5 & 1 != 0
    }

    fn is_run(self) -> bool {
        self.low >> 6 & 1 != 0
    }

    fn destination(self) -> u32 {
        (self.low >> 8) as u32 & 0x00ff_ffff | ((self.high >> 56) as u32) << 24
    }

    fn tag(self) -> u32 {
        (self.low >> 32) as u32
    }

    fn vector(self) -> u8 {
        self.high as u8
    }

    fn backing_page(self) -> u64 {
        self.high & 0x000f_ffff_ffff_f000
    }
}
