//! Map layouts that the BPF programs and user space share: the one truth of the ABI.
//!
//! All types are `#[repr(C)]` without padding, so that every byte of a map value is defined. A change
//! of any of them, or of what a value means, raises [`LAYOUT_VERSION`].
#![no_std]

pub mod harness;
pub mod lb;
#[cfg(feature = "bpf")]
pub mod packet;
pub mod real;
pub mod wire;

/// Version of the load balancer's map layout. A daemon that finds maps of another version builds its
/// own beside them and replaces the program's link.
pub const LAYOUT_VERSION: u32 = 2;
