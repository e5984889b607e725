//! A stack of codebooks over the running residual.
//!
//! Shapes: points (items, dim) -> codes (items, levels), residuals (items, dim).
//! Paper: Zeghidour et al. 2021 (SoundStream), alg. 1; for items Rajput et al. 2023 (TIGER), sec. 3.1.

use crate::cluster::{BLOCK, nearest_in_block, squared_norms};
use crate::{Artefact, ArtefactWriter, Code, CodeMatrix, Error, MAX_CODES, Result};
use rayon::prelude::*;

/// Codebooks, coarse to fine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResidualQuantizer {
    dim: usize,
    codebooks: Vec<Vec<f32>>,
    norms: Vec<Vec<f32>>,
}

impl ResidualQuantizer {
    /// `codebooks` of (size, dim) each.
    pub(crate) fn new(dim: usize, codebooks: Vec<Vec<f32>>) -> Self {
        let norms = codebooks.iter().map(|codebook| squared_norms(codebook, dim)).collect();
        Self { dim, codebooks, norms }
    }

    /// Adds the levels of `other` below.
    pub(crate) fn push(&mut self, other: Self) {
        self.codebooks.extend(other.codebooks);
        self.norms.extend(other.norms);
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
        for (level, codebook) in self.codebooks.iter().enumerate() {
            let shape = [self.norms[level].len(), self.dim];
            writer.f32s(&format!("codebook.{level}"), &shape, codebook)?;
        }
        Ok(())
    }

    pub(crate) fn load(artefact: &Artefact, dim: usize) -> Result<Self> {
        let levels = artefact.names().filter(|name| name.starts_with("codebook.")).count();
        let corrupt = |reason: String| Error::corrupt(artefact.path(), reason);
        if !(1..=MAX_CODES).contains(&levels) {
            return Err(corrupt(format!("{levels} codebooks, expected 1 to {MAX_CODES}")));
        }
        let mut codebooks = Vec::new();
        for level in 0..levels {
            let (shape, codebook) = artefact.f32s(&format!("codebook.{level}"))?;
            let size = shape.first().copied().unwrap_or(0);
            if shape != [size, dim] || !(1..=usize::from(Code::MAX) + 1).contains(&size) {
                return Err(corrupt(format!("`codebook.{level}` has shape {shape:?}, expected (size, {dim})")));
            }
            if codebook.iter().any(|x| !x.is_finite()) {
                return Err(corrupt(format!("`codebook.{level}` is not finite")));
            }
            codebooks.push(codebook);
        }
        Ok(Self::new(dim, codebooks))
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
