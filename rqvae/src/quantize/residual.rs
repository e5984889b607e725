//! A stack of codebooks over the running residual.
//!
//! Shapes: points (items, dim) -> codes (items, levels), residuals (items, dim).
//! Paper: Zeghidour et al. 2021 (SoundStream), alg. 1; for items Rajput et al. 2023 (TIGER), sec. 3.1.

use crate::cluster::{BLOCK, agree, ask, at_once, nearest_in_block, squared_norms};
use crate::{Accelerator, Artefact, ArtefactWriter, Code, CodeMatrix, Error, LastLevel, MAX_CODES, Result};
use rayon::prelude::*;

/// Codebooks, coarse to fine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResidualQuantizer {
    dim: usize,
    codebooks: Vec<Vec<f32>>,
    /// Squared norms of the codewords, prices added.
    norms: Vec<Vec<f32>>,
    /// What each codeword costs beside the squared distance; empty for nothing.
    prices: Vec<Vec<f32>>,
    /// Whether residuals are scaled to length 1 before each level.
    pub(crate) normalize: bool,
}

impl ResidualQuantizer {
    /// `codebooks` of (size, dim) each.
    pub(crate) fn new(dim: usize, codebooks: Vec<Vec<f32>>) -> Self {
        let norms = codebooks.iter().map(|codebook| squared_norms(codebook, dim)).collect();
        let prices = vec![Vec::new(); codebooks.len()];
        Self { dim, codebooks, norms, prices, normalize: false }
    }

    /// One level whose codewords (size, dim) have `prices` (size,): the code is that of the least squared distance
    /// plus price.
    pub(crate) fn priced(dim: usize, codebook: Vec<f32>, prices: Vec<f32>) -> Self {
        let mut stack = Self::new(dim, vec![codebook]);
        stack.norms[0].iter_mut().zip(&prices).for_each(|(norm, price)| *norm += price);
        stack.prices = vec![prices];
        stack
    }

    /// A stack that decodes any codes (items, levels): level by level the mean of what the levels before leave of
    /// `points` (items, dim).
    pub(crate) fn of_means(points: &[f32], dim: usize, codes: &CodeMatrix, sizes: &[u32]) -> Self {
        let mut left = points.to_vec();
        let mut codebooks = Vec::new();
        for (level, &size) in sizes.iter().enumerate() {
            let mut sums = vec![0f64; size as usize * dim];
            let mut counts = vec![0u32; size as usize];
            for (i, row) in left.chunks_exact(dim).enumerate() {
                let code = usize::from(codes.row(i)[level]);
                counts[code] += 1;
                sums[code * dim..][..dim].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            let mean = |(at, sum): (usize, f64)| (sum / f64::from(counts[at / dim].max(1))) as f32;
            let codebook: Vec<f32> = sums.into_iter().enumerate().map(mean).collect();
            for (i, row) in left.chunks_exact_mut(dim).enumerate() {
                subtract(row, &codebook[usize::from(codes.row(i)[level]) * dim..][..dim]);
            }
            codebooks.push(codebook);
        }
        Self::new(dim, codebooks)
    }

    /// Adds the levels of `other` below.
    pub(crate) fn push(&mut self, other: Self) {
        self.codebooks.extend(other.codebooks);
        self.norms.extend(other.norms);
        self.prices.extend(other.prices);
    }

    /// Codes per level.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        self.norms.iter().map(|norms| norms.len() as u32).collect()
    }

