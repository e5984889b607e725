//! The jobs behind the `sidrec` binary.

pub mod error;
pub mod table;
