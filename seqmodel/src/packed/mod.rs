//! Weights laid out for decoding on the CPU: no tensors, no allocation of results, a request on one thread or on those
//! that are free.
//!
//! Each model packs itself beside its plain session on tensors, which stays the reference.

mod aligned;
mod block;
mod bytes;
mod decoder;
mod matrix;
mod parts;
mod product;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod transpose;

pub(crate) use aligned::Aligned;
pub(crate) use block::{Bias, PackedBlock, norm};
pub use decoder::PackedSession;
pub(crate) use decoder::{PackedDecoder, Request, Rooms};
pub(crate) use matrix::Packed;
pub use matrix::Precision;
pub(crate) use parts::{Crew, Muster, on_threads};