    /// Codes (items, levels) of `points` (items, dim), and what they leave over (items, dim).
    pub(crate) fn quantize(&self, points: &[f32]) -> (CodeMatrix, Vec<f32>) {
        let (dim, levels) = (self.dim, self.codebooks.len());
        let mut residuals = points.to_vec();
        let mut flat = vec![0; points.len() / dim * levels];
        flat.par_chunks_mut(BLOCK * levels).zip(residuals.par_chunks_mut(BLOCK * dim)).for_each_init(
            || (Vec::new(), vec![0; BLOCK]),
            |(scores, column), (flat, residuals)| {
                for (level, (codebook, norms)) in self.codebooks.iter().zip(&self.norms).enumerate() {
                    if self.normalize {
                        residuals.chunks_exact_mut(dim).for_each(unit);
                    }
                    nearest_in_block(residuals, dim, codebook, norms, scores, column);
                    for ((row, residual), &code) in
                        flat.chunks_exact_mut(levels).zip(residuals.chunks_exact_mut(dim)).zip(column.iter())
                    {
                        row[level] = code;
                        subtract(residual, &codebook[usize::from(code) * dim..][..dim]);
                    }
                }
            },
        );
        (CodeMatrix::new(levels, flat).expect("one code per level was made for each item"), residuals)
    }

    /// As [`Self::quantize`], on `device` where there is one.
    ///
    /// # Errors
    /// The device fails, or does not choose as the host does.
    pub(crate) fn quantize_on(
        &self,
        points: &[f32],
        device: Option<&dyn Accelerator>,
    ) -> Result<(CodeMatrix, Vec<f32>)> {
        let Some(device) = device else { return Ok(self.quantize(points)) };
        let (dim, levels) = (self.dim, self.codebooks.len());
        let (mut flat, mut residuals) = (vec![0; points.len() / dim * levels], vec![0.0; points.len()]);
        let at_once = at_once(dim);
        let parts = points.chunks(at_once * dim).zip(residuals.chunks_mut(at_once * dim));
        for (flat, (points, residuals)) in flat.chunks_mut(at_once * levels).zip(parts) {
            let mut held = device.points(points, dim)?;
            let mut column: Vec<Code> = vec![0; points.len() / dim];
            // The first few are followed by the host.
            let mut followed = points[..points.len().min(BLOCK * dim)].to_vec();
            for (level, (codebook, norms)) in self.codebooks.iter().zip(&self.norms).enumerate() {
                if self.normalize {
                    held.unit()?;
                    followed.chunks_exact_mut(dim).for_each(unit);
                }
                ask(held.as_mut(), codebook, norms, &mut column)?;
                agree(&followed, dim, codebook, norms, &column)?;
                held.subtract()?;
                for (residual, &code) in followed.chunks_exact_mut(dim).zip(&column) {
                    subtract(residual, &codebook[usize::from(code) * dim..][..dim]);
                }
                flat.chunks_exact_mut(levels).zip(&column).for_each(|(row, &code)| row[level] = code);
            }
            held.read(residuals)?;
        }
        Ok((CodeMatrix::new(levels, flat)?, residuals))
    }

    /// What the last level chooses from for `points` (items, dim).
    pub(crate) fn last_level(&self, points: &[f32]) -> LastLevel {
        let mut before = self.clone();
        let codewords = before.codebooks.pop().unwrap_or_default();
        before.norms.pop();
        before.prices.pop();
        let mut residuals = if before.codebooks.is_empty() { points.to_vec() } else { before.quantize(points).1 };
        if self.normalize {
            residuals.chunks_exact_mut(self.dim).for_each(unit);
        }
        LastLevel { dim: self.dim, residuals, codewords }
    }

    /// Sum of the codewords of `codes` (items, levels): (items, dim).
    pub(crate) fn lookup(&self, codes: &CodeMatrix) -> Vec<f32> {
        let mut sums = vec![0.0; codes.rows() * self.dim];
        for (i, sum) in sums.chunks_exact_mut(self.dim).enumerate() {
            for (codebook, &code) in self.codebooks.iter().zip(codes.row(i)) {
                for (sum, x) in sum.iter_mut().zip(&codebook[usize::from(code) * self.dim..]) {
                    *sum += x;
                }
            }
        }
        sums
    }

    pub(crate) fn save(&self, writer: &mut ArtefactWriter) -> Result<()> {
        self.save_as("codebook", writer)?;
        for (level, prices) in self.prices.iter().enumerate().filter(|(_, prices)| !prices.is_empty()) {
            writer.f32s(&format!("prices.{level}"), &[prices.len()], prices)?;
        }
        Ok(())
    }

