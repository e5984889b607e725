//! What an item is, as text, and encoders that turn texts into content vectors.

mod folder;
mod hashed;
mod item_text;
mod lsa;
mod pooling;
mod text;
mod transformer;

pub use hashed::HashedEncoder;
pub use item_text::ItemText;
pub use lsa::{LsaConfig, LsaEncoder};
pub(crate) use lsa::{Sparse, right_singular_vectors};
pub use text::TextEncoder;

use crate::{Result, Vectors};

/// Anything that embeds texts.
pub trait ContentEncoder {
    /// Width of a content vector.
    fn dim(&self) -> usize;

    /// What made the vectors, for reports and manifests.
    fn name(&self) -> String;

    /// Embeds texts, (items,) -> (items, dim); `progress` is told how many are done.
    fn encode(&self, texts: &[String], progress: &mut dyn FnMut(usize)) -> Result<Vectors>;
}

/// Scales a row to length 1; a row of zeros stays.
fn normalize(row: &mut [f32]) {
    let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        for x in row {
            *x = (f64::from(*x) / norm) as f32;
        }
    }
}
