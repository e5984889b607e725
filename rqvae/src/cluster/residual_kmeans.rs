//! Residual k-means: k-means level by level, each on what the levels before left over.
//!
//! Shapes: content (items, dim) -> codes (items, levels).
//! Paper: Luo et al. 2024 (QARM), RQ-KMeans; Deng et al. 2025 (OneRec), sec. 3.1.
//! Deviations: vectors are centred and divided by one number before they are quantised; OneRec's clusters of equal size
//! come from prices, see `balanced`. With `normalize`, residuals are scaled to length 1 before each level, as GRID does
//! (Ju et al. 2025); the reconstruction then is the sum of mean residuals of the codes.

use super::balanced::balanced_lloyd;
use super::centered::Centered;
use super::lloyd::{KmeansConfig, lloyd};
use super::points::Points;
use crate::quantize::{Encoded, Method, QuantizerConfig, ResidualQuantizer, SidEncoder};
use crate::quantize::{FILE, FORMAT, FitProgress, VERSION, check_codes, content_order, unit};
use crate::{Accelerator, Artefact, ArtefactWriter, CodeMatrix, Error, LastLevel, Result, SeededRng, Vectors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

const METHOD: &str = "rkmeans";
const BALANCED: &str = "balanced";

/// Numbers of residual k-means beside those that all quantisers share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidualKmeansConfig {
    /// Most iterations per level.
    pub iterations: usize,
    /// A level stops when its cost falls by less than this fraction in an iteration.
    pub tolerance: f64,
    /// Fits on at most this many items per code, drawn at random; 0 for all.
    pub items_per_code: usize,
    /// Scales residuals to length 1 before each level.
    pub normalize: bool,
}

impl Default for ResidualKmeansConfig {
    fn default() -> Self {
        Self { iterations: 50, tolerance: 1e-4, items_per_code: 256, normalize: false }
    }
}

/// A fitted stack of k-means.
#[derive(Debug, Clone)]
pub struct ResidualKmeans {
    sizes: Vec<u32>,
    balanced: bool,
    centered: Centered,
    quantizer: ResidualQuantizer,
    /// Mean residuals of the codes, where the codewords themselves do not add up to the content.
    decoder: Option<ResidualQuantizer>,
}

impl ResidualKmeans {
    /// Fits `content` (items, dim), on `device` where there is one. The order of the items makes no difference.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no items, or a vector is not finite, or the device fails.
    pub fn fit(
        config: &QuantizerConfig,
        content: &Vectors,
        device: Option<&dyn Accelerator>,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<Self> {
        config.validate()?;
        let (levels, sizes) = (config.levels, config.sizes());
        let largest = sizes.iter().copied().max().unwrap_or(1) as usize;
        let mut order = content_order(content)?;
        let limit = config.rkmeans.items_per_code.saturating_mul(largest);
        if limit > 0 && order.len() > limit {
            order = draw(&order, limit, config.seed);
        }
        let dim = content.dim;
        let balanced = config.method == Method::Balanced;
        let centered = Centered::fit(content, &order);
        let points = centered.points(content, &order);
        let normalize = config.rkmeans.normalize;
        let mut residuals = points.clone();
        let mut quantizer = ResidualQuantizer::new(dim, Vec::new());
        quantizer.normalize = normalize;
        for (level, &size) in sizes.iter().enumerate() {
            let seed = SeededRng::new(config.seed).key("rkmeans", level as u64);
            let ResidualKmeansConfig { iterations, tolerance, .. } = config.rkmeans;
            let kmeans = KmeansConfig { k: size as usize, iterations, tolerance, seed };
            if normalize {
                residuals.par_chunks_exact_mut(dim).for_each(unit);
            }
            let mut held = Points::on(device, &residuals, dim)?;
            let (stack, cost) = if balanced {
                let fitted = balanced_lloyd(&mut held, &kmeans)?;
                (ResidualQuantizer::priced(dim, fitted.centroids, fitted.prices), Some(fitted.cost))
            } else {
                let (centroids, costs) = lloyd(&mut held, &kmeans)?;
                (ResidualQuantizer::new(dim, vec![centroids]), costs.last().copied())
            };
            drop(held);
            residuals = stack.quantize_on(&residuals, device)?.1;
            quantizer.push(stack);
            let loss = cost.map(|cost| cost / order.len() as f64);
            progress(FitProgress { stage: METHOD, done: level + 1, total: levels, loss });
        }
        let of_means = || -> Result<ResidualQuantizer> {
            let (codes, _) = quantizer.quantize_on(&points, device)?;
            Ok(ResidualQuantizer::of_means(&points, dim, &codes, &sizes))
        };
        let decoder = normalize.then(of_means).transpose()?;
        Ok(Self { sizes, balanced, centered, quantizer, decoder })
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let centered = Centered::load(artefact)?;
        let mut quantizer = ResidualQuantizer::load(artefact, centered.dim())?;
        quantizer.normalize = artefact.names().any(|name| name == "normalize");
        let sizes = quantizer.sizes();
        let decoder =
            quantizer.normalize.then(|| ResidualQuantizer::load_means(artefact, centered.dim())).transpose()?;
        if decoder.as_ref().is_some_and(|decoder| decoder.sizes() != sizes) {
            return Err(Error::corrupt(artefact.path(), "codebooks and means differ in size"));
        }
        let balanced = artefact.metadata("method")? == BALANCED;
        Ok(Self { sizes, balanced, centered, quantizer, decoder })
    }
}

impl SidEncoder for ResidualKmeans {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded> {
        let points = self.centered.all(content)?;
        let (codes, mut left) = self.quantizer.quantize_on(&points, device)?;
        let sums = if let Some(decoder) = &self.decoder {
            decoder.lookup(&codes)
        } else {
            left.par_iter_mut().zip(&points).for_each(|(left, x)| *left = x - *left);
            left
        };
        Ok(Encoded::new(codes, self.centered.restore(sums), content))
    }

