//! The peer: `x86_vlapic` of the package registry, given a host that costs next to nothing.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

use vlapic_core::{ApicPage, Register};
use x86_vlapic::{
    EmulatedLocalApic, X86AccessWidth, X86GuestPhysAddr, X86HostPhysAddr, X86HostVirtAddr,
    X86InterruptVector, X86MsrAddr, X86TimerCallback, X86VcpuId, X86VlapicError, X86VlapicHostOps,
    X86VlapicResult, X86VmId,
};

use crate::row::Mode;
use crate::subject::{Memory, Msr, Way, leak};

pub(crate) type Peer = EmulatedLocalApic<Host>;

/// Its vCPU 0, enabled and in the mode of `W`.
pub(crate) fn peer<W: PeerWay>() -> Peer {
    let peer = Peer::new(0, 0);
    if W::MODE == Mode::X2Apic {
        let _ = peer.set_apic_base(peer.apic_base() | 1 << 10);
    }
    let _ = W::peer_write(&peer, W::place(Register::Svr), 0x1FF);
    let _ = W::peer_write(&peer, W::place(Register::Dfr), 0xFFFF_FFFF);
    peer
}

/// How the peer is told of a guest's access, at the same places as ours.
pub(crate) trait PeerWay: Way {
    fn peer_read(peer: &Peer, place: u32) -> X86VlapicResult<usize>;
    fn peer_write(peer: &Peer, place: u32, value: u64) -> X86VlapicResult;
}

impl PeerWay for Memory {
    #[inline(always)]
    fn peer_read(peer: &Peer, place: u32) -> X86VlapicResult<usize> {
        peer.handle_mmio_read(window(place), X86AccessWidth::Dword)
    }

    #[inline(always)]
    fn peer_write(peer: &Peer, place: u32, value: u64) -> X86VlapicResult {
        peer.handle_mmio_write(window(place), X86AccessWidth::Dword, black_box(value) as usize)
    }
}

impl PeerWay for Msr {
    #[inline(always)]
    fn peer_read(peer: &Peer, place: u32) -> X86VlapicResult<usize> {
        peer.handle_msr_read(msr(place), X86AccessWidth::Dword)
    }

    #[inline(always)]
    fn peer_write(peer: &Peer, place: u32, value: u64) -> X86VlapicResult {
        // It wants ICR written as a whole, and all else by halves.
        let width = if place == ICR { X86AccessWidth::Qword } else { X86AccessWidth::Dword };
        peer.handle_msr_write(msr(place), width, black_box(value) as usize)
    }
}

const ICR: u32 = 0x830;

#[inline(always)]
fn window(place: u32) -> X86GuestPhysAddr {
    X86GuestPhysAddr::from_usize(0xFEE0_0000 + black_box(place) as usize)
}

#[inline(always)]
fn msr(place: u32) -> X86MsrAddr {
    X86MsrAddr::new(black_box(place) as usize)
}

/// Memory where its address says, and one locked OR where the peer posts an interrupt, which is what posting costs
/// anybody.
pub(crate) struct Host;

static POSTED: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];

impl X86VlapicHostOps for Host {
    type TimerHandle = usize;

    fn alloc_frame() -> Option<X86HostPhysAddr> {
        let page: &'static ApicPage = leak(ApicPage::new());
        Some(X86HostPhysAddr::from_usize(page.words().as_ptr().expose_provenance()))
    }

    fn dealloc_frame(_: X86HostPhysAddr) {}

    fn phys_to_virt(address: X86HostPhysAddr) -> X86HostVirtAddr {
        X86HostVirtAddr::from_usize(address.as_usize())
    }

    fn virt_to_phys(address: X86HostVirtAddr) -> X86HostPhysAddr {
        X86HostPhysAddr::from_usize(address.as_usize())
    }

    fn current_time_nanos() -> u64 {
        0
    }

    fn register_timer(_: u64, _: X86TimerCallback) -> X86VlapicResult<usize> {
        Ok(0)
    }

    #[expect(unsafe_code, reason = "the trait's method is declared so; nothing is done here")]
    unsafe fn register_hard_timer(_: u64, _: X86TimerCallback) -> X86VlapicResult<usize> {
        Ok(0)
    }

    fn cancel_timer(_: usize) -> X86VlapicResult {
        Ok(())
    }

    fn current_vm_id() -> X86VmId {
        0
    }

    fn current_vm_vcpu_num() -> usize {
        black_box(VCPUS)
    }

    fn current_vm_active_vcpus() -> usize {
        black_box((1 << VCPUS) - 1)
    }

    fn active_vcpus(_: X86VmId) -> Option<usize> {
        Some(Self::current_vm_active_vcpus())
    }

    fn inject_interrupt(
        _: X86VmId,
        vcpu: X86VcpuId,
        vector: X86InterruptVector,
    ) -> X86VlapicResult {
        let word = POSTED.get(vcpu & 7).ok_or(X86VlapicError::InvalidInput)?;
        black_box(word.fetch_or(1 << (vector as u32 & 31), Ordering::SeqCst));
        Ok(())
    }
}

const VCPUS: usize = 8;
