//! The loop that the bare-metal image runs on SVM, run on the silicon model: the same code around the driver, with AVIC,
//! which no emulator has.
//!
//! ```text
//! world      memory, cores and vCPUs of a VM, and how a vCPU is told of something
//! around     the hypervisor around one vCPU
//! processor  the vCPU's processor: VMRUN, and the guest's instructions until it exits
//! guest      a guest program, in a thread of its own
//! ```
//!
//! Each vCPU has a thread for its loop and one for its program, so interleavings are whatever they are; the model itself
//! moves one step at a time, under a lock.

mod around;
mod guest;
mod processor;
mod world;

use std::sync::Arc;
use std::thread;

use avic::{Resources, Shared};
use vlapic_core::Vm;
use vlapic_svm_loop::cases::Case;
use vlapic_svm_loop::{Level, Loop, Setup, driver};

use crate::avic_hypervisor::{Config, Storage};
use crate::model::Memory;
use around::Around;
use guest::{ModelGuest, Port};
use processor::{Processor, prepared_vmcb};
use world::World;

/// Runs a case on a VM as `config` says. What each vCPU's program ended with, or why it did not.
///
/// # Panics
/// If the VM cannot be made, or guests reached what they must not.
#[must_use]
pub fn run(config: Config, level: Level, case: &Case) -> Vec<Result<u64, String>> {
    let storage = Storage::new(config.vcpus);
    let slots = storage.slots(&config);
    let memory = Arc::new(Memory::new());
    storage.show_to(&memory);
    let vm = Vm::new(&slots).expect("slots in order");
    let tables =
        avic::Storage { physical: &storage.physical, logical: &storage.logical, routes: &[] };
    let shared = Shared::new(vm, tables, &*memory).expect("memory with addresses");
    let world = World::new(&config, &storage, &shared, memory.clone());
    let results = thread::scope(|scope| {
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|index| {
                let (port, program) = guest::channel();
                let world = &world;
                let case = *case;
                scope.spawn(move || ModelGuest::new(world, index, config.mode, program).run(&case));
                scope.spawn(move || vcpu(world, &config, level, index, port))
            })
            .collect();
        world.start_others();
        vcpus
            .into_iter()
            .map(|vcpu| vcpu.join().unwrap_or_else(|_| Err("it panicked".to_owned())))
            .collect()
    });
    world.check_hygiene();
    results
}

/// The loop of one vCPU, on the core of its number.
fn vcpu(
    world: &World<'_>,
    config: &Config,
    level: Level,
    index: usize,
    port: Port,
) -> Result<u64, String> {
    let mut vmcb = prepared_vmcb(index);
    let storage = world.storage;
    let setup = Setup {
        level,
        svr_writes: config.svr_writes,
        pending: &storage.pending[index],
        resources: Resources {
            msr_permissions: storage.permissions(index),
            window: &storage.window,
            private_asid: config.private_asid,
            host: config.host,
        },
    };
    let capabilities = avic::Capabilities::detect(&config.processor);
    let driver = driver(world.shared, index, &mut vmcb, &capabilities, setup)
        .ok_or("no such vCPU")?
        .map_err(|lacking| format!("{} is not granted: {}", lacking.feature, lacking.reason))?;
    let around = Around { world, index };
    let processor = Processor::new(world, index, vmcb, port);
    let left = Loop::new(&around, processor, driver, Some(&storage.window), false).run(index == 0);
    world.ended(index);
    match left.result {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err("it left its core".to_owned()),
        Err(error) => Err(format!("{error:?}")),
    }
}
