//! Content vectors become codes: what every quantiser does, and which ones there are.

mod behavior;
mod config;
mod encoded;
mod lsh;
#[cfg(test)]
mod method_tests;
#[cfg(test)]
mod option_tests;
mod random;
mod residual;
mod vectors;

pub use behavior::Behavior;
pub use config::{FitProgress, Method, QuantizerConfig, fit_quantizer, fit_quantizer_with, load_quantizer};
pub use encoded::Encoded;
pub use lsh::Lsh;
pub use random::RandomIds;
pub(crate) use residual::{ResidualQuantizer, unit};
pub use vectors::Vectors;
pub(crate) use vectors::content_order;

use crate::{Accelerator, CodeMatrix, Error, LastLevel, Result};
use std::path::Path;

pub(crate) const FILE: &str = "quantizer.safetensors";
pub(crate) const FORMAT: &str = "quantizer";
pub(crate) const VERSION: u32 = 1;

/// Anything that turns content vectors into codes.
pub trait SidEncoder: Send + Sync {
    /// Codes per level, coarse to fine.
    fn codebook_sizes(&self) -> &[u32];

    /// Codes of `content` (items, dim): always one per level, (items, levels). Each row is encoded on its own.
    fn encode(&self, content: &Vectors) -> Result<Encoded> {
        self.encode_on(content, None)
    }

    /// As [`SidEncoder::encode`], with the arithmetic done on `device` where there is one.
    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded>;

    /// What the last level chooses from for `content` (items, dim); `None` for methods whose last code is not the
    /// nearest of some codewords.
    fn last_level(&self, content: &Vectors) -> Result<Option<LastLevel>> {
        content.check()?;
        Ok(None)
    }

    /// Content as `codes` (items, levels) tell it, whoever chose them: (items, dim); `None` for methods that have no
    /// [`SidEncoder::last_level`].
    ///
    /// # Errors
    /// The codes are not of this quantiser.
    fn decode(&self, codes: &CodeMatrix) -> Result<Option<Vectors>> {
        check_codes(codes, self.codebook_sizes())?;
        Ok(None)
    }

    /// Writes `quantizer.safetensors` into the folder `dir`.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Name of the method, as on the command line.
    fn method(&self) -> &'static str;
}

/// Refuses `codes` (items, levels) that a quantiser with codebooks of `sizes` cannot have made.
pub(crate) fn check_codes(codes: &CodeMatrix, sizes: &[u32]) -> Result<()> {
    if codes.levels() != sizes.len() {
        return Err(Error::shape("codes", format!("{} levels", sizes.len()), codes.levels()));
    }
    for (level, &size) in sizes.iter().enumerate() {
        if let Some(code) = (0..codes.rows()).map(|i| codes.row(i)[level]).find(|code| u32::from(*code) >= size) {
            return Err(Error::shape(&format!("code of level {level}"), format!("below {size}"), code));
        }
    }
    Ok(())
}
