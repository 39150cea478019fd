//! Hardware access traits.
#![no_std]
