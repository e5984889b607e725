//! What can go wrong on this floor.

use std::fmt::Display;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whatever a model's scorer fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Errors say who is to blame.
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
    /// Arguments do not belong together.
    #[error("{what}: expected {expected}, got {got}")]
    ShapeMismatch {
        /// What has the wrong size.
        what: &'static str,
        /// The size that fits.
        expected: String,
        /// The size that came.
        got: String,
    },
    /// The model failed.
    #[error("the scorer failed at level {level}: {source}")]
    Scorer {
        /// Level that was asked for.
        level: usize,
        /// What the model says.
        source: BoxError,
    },
    /// A GPU, or what is needed to use one, is not there or fails.
    #[error("{what}: {reason}")]
    Device {
        /// Driver, compiler, kernel.
        what: &'static str,
        /// In its words.
        reason: String,
    },
    /// IDs and files.
    #[error(transparent)]
    Rqvae(#[from] rqvae::Error),
}

impl Error {
    pub(crate) fn config(field: &'static str, got: impl Display, expected: impl Display) -> Self {
        Self::InvalidConfig { field, got: got.to_string(), expected: expected.to_string() }
    }

    pub(crate) fn device(what: &'static str, reason: impl Display) -> Self {
        Self::Device { what, reason: reason.to_string() }
    }

    pub(crate) fn shape(what: &'static str, expected: impl Display, got: impl Display) -> Self {
        Self::ShapeMismatch { what, expected: expected.to_string(), got: got.to_string() }
    }
}
