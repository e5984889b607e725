//! Weights laid out for decoding on the CPU: no tensors, no allocation of results, one request a thread.
//!
//! Each model's fast session lives beside the model; its plain session on tensors stays the reference.

mod block;
mod matrix;

pub(crate) use block::{Bias, PackedBlock, PackedMemory, Scratch, norm};
pub(crate) use matrix::{Into, Packed, Rows};