    /// As [`Self::save`] under other names, for a stack that decodes beside one that encodes.
    pub(crate) fn save_means(&self, writer: &mut ArtefactWriter) -> Result<()> {
        self.save_as("means", writer)
    }

    fn save_as(&self, name: &str, writer: &mut ArtefactWriter) -> Result<()> {
        for (level, codebook) in self.codebooks.iter().enumerate() {
            let shape = [self.norms[level].len(), self.dim];
            writer.f32s(&format!("{name}.{level}"), &shape, codebook)?;
        }
        Ok(())
    }

    pub(crate) fn load(artefact: &Artefact, dim: usize) -> Result<Self> {
        let mut stack = Self::load_as("codebook", artefact, dim)?;
        for level in 0..stack.codebooks.len() {
            let name = format!("prices.{level}");
            if artefact.names().any(|found| found == name) {
                let (_, prices) = artefact.f32s(&name)?;
                let norms = &mut stack.norms[level];
                if prices.len() != norms.len() || prices.iter().any(|x| !x.is_finite()) {
                    let reason = format!("`{name}` is not {} finite numbers", norms.len());
                    return Err(Error::corrupt(artefact.path(), reason));
                }
                norms.iter_mut().zip(&prices).for_each(|(norm, price)| *norm += price);
                stack.prices[level] = prices;
            }
        }
        Ok(stack)
    }

    pub(crate) fn load_means(artefact: &Artefact, dim: usize) -> Result<Self> {
        Self::load_as("means", artefact, dim)
    }

    fn load_as(name: &str, artefact: &Artefact, dim: usize) -> Result<Self> {
        let prefix = format!("{name}.");
        let levels = artefact.names().filter(|name| name.starts_with(&prefix)).count();
        let corrupt = |reason: String| Error::corrupt(artefact.path(), reason);
        if !(1..=MAX_CODES).contains(&levels) {
            return Err(corrupt(format!("{levels} codebooks, expected 1 to {MAX_CODES}")));
        }
        let mut codebooks = Vec::new();
        for level in 0..levels {
            let (shape, codebook) = artefact.f32s(&format!("{prefix}{level}"))?;
            let size = shape.first().copied().unwrap_or(0);
            if shape != [size, dim] || !(1..=usize::from(Code::MAX) + 1).contains(&size) {
                return Err(corrupt(format!("`{prefix}{level}` has shape {shape:?}, expected (size, {dim})")));
            }
            if codebook.iter().any(|x| !x.is_finite()) {
                return Err(corrupt(format!("`{prefix}{level}` is not finite")));
            }
            codebooks.push(codebook);
        }
        Ok(Self::new(dim, codebooks))
    }
}

/// Scales a residual to length 1; zeros stay.
pub(crate) fn unit(row: &mut [f32]) {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

/// `y -= x`
pub(crate) fn subtract(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y -= x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Invariant 5: codewords plus final residual give back the point, and each code is the nearest one.
        #[test]
        fn codewords_and_residual_give_back_the_point(
            points in prop::collection::vec(-9f32..9.0, 4 * 300),
            a in prop::collection::vec(-9f32..9.0, 4 * 7), b in prop::collection::vec(-2f32..2.0, 4 * 5),
        ) {
            let stack = ResidualQuantizer::new(4, vec![a.clone(), b]);
            let (codes, residuals) = stack.quantize(&points);
            for ((x, sum), residual) in points.iter().zip(stack.lookup(&codes)).zip(&residuals) {
                prop_assert!((x - sum - residual).abs() < 1e-5);
            }
            for (i, x) in points.chunks(4).enumerate() {
                let distance = |c: &[f32]| crate::cluster::squared_distance(x, c);
                let best = a.chunks(4).map(distance).fold(f32::INFINITY, f32::min);
                prop_assert!(distance(&a[usize::from(codes.row(i)[0]) * 4..][..4]) <= best + 1e-3);
            }
        }
    }
}
