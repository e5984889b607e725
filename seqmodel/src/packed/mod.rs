//! Weights laid out for decoding on the CPU: no tensors, no allocation of results, a request on one thread or on those
//! that are free.
//!
//! Each model packs itself beside its plain session on tensors, which stays the reference.

#[cfg(test)]
pub(crate) mod agreement;
mod aligned;
mod attention;
mod block;
mod bytes;
mod crew;
mod decoder;
mod digits;
mod halves;
mod matrix;
mod product;
mod sink;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod transpose;

pub(crate) use aligned::Aligned;
pub(crate) use block::{Bias, PackedBlock, norm};
pub(crate) use crew::{Crew, Team, on_threads};
pub use decoder::PackedSession;
pub(crate) use decoder::{PackedDecoder, Request, Rooms, Start, parts};
pub(crate) use matrix::Packed;
pub use matrix::Precision;
