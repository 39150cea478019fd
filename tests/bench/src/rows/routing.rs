//! Who gets a message, by how many vCPUs the VM has. The vector is pending at every target, so that what grows is the
//! search and nothing else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;

use vlapic_core::{Address, Delivery, Destination, DirectInbox, Message, Register, Trigger, Vm};

use crate::contender::Contender;
use crate::floor;
use crate::row::{Contenders, Mode, Row};
use crate::subject::{deliver, emulated};

/// How much dearer it may be in a VM of any size than in one of two vCPUs.
const SIZE_DOES_NOT_MATTER: f64 = 1.1;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let physical = |id| Destination::Physical(id);
    rows.extend(curve(
        "unicast",
        "unicast",
        Mode::XApic,
        &[2, 64, 255],
        physical(Address::Narrow(1)),
    ));
    let wide = physical(Address::Wide(1));
    rows.extend(curve("unicast", "unicast", Mode::X2Apic, &[2, 64, 1024, 4096], wide));
    let logical = Destination::Logical(Address::Narrow(3));
    rows.extend(curve("flat", "flat logical, 2 members", Mode::XApic, &[2, 8, 64, 255], logical));
    rows.extend(
        [8, 60].map(|vcpus| cluster(vcpus, "cluster logical, 2 members", Address::Narrow(0x13))),
    );
    let logical = Destination::Logical(Address::Wide(3));
    let what = "x2APIC cluster, 2 members";
    rows.extend(curve("x2apic-cluster", what, Mode::X2Apic, &[2, 64, 1024, 4096], logical));
    rows.extend([16, 64, 4096].map(lowest_priority));
    rows.extend([(Mode::XApic, 8), (Mode::XApic, 255)].map(|(mode, vcpus)| broadcast(mode, vcpus)));
    rows.extend([8, 64, 1024, 4096].map(|vcpus| broadcast(Mode::X2Apic, vcpus)));
    rows
}

/// The same destination in VMs of several sizes, each beside the first.
fn curve(
    name: &'static str,
    what: &'static str,
    mode: Mode,
    sizes: &'static [u32],
    destination: Destination,
) -> impl Iterator<Item = Row> {
    sizes.iter().map(move |&vcpus| {
        let row = Row::new(
            "routing",
            &format!("{name}-{vcpus}"),
            mode,
            format!("{what}, {vcpus} vCPUs"),
            move || {
                let ours = send(vm(vcpus, mode), destination);
                let floor = if vcpus == sizes[0] {
                    floor::locked_or()
                } else {
                    let small = send(vm(sizes[0], mode), destination);
                    Contender { what: format!("{} vCPUs", sizes[0]), ..small }
                };
                Contenders::ours(ours).floor(floor)
            },
        );
        let row = row.point(what, vcpus);
        if vcpus == sizes[0] { row } else { row.of_floor(SIZE_DOES_NOT_MATTER) }
    })
}

/// xAPIC cluster model: cluster in bits 7:4 of the logical ID, four members each.
fn cluster(vcpus: u32, what: &'static str, address: Address) -> Row {
    let name = format!("cluster-{vcpus}");
    let destination = Destination::Logical(address);
    Row::new("routing", &name, Mode::XApic, format!("{what}, {vcpus} vCPUs"), move || {
        let clustered = |vcpus| {
            let vm = new_vm(vcpus, Mode::XApic);
            for (id, slot) in vm.slots().iter().enumerate() {
                let logical = (id as u32 / 4) << 4 | 1 << (id % 4);
                slot.page().write(Register::Dfr, 0x0FFF_FFFF);
                slot.page().write(Register::Ldr, logical << 24);
            }
            vm
        };
        let ours = send(clustered(vcpus), destination);
        Contenders::ours(ours).floor(floor::locked_or())
    })
    .point(what, vcpus)
}

fn lowest_priority(vcpus: u32) -> Row {
    let name = format!("lowest-priority-{vcpus}");
    let what = "lowest priority among 16, x2APIC";
    Row::new("routing", &name, Mode::X2Apic, format!("{what}, {vcpus} vCPUs"), move || {
        let destination = Destination::Logical(Address::Wide(0xFFFF));
        let delivery = Delivery::LowestPriority { vector: 0x61, trigger: Trigger::Edge };
        let message = Message::new(delivery, destination);
        let ours = Contender::new("ours", vm(vcpus, Mode::X2Apic), move |vm, _| {
            deliver(vm, &black_box(message), None);
        });
        Contenders::ours(ours).floor(floor::locked_or())
    })
    .point(what, vcpus)
}

/// To all, and what that costs a target.
fn broadcast(mode: Mode, vcpus: u32) -> Row {
    let what = "broadcast, per target";
    let text = format!("{what}, {vcpus} vCPUs");
    Row::new("routing", &format!("broadcast-{vcpus}"), mode, text, move || {
        let ours = send(vm(vcpus, mode), Destination::All).per(vcpus);
        Contenders::ours(ours).floor(floor::locked_ors_of_pages(vcpus))
    })
    .point(what, vcpus)
}

fn send(vm: Vm<'static, DirectInbox>, destination: Destination) -> Contender {
    let delivery = Delivery::Fixed { vector: 0x61, trigger: Trigger::Edge };
    let message = Message::new(delivery, destination);
    Contender::new("ours", vm, move |vm, _| {
        deliver(vm, &black_box(message), None);
    })
}

thread_local! {
    /// The VMs made so far: thousands of vCPUs take a while, and every row needs the same few.
    static MADE: RefCell<HashMap<(u32, Mode), Vm<'static, DirectInbox>>> = RefCell::default();
}

fn vm(vcpus: u32, mode: Mode) -> Vm<'static, DirectInbox> {
    MADE.with_borrow_mut(|made| *made.entry((vcpus, mode)).or_insert_with(|| new_vm(vcpus, mode)))
}

/// The first eight have the eight logical IDs of the flat model, the others none.
fn new_vm(vcpus: u32, mode: Mode) -> Vm<'static, DirectInbox> {
    let vm = emulated(vcpus, mode).vm;
    if mode == Mode::XApic {
        for (id, slot) in vm.slots().iter().enumerate().take(8) {
            slot.page().write(Register::Ldr, 1 << (24 + id));
        }
    }
    vm
}
