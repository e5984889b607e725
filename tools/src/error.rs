//! Who is to blame for an error, and the exit code that says so.

use std::fmt::Display;
use std::path::Path;

/// What went wrong, as scripts need to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The command line is wrong.
    Usage,
    /// Input that cannot be used.
    BadData,
    /// Input that is not there.
    InputMissing,
    /// Output that cannot be created.
    CannotCreate,
    /// The file system failed.
    Io,
    /// It may work later.
    Temporary,
    /// A signal ended the run after a clean checkpoint.
    Interrupted(i32),
}

impl Fault {
    /// The exit code for it.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Usage => 2,
            Self::BadData => 65,
            Self::InputMissing => 66,
            Self::CannotCreate => 73,
            Self::Io => 74,
            Self::Temporary => 75,
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}

/// A message with its fault.
#[derive(Debug)]
pub struct Blamed {
    fault: Fault,
    message: String,
}

impl Display for Blamed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Blamed {}

/// An error of that fault.
pub fn fault(fault: Fault, message: impl Display) -> anyhow::Error {
    anyhow::Error::new(Blamed { fault, message: message.to_string() })
}

/// Input that cannot be used.
pub fn bad_data(message: impl Display) -> anyhow::Error {
    fault(Fault::BadData, message)
}

/// Input that is not there.
pub fn input_missing(path: &Path) -> anyhow::Error {
    fault(Fault::InputMissing, format!("{}: no such file or directory", path.display()))
}

/// Output that cannot be created.
pub fn cannot_create(path: &Path, why: impl Display) -> anyhow::Error {
    fault(Fault::CannotCreate, format!("cannot create {}: {why}", path.display()))
}

/// The exit code of an error: of the first fault in its chain.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    for cause in error.chain() {
        if let Some(blamed) = cause.downcast_ref::<Blamed>() {
            return blamed.fault.exit_code();
        }
        if let Some(error) = cause.downcast_ref::<rqvae::Error>() {
            // Errors of the floors below.
            use rqvae::Error::{
                BadVectors, Collisions, Corrupt, DigestMismatch, Disagreement, InvalidConfig, Io, Remote, WrongVersion,
            };
            return match error {
                BadVectors { .. }
                | Collisions { .. }
                | Corrupt { .. }
                | DigestMismatch { .. }
                | WrongVersion { .. }
                | Remote { temporary: false, .. } => Fault::BadData.exit_code(),
                Remote { .. } => Fault::Temporary.exit_code(),
                InvalidConfig { .. } | Disagreement { .. } => Fault::Usage.exit_code(),
                Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Fault::InputMissing.exit_code(),
                Io { .. } => Fault::Io.exit_code(),
                _ => 1,
            };
        }
        if let Some(error) = cause.downcast_ref::<seqmodel::Error>() {
            use seqmodel::Error::{Corrupt, InvalidConfig, Io, Mismatch, NoData};
            match error {
                Mismatch { .. } | NoData { .. } | Corrupt { .. } => return Fault::BadData.exit_code(),
                InvalidConfig { .. } => return Fault::Usage.exit_code(),
                Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    return Fault::InputMissing.exit_code();
                }
                Io { .. } => return Fault::Io.exit_code(),
                // What it wraps comes next in the chain.
                _ => {}
            }
        }
        if cause.is::<std::io::Error>() {
            return Fault::Io.exit_code();
        }
    }
    1
}

/// The whole chain of an error in one line; a cause that its effect has told already is not told again.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let io = rqvae::Error::io(Path::new("x"))(std::io::ErrorKind::NotFound.into());
        let error = anyhow::Error::new(io).context("while reading");
        assert_eq!(told(&error), "while reading: x: entity not found");
        assert_eq!(told(&anyhow::anyhow!("plain").context("b").context("a")), "a: b: plain");
    }

    #[test]
    fn the_first_fault_of_the_chain_decides() {
        let path = Path::new("x");
        assert_eq!(exit_code(&bad_data("b").context("while reading")), 65);
        assert_eq!(exit_code(&input_missing(path)), 66);
        assert_eq!(exit_code(&cannot_create(path, "full")), 73);
        assert_eq!(exit_code(&anyhow::anyhow!("plain")), 1);
        assert_eq!(exit_code(&fault(Fault::Interrupted(2), "stopped")), 130);
        let corrupt = rqvae::Error::corrupt(path, "torn");
        assert_eq!(exit_code(&anyhow::Error::new(corrupt).context("step")), 65);
        let io = rqvae::Error::io(path)(std::io::ErrorKind::NotFound.into());
        assert_eq!(exit_code(&io.into()), 66);
    }
}
