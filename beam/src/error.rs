//! What can go wrong on this floor.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error of a scorer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Errors name who is to blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The search was asked for something impossible.
    #[error("search: {what}: got {got}, expected {expected}")]
    InvalidConfig {
        /// The field.
        what: &'static str,
        /// What it held.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// A scorer returned something other than one row of scores per beam.
    #[error("scorer at level {level}: {got} scores, expected {expected}")]
    Scores {
        /// Level that was scored.
        level: usize,
        /// Rows times codes.
        expected: String,
        /// What came.
        got: String,
    },
    /// The model failed.
    #[error("scoring failed: {0}")]
    Scorer(#[source] BoxError),
    /// An index file cannot be used.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The floor below.
    #[error(transparent)]
    Rqvae(#[from] rqvae::Error),
}
