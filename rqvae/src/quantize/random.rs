//! Codes that say nothing about the content: the control that shows what semantics are worth.

use super::{Encoded, FILE, FORMAT, QuantizerConfig, SidEncoder, VERSION, Vectors, content_order};
use crate::{Accelerator, Artefact, ArtefactWriter, Code, CodeMatrix, Error, Result, mix};
use std::path::Path;

const METHOD: &str = "random";

/// Random codes, a function of seed and item alone.
#[derive(Debug, Clone)]
pub struct RandomIds {
    sizes: Vec<u32>,
    seed: u64,
    mean: Vec<f32>,
}

impl RandomIds {
    /// Remembers the mean of `content` (items, dim), the best that codes without meaning can reconstruct.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no items, or a vector is not finite.
    pub fn fit(config: &QuantizerConfig, content: &Vectors) -> Result<Self> {
        config.validate()?;
        let order = content_order(content)?;
        let mut mean = vec![0f64; content.dim];
        for &i in &order {
            for (mean, &x) in mean.iter_mut().zip(content.row(i as usize)) {
                *mean += f64::from(x) / order.len() as f64;
            }
        }
        let mean = mean.iter().map(|&x| x as f32).collect();
        Ok(Self { sizes: config.sizes(), seed: config.seed, mean })
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let (_, sizes) = artefact.u32s("sizes")?;
        let (_, mean) = artefact.f32s("mean")?;
        let (_, seed) = artefact.u64s("seed")?;
        let spec = crate::SidSpec { codebook_sizes: sizes, suffix_size: None };
        match (spec.validate(), &seed[..]) {
            (Ok(()), &[seed]) if !mean.is_empty() && mean.iter().all(|x| x.is_finite()) => {
                Ok(Self { sizes: spec.codebook_sizes, seed, mean })
            }
            _ => Err(Error::corrupt(artefact.path(), "`sizes`, `seed` or `mean` is not that of random IDs")),
        }
    }

    /// Codes of items by the hash of their ids: (items,) -> (items, levels).
    pub fn codes(&self, tie_hash: &[u64]) -> CodeMatrix {
        let code = |hash: u64, level: usize| {
            let draw = mix(mix(hash ^ mix(self.seed)).wrapping_add(level as u64 + 1));
            (draw % u64::from(self.sizes[level])) as Code
        };
        let levels = self.sizes.len();
        let data = tie_hash.iter().flat_map(|&hash| (0..levels).map(move |level| code(hash, level))).collect();
        CodeMatrix::new(levels, data).expect("one code per level was drawn for each item")
    }
}

impl SidEncoder for RandomIds {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    /// By the hash of the content, which takes no arithmetic worth a device, as no ids are known here; see [`RandomIds::codes`] for items of equal content.
    fn encode_on(&self, content: &Vectors, _: Option<&dyn Accelerator>) -> Result<Encoded> {
        content.check()?;
        if content.dim != self.mean.len() {
            return Err(Error::shape("content vectors", format!("width {}", self.mean.len()), content.dim));
        }
        let hashes: Vec<u64> = (0..content.rows()).map(|i| content.hash(i)).collect();
        let data = self.mean.repeat(content.rows());
        Ok(Encoded::new(self.codes(&hashes), Vectors { dim: content.dim, data }, content))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        writer.u32s("sizes", &[self.sizes.len()], &self.sizes)?;
        writer.u64s("seed", &[1], &[self.seed])?;
        writer.f32s("mean", &[self.mean.len()], &self.mean)?;
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SidStats;

    #[test]
    fn codes_are_spread_evenly() {
        let ids = RandomIds { sizes: vec![16; 2], seed: 3, mean: vec![0.0] };
        let stats = SidStats::of(&ids.codes(&(0..4096).collect::<Vec<_>>()), &[16, 16]);
        assert!(stats.perplexity.iter().all(|&p| p > 15.8), "{stats:?}");
        assert_eq!(stats.unique_prefixes, 256);
    }
}
