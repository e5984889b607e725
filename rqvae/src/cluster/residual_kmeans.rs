//! Residual k-means: k-means level by level, each on what the levels before left over.
//!
//! Shapes: content (items, dim) -> codes (items, levels).
//! Paper: Luo et al. 2024 (QARM), RQ-KMeans; Deng et al. 2025 (OneRec), sec. 3.1.
//! Deviations: clusters are not balanced; vectors are centred and divided by one number before they are quantised.

use super::lloyd::{KmeansConfig, lloyd};
use crate::quantize::{Encoded, QuantizerConfig, ResidualQuantizer, SidEncoder};
use crate::quantize::{FILE, FORMAT, FitProgress, VERSION, content_order};
use crate::{Artefact, ArtefactWriter, Error, Result, SeededRng, Vectors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

const METHOD: &str = "rkmeans";

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
}

impl Default for ResidualKmeansConfig {
    fn default() -> Self {
        Self { iterations: 50, tolerance: 1e-4, items_per_code: 256 }
    }
}

/// A fitted stack of k-means.
#[derive(Debug, Clone)]
pub struct ResidualKmeans {
    sizes: Vec<u32>,
    mean: Vec<f32>,
    scale: f32,
    quantizer: ResidualQuantizer,
}

impl ResidualKmeans {
    /// Fits `content` (items, dim). The order of the items makes no difference.
    ///
    /// # Errors
    /// The configuration is invalid, or there are no items, or a vector is not finite.
    pub fn fit(config: &QuantizerConfig, content: &Vectors, progress: &mut dyn FnMut(FitProgress)) -> Result<Self> {
        config.validate()?;
        let (levels, k) = (config.levels, config.codebook_size as usize);
        let mut order = content_order(content)?;
        let limit = config.rkmeans.items_per_code.saturating_mul(k);
        if limit > 0 && order.len() > limit {
            order = draw(&order, limit, config.seed);
        }
        let dim = content.dim;
        let (mean, scale) = center(content, &order);
        let mut residuals = scaled(content, &order, &mean, scale);
        let mut quantizer = ResidualQuantizer::new(dim, Vec::new());
        for level in 0..levels {
            let seed = SeededRng::new(config.seed).key("rkmeans", level as u64);
            let ResidualKmeansConfig { iterations, tolerance, .. } = config.rkmeans;
            let (centroids, costs) = lloyd(&residuals, dim, &KmeansConfig { k, iterations, tolerance, seed });
            let stack = ResidualQuantizer::new(dim, vec![centroids]);
            residuals = stack.quantize(&residuals).1;
            quantizer.push(stack);
            let loss = costs.last().map(|cost| cost / order.len() as f64);
            progress(FitProgress { stage: METHOD, done: level + 1, total: levels, loss });
        }
        Ok(Self { sizes: vec![config.codebook_size; levels], mean, scale, quantizer })
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let corrupt = |reason: &str| Error::corrupt(artefact.path(), reason);
        let (_, mean) = artefact.f32s("mean")?;
        let scale = match artefact.f32s("scale")?.1[..] {
            [scale] if scale > 0.0 && scale.is_finite() => scale,
            _ => return Err(corrupt("`scale` is not one positive number")),
        };
        if mean.is_empty() || mean.iter().any(|x| !x.is_finite()) {
            return Err(corrupt("`mean` is not a finite vector"));
        }
        let quantizer = ResidualQuantizer::load(artefact, mean.len())?;
        Ok(Self { sizes: quantizer.sizes(), mean, scale, quantizer })
    }
}

impl SidEncoder for ResidualKmeans {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode(&self, content: &Vectors) -> Result<Encoded> {
        content.check()?;
        let dim = self.mean.len();
        if content.dim != dim {
            return Err(Error::shape("content vectors", format!("width {dim}"), content.dim));
        }
        let order: Vec<u32> = (0..content.rows() as u32).collect();
        let points = scaled(content, &order, &self.mean, self.scale);
        let (codes, mut left) = self.quantizer.quantize(&points);
        // left -> reconstruction, in place: mean + scale * (x - residual)
        left.par_chunks_exact_mut(dim).zip(points.par_chunks_exact(dim)).for_each(|(left, x)| {
            for ((left, x), mean) in left.iter_mut().zip(x).zip(&self.mean) {
                *left = mean + self.scale * (x - *left);
            }
        });
        Ok(Encoded::new(codes, Vectors { dim, data: left }, content))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        writer.f32s("mean", &[self.mean.len()], &self.mean)?;
        writer.f32s("scale", &[1], &[self.scale])?;
        self.quantizer.save(&mut writer)?;
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

/// Mean of the rows of `order`, and the largest distance from it along one dimension.
fn center(content: &Vectors, order: &[u32]) -> (Vec<f32>, f32) {
    let mut sums = vec![0f64; content.dim];
    for &i in order {
        for (sum, &x) in sums.iter_mut().zip(content.row(i as usize)) {
            *sum += f64::from(x);
        }
    }
    let mean: Vec<f32> = sums.iter().map(|sum| (sum / order.len() as f64) as f32).collect();
    let deviation = |(x, mean): (&f32, &f32)| (f64::from(*x) - f64::from(*mean)).abs();
    let rows = order.iter().map(|&i| content.row(i as usize));
    let largest = rows.flat_map(|row| row.iter().zip(&mean).map(deviation)).fold(0.0, f64::max);
    let scale = largest.min(f64::from(f32::MAX)) as f32;
    (mean, if scale.is_normal() { scale } else { 1.0 })
}

/// Rows of `order`, centred and divided.
fn scaled(content: &Vectors, order: &[u32], mean: &[f32], scale: f32) -> Vec<f32> {
    let mut points = vec![0.0; order.len() * content.dim];
    points.par_chunks_exact_mut(content.dim).zip(order).for_each(|(point, &i)| {
        for ((point, &x), &mean) in point.iter_mut().zip(content.row(i as usize)).zip(mean) {
            *point = ((f64::from(x) - f64::from(mean)) / f64::from(scale)) as f32;
        }
    });
    points
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
        let quantizer = ResidualKmeans::fit(&config, &content, &mut |p| levels.push((p.done, p.total))).unwrap();
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
