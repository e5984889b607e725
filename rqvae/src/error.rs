//! What can go wrong on this floor.

use std::fmt::Display;
use std::path::{Path, PathBuf};

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
        field: String,
        /// What it held.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// Two things that belong together differ in shape.
    #[error("{what}: expected {expected}, got {got}")]
    ShapeMismatch {
        /// What does not fit.
        what: String,
        /// The shape it should have.
        expected: String,
        /// The shape it has.
        got: String,
    },
    /// A file is not what it says it is.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a version this program does not read.
    #[error("{}: version {found}, this program reads {supported}; make it anew with the command that wrote it", path.display())]
    WrongVersion {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version this program reads.
        supported: u32,
    },
    /// The content of a file does not match the digest recorded for it.
    #[error("{}: digest is {found}, expected {expected}; the file was damaged or edited", path.display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// Recorded digest.
        expected: String,
        /// Digest of what is there.
        found: String,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Content vectors that cannot be used.
    #[error("content vector of row {row}: {reason}")]
    BadVectors {
        /// First row that is wrong, counted from 0.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// More items share their codes than the suffix can tell apart.
    #[error(
        "groups of items with equal codes that are larger than the {max} values of the suffix: {groups}; largest: {largest}; \
         more levels or larger codebooks part them"
    )]
    Collisions {
        /// Values of the suffix.
        max: u32,
        /// How many groups are larger.
        groups: usize,
        /// The largest groups: codes and number of items.
        largest: String,
    },
    /// A service that encodes content did not do so.
    #[error("{url}: {reason}")]
    Remote {
        /// Where it is.
        url: String,
        /// What it answered, or that it did not.
        reason: String,
        /// Whether it may work later.
        temporary: bool,
    },
    /// NaN or infinity where a number is needed.
    #[error("{what} is not finite at step {step}")]
    NonFinite {
        /// What holds it.
        what: String,
        /// Training step.
        step: u64,
    },
    /// A device that computes for this floor fails.
    #[error("device: {reason}")]
    Device {
        /// What it says.
        reason: String,
    },
    /// A device does not compute what the host does.
    #[error("{what}")]
    Disagreement {
        /// Both sides of it.
        what: String,
    },
    /// A tensor that should be there is not.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A thread panicked while it held a lock.
    #[error("a lock is poisoned: another thread panicked")]
    Poisoned,
    /// The tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// Adds `path` to an I/O error, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// `path` is not what it says it is.
    pub fn corrupt(path: &Path, reason: impl Display) -> Self {
        Self::Corrupt { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn config(field: &str, got: impl Display, expected: impl Display) -> Self {
        Self::InvalidConfig { field: field.to_string(), got: got.to_string(), expected: expected.to_string() }
    }

    pub(crate) fn shape(what: &str, expected: impl Display, got: impl Display) -> Self {
        Self::ShapeMismatch { what: what.to_string(), expected: expected.to_string(), got: got.to_string() }
    }
}
