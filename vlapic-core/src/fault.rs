//! What a guest access may raise.

/// A fault the hypervisor must raise in the guest. The access had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// #GP(0).
    GeneralProtection,
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("general-protection fault, error code 0")
    }
}

impl core::error::Error for Fault {}