    fn last_level(&self, content: &Vectors) -> Result<Option<LastLevel>> {
        Ok(Some(self.quantizer.last_level(&self.centered.all(content)?)))
    }

    fn decode(&self, codes: &CodeMatrix) -> Result<Option<Vectors>> {
        check_codes(codes, &self.sizes)?;
        let stack = self.decoder.as_ref().unwrap_or(&self.quantizer);
        Ok(Some(self.centered.restore(stack.lookup(codes))))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", self.method());
        self.centered.save(&mut writer)?;
        self.quantizer.save(&mut writer)?;
        if let Some(decoder) = &self.decoder {
            writer.u8s("normalize", &[1], &[1])?;
            decoder.save_means(&mut writer)?;
        }
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        if self.balanced { BALANCED } else { METHOD }
    }
}

fn draw(order: &[u32], limit: usize, seed: u64) -> Vec<u32> {
    let mut rng = SeededRng::new(seed).stream("rkmeans items");
    let mut picked = rand::seq::index::sample(&mut rng, order.len(), limit).into_vec();
    picked.sort_unstable();
    picked.into_iter().map(|i| order[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_takes_what_the_one_before_left() {
        // Heaps at 0, 1, 10 and 11: the first level finds the tens, the second the ones.
        let content = Vectors::new(1, [0.0, 1.0, 10.0, 11.0].repeat(8)).unwrap();
        let rkmeans = ResidualKmeansConfig { items_per_code: 10, ..ResidualKmeansConfig::default() };
        let config = QuantizerConfig { levels: 2, codebook_size: 2, rkmeans, ..QuantizerConfig::default() };
        let mut levels = Vec::new();
        let quantizer = ResidualKmeans::fit(&config, &content, None, &mut |p| levels.push((p.done, p.total))).unwrap();
        assert_eq!(levels, [(1, 2), (2, 2)]);
        let encoded = quantizer.encode(&content).unwrap();
        let code = |i: usize, level: usize| encoded.codes.row(i)[level];
        assert!(code(0, 0) == code(1, 0) && code(2, 0) == code(3, 0) && code(0, 0) != code(2, 0));
        assert!(code(0, 1) == code(2, 1) && code(1, 1) == code(3, 1) && code(0, 1) != code(1, 1));
    }

    #[test]
    fn a_drawn_part_is_a_part() {
        let order: Vec<u32> = (100..200).collect();
        let drawn = draw(&order, 30, 4);
        assert_eq!(drawn.len(), 30);
        assert!(drawn.windows(2).all(|w| w[0] < w[1]) && drawn.iter().all(|i| order.contains(i)));
    }
}
