//! Locality-sensitive hashing: each bit of a code is the side of a random hyperplane. A control beside random codes.
//!
//! Shapes: content (items, dim) -> codes (items, levels), log2(size) bits each.
//! Paper: Rajput et al. 2023 (TIGER), sec. 4.3, 4 codes of 8 hyperplanes.
//! Deviations: content is centred first. The reconstruction, for reports alone, is the sum of mean residuals of codes.

use super::{Encoded, FILE, FORMAT, QuantizerConfig, ResidualQuantizer, SidEncoder, VERSION, Vectors, content_order};
use crate::cluster::{Centered, Points, at_once};
use crate::{Accelerator, Artefact, ArtefactWriter, Code, CodeMatrix, Error, Result, SeededRng};
use rand::Rng;
use rayon::prelude::*;
use std::path::Path;

const METHOD: &str = "lsh";

/// Random hyperplanes.
#[derive(Debug, Clone)]
pub struct Lsh {
    sizes: Vec<u32>,
    centered: Centered,
    /// Normals: (levels * bits, dim).
    planes: Vec<f32>,
    decoder: ResidualQuantizer,
}

impl Lsh {
    /// Draws hyperplanes through the mean of `content` (items, dim); products are taken on `device` where there is one.
    ///
    /// # Errors
    /// The configuration is invalid or its codebook size no power of two, or there are no items, or a vector is not
    /// finite, or the device fails.
    pub fn fit(config: &QuantizerConfig, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Self> {
        config.validate()?;
        let order = content_order(content)?;
        let centered = Centered::fit(content, &order);
        let sizes = vec![config.codebook_size; config.levels];
        let bits = config.codebook_size.trailing_zeros() as usize * config.levels;
        let mut rng = SeededRng::new(config.seed).stream("hyperplanes");
        let planes = (0..bits * content.dim).map(|_| normal(&mut rng)).collect();
        let decoder = ResidualQuantizer::new(content.dim, Vec::new());
        let mut lsh = Self { sizes, centered, planes, decoder };
        let points = lsh.centered.points(content, &order);
        let codes = lsh.codes(&points, device)?;
        lsh.decoder = ResidualQuantizer::of_means(&points, content.dim, &codes, &lsh.sizes);
        Ok(lsh)
    }

    fn codes(&self, points: &[f32], device: Option<&dyn Accelerator>) -> Result<CodeMatrix> {
        let (dim, levels) = (self.centered.dim(), self.sizes.len());
        let bits = self.sizes[0].trailing_zeros() as usize;
        let mut flat: Vec<Code> = vec![0; points.len() / dim * levels];
        let code = |codes: &mut [Code], bit: usize, dot: f32| {
            codes[bit / bits] |= Code::from(dot > 0.0) << (bit % bits);
        };
        if device.is_some() {
            let rows = at_once(dim);
            for (flat, points) in flat.chunks_mut(rows * levels).zip(points.chunks(rows * dim)) {
                let mut products = vec![0.0; points.len() / dim * bits * levels];
                Points::on(device, points, dim)?.dots(&self.planes, &mut products)?;
                for (codes, dots) in flat.chunks_exact_mut(levels).zip(products.chunks_exact(bits * levels)) {
                    dots.iter().enumerate().for_each(|(bit, &dot)| code(codes, bit, dot));
                }
            }
        } else {
            flat.par_chunks_exact_mut(levels).zip(points.par_chunks_exact(dim)).for_each(|(codes, point)| {
                for (bit, plane) in self.planes.chunks_exact(dim).enumerate() {
                    code(codes, bit, plane.iter().zip(point).map(|(a, b)| a * b).sum());
                }
            });
        }
        CodeMatrix::new(levels, flat)
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let centered = Centered::load(artefact)?;
        let decoder = ResidualQuantizer::load(artefact, centered.dim())?;
        let sizes = decoder.sizes();
        let (_, planes) = artefact.f32s("planes")?;
        let bits = sizes[0].trailing_zeros() as usize * sizes.len();
        let even = sizes.iter().all(|&size| size == sizes[0] && size.is_power_of_two());
        if !even || planes.len() != bits * centered.dim() || planes.iter().any(|x| !x.is_finite()) {
            let reason = format!("`planes` is not {bits} finite normals, or the codebooks differ in size");
            return Err(Error::corrupt(artefact.path(), reason));
        }
        Ok(Self { sizes, centered, planes, decoder })
    }
}

impl SidEncoder for Lsh {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded> {
        let codes = self.codes(&self.centered.all(content)?, device)?;
        let reconstruction = self.centered.restore(self.decoder.lookup(&codes));
        Ok(Encoded::new(codes, reconstruction, content))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        self.centered.save(&mut writer)?;
        let dim = self.centered.dim();
        writer.f32s("planes", &[self.planes.len() / dim, dim], &self.planes)?;
        self.decoder.save(&mut writer)?;
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

/// A draw from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_points_have_opposite_bits() {
        let content = Vectors::new(2, vec![1.0, 2.0, -1.0, -2.0, 2.0, 4.0, -2.0, -4.0]).unwrap();
        let config = QuantizerConfig { levels: 2, codebook_size: 16, ..QuantizerConfig::default() };
        let codes = Lsh::fit(&config, &content, None).unwrap().encode(&content).unwrap().codes;
        assert_eq!(codes.row(0), codes.row(2), "only the direction counts");
        assert!(codes.row(0).iter().zip(codes.row(1)).all(|(a, b)| a ^ b == 15));
        let odd = QuantizerConfig { codebook_size: 10, method: super::super::Method::Lsh, ..config };
        assert!(Lsh::fit(&odd, &content, None).is_err());
    }

    #[test]
    fn draws_are_normal() {
        let mut rng = SeededRng::new(1).stream("normal");
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / 2e4;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
