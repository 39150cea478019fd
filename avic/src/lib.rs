//! AMD AVIC and x2AVIC.
#![no_std]
#![forbid(unsafe_code)]
