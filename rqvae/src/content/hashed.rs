//! Hashed words and character n-grams: no fit, no file, for tests and as a control.
//!
//! Paper: Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning.

use super::lsa::terms;
use super::{ContentEncoder, normalize};
use crate::{Result, Vectors};
use rayon::prelude::*;

/// Adds every term of a text, with the sign of its hash, to one of `dim` places.
#[derive(Debug, Clone, Copy)]
pub struct HashedEncoder {
    dim: usize,
}

impl HashedEncoder {
    /// An encoder of vectors of `dim` numbers; at least 1.
    pub fn new(dim: usize) -> Self {
        Self { dim: dim.max(1) }
    }
}

impl Default for HashedEncoder {
    fn default() -> Self {
        Self::new(256)
    }
}

impl ContentEncoder for HashedEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn name(&self) -> String {
        format!("hashed-{}", self.dim)
    }

    fn encode(&self, texts: &[String], progress: &mut dyn FnMut(usize)) -> Result<Vectors> {
        let mut data = vec![0.0; texts.len() * self.dim];
        data.par_chunks_mut(self.dim).zip(texts).for_each(|(row, text)| {
            for (term, count) in terms::count(text) {
                let sign = if term >> 63 == 0 { 1.0 } else { -1.0 };
                let place = (term >> 2) % self.dim as u64;
                row[place as usize] += sign * (1.0 + (count as f32).ln());
            }
            normalize(row);
        });
        progress(texts.len());
        Vectors::new(self.dim, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_of_texts_is_likeness_of_vectors() {
        let texts = ["red nail polish", "blue nail polish", "garden hose", ""].map(str::to_owned);
        let encoder = HashedEncoder::default();
        let vectors = encoder.encode(&texts, &mut |_| ()).unwrap();
        let dot = |a: usize, b: usize| -> f32 {
            let (a, b) = (vectors.row(a), vectors.row(b));
            a.iter().zip(b).map(|(x, y)| x * y).sum()
        };
        assert!((dot(0, 0) - 1.0).abs() < 1e-6);
        assert!(dot(0, 1) > 0.3 && dot(0, 1) > dot(0, 2) + 0.2);
        assert!(vectors.row(3).iter().all(|&x| x == 0.0));
        assert_eq!(encoder.dim(), vectors.dim);
    }
}
