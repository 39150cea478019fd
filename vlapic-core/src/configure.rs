//! The control path that every way of running a vCPU has in common: what can this processor do, and
//! what of it is this vCPU to have.

use core::convert::Infallible;

use crate::backend::{Backend, SvrWrites};
use crate::feature::{Feature, Grant, NoFeature, Wanted};

/// What a processor can do, found out once per machine.
///
/// `M` is how the machine is asked (CPUID, MSRs); plain emulation asks nothing.
pub trait Probe<M: ?Sized>: Sized {
    /// Why it cannot be found out.
    type Error;

    /// Asks the processor that the caller runs on.
    ///
    /// # Errors
    /// The processor is not of the kind, or does not answer.
    fn probe(machine: &M) -> Result<Self, Self::Error>;
}

/// A [`Backend`] and how it is set up: the same for plain emulation, APICv and AVIC.
///
/// Once per vCPU, with the VMCS or VMCB that it will run with in hand, and again whenever it is to
/// have another level of help. A loop that is generic over this trait sets up and runs its vCPUs on
/// any processor:
///
/// ```
/// use vlapic_core::{Configure, EntryInput, Next, Probe, Wanted};
///
/// fn start<'s, B, C, M>(
///     vcpu: &mut B,
///     controls: &mut C,
///     machine: &M,
///     resources: B::Resources,
/// ) -> Result<(), &'static str>
/// where
///     B: Configure<'s, C>,
///     B::Capabilities: Probe<M>,
/// {
///     let capabilities = Probe::probe(machine).map_err(|_| "not this kind of processor")?;
///     let granted = vcpu.configure(controls, &capabilities, Wanted::ALL, resources);
///     let grant = granted.map_err(|_| "not this kind of memory")?;
///     for (feature, reason) in grant.refused() {
///         // Worth a line in the log.
///         let _ = (feature, reason);
///     }
///     Ok(())
/// }
/// ```
pub trait Configure<'s, C: ?Sized>: Backend<'s, C> {
    /// What the processor can help with.
    type Feature: Feature;
    /// What the processor can do, by [`Probe`].
    type Capabilities;
    /// The memory of the hypervisor that the processor is told of for one vCPU.
    type Resources;
    /// Why a vCPU could not be set up.
    type ConfigureError;

    /// Sets `controls` up for as much of `wanted` as can be had, and says what was refused and why.
    /// The hypervisor's own settings are in them already.
    ///
    /// May be called again whenever the vCPU is outside guest mode. The page carries over unchanged.
    ///
    /// # Errors
    /// A resource that is missing or cannot be used, or an access to `controls` that failed: do not
    /// enter.
    fn configure(
        &mut self,
        controls: &mut C,
        capabilities: &Self::Capabilities,
        wanted: Wanted<Self::Feature>,
        resources: Self::Resources,
    ) -> Result<Grant<Self::Feature>, Self::ConfigureError>;

    /// Says how SVR writes come to notice. With anything that lets the guest store to its page
    /// unseen this must not stay at [`SvrWrites::Exit`].
    fn set_svr_writes(&mut self, svr_writes: SvrWrites);
}

/// What plain emulation needs of a processor: nothing.
impl<M: ?Sized> Probe<M> for () {
    type Error = Infallible;

    fn probe(_: &M) -> Result<Self, Infallible> {
        Ok(())
    }
}

impl<'s> Configure<'s, crate::Injection> for crate::Emulated<'s> {
    type Feature = NoFeature;
    type Capabilities = ();
    type Resources = ();
    type ConfigureError = Infallible;

    fn configure(
        &mut self,
        _: &mut crate::Injection,
        (): &(),
        _: Wanted<NoFeature>,
        (): (),
    ) -> Result<Grant<NoFeature>, Infallible> {
        Ok(Grant::emulated())
    }

    fn set_svr_writes(&mut self, svr_writes: SvrWrites) {
        self.set_svr_writes(svr_writes);
    }
}
