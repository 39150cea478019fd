//! Every entry point of the interrupt path as a symbol of a library that is never run.
//!
//! Arguments come from outside, so nothing is known of them at compile time, and the machine is
//! the real one of `vlapic-hal`. What is left in the library is what a hypervisor that uses
//! everything has in its interrupt path. `cargo xtask codegen` builds it with the release profile
//! and reads the machine code.

mod amd;
mod emulated;
mod intel;
mod machine_code;

/// Gives each function its plain name as its symbol.
macro_rules! entries {
    ($(fn $name:ident($($argument:ident: $of:ty),* $(,)?) $(-> $result:ty)? $body:block)+) => {
        $(
            #[unsafe(no_mangle)]
            pub(crate) fn $name($($argument: $of),*) $(-> $result)? $body
        )+
    };
}
pub(crate) use entries;
