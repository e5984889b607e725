//! What can go wrong on this floor.

use crate::train::Diagnosis;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors name who is to blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value is out of range.
    #[error("config field `{field}`: got {got}, expected {expected}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// What it held.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// A model was given data made for another one.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// What does not fit.
        what: String,
        /// What the model was built for.
        expected: String,
        /// What came.
        found: String,
    },
    /// Nothing to train on or to evaluate.
    #[error("no {what}: every history is empty or too short")]
    NoData {
        /// What is missing.
        what: &'static str,
    },
    /// A file cannot be used.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A loss, gradient or weight is NaN or infinite; nothing was updated or written over.
    #[error("{0}")]
    NonFinite(Box<Diagnosis>),
    /// The floor below.
    #[error(transparent)]
    Rqvae(#[from] rqvae::Error),
    /// The search.
    #[error(transparent)]
    Beam(#[from] beam::Error),
    /// The tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
