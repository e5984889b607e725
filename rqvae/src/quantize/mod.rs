//! Content vectors become codes: what every quantiser does, and which ones there are.

mod config;
mod encoded;
mod lsh;
mod random;
mod residual;
mod vectors;

pub use config::{FitProgress, Method, QuantizerConfig, fit_quantizer, load_quantizer};
pub use encoded::Encoded;
pub use lsh::Lsh;
pub use random::RandomIds;
pub(crate) use residual::{ResidualQuantizer, unit};
pub use vectors::Vectors;
pub(crate) use vectors::content_order;

use crate::{LastLevel, Result};
use std::path::Path;

pub(crate) const FILE: &str = "quantizer.safetensors";
pub(crate) const FORMAT: &str = "quantizer";
pub(crate) const VERSION: u32 = 1;

/// Anything that turns content vectors into codes.
pub trait SidEncoder: Send + Sync {
    /// Codes per level, coarse to fine.
    fn codebook_sizes(&self) -> &[u32];

    /// Codes of `content` (items, dim): always one per level, (items, levels). Each row is encoded on its own.
    fn encode(&self, content: &Vectors) -> Result<Encoded>;

    /// What the last level chooses from for `content` (items, dim); `None` for methods whose last code is not the
    /// nearest of some codewords.
    fn last_level(&self, content: &Vectors) -> Result<Option<LastLevel>> {
        content.check()?;
        Ok(None)
    }

    /// Writes `quantizer.safetensors` into the folder `dir`.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Name of the method, as on the command line.
    fn method(&self) -> &'static str;
}
