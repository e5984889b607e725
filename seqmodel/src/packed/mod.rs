//! Weights laid out for decoding on the CPU: no tensors, no allocation of results, one request a thread.
//!
//! Each model packs itself beside its plain session on tensors, which stays the reference.

mod block;
mod decoder;
mod matrix;

pub(crate) use block::{Bias, PackedBlock, Scratch, norm};
pub use decoder::PackedSession;
pub(crate) use decoder::{PackedDecoder, Request};
pub(crate) use matrix::Packed;
