use crate::{PhysAddr, Translate};

/// Gives an object's virtual address for its physical address.
///
/// For tests in a process, where no processor will ever use the address; see
/// `x86::LinearMap` for where one will.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualIsPhysical;

impl Translate for VirtualIsPhysical {
    fn physical_address<O: ?Sized>(&self, object: &O) -> Option<PhysAddr> {
        let address = core::ptr::from_ref(object).cast::<u8>().addr();
        u64::try_from(address).ok().map(PhysAddr::new)
    }
}
