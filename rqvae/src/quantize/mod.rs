//! Content vectors become codes.

mod vectors;

pub use vectors::Vectors;
