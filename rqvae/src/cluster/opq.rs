//! Optimised product quantisation: a rotation, then one k-means for each part of the vector.
//!
//! Codes are independent of one another: no level refines the one before.
//!
//! Shapes: content (items, dim) -> rotated (items, width) -> codes (items, levels), width being dim or, if larger, the
//! number of levels.
//! Paper: Ge et al. 2013, Optimized Product Quantization, sec. 3.1 (alternation) and 3.2 (eigenvalue allocation).

use super::centered::Centered;
use super::lloyd::{KmeansConfig, lloyd_from, plus_plus};
use super::matmul::{Matrix, matmul, multiply_rows};
use super::points::Points;
use crate::quantize::{
    Encoded, FILE, FORMAT, FitProgress, QuantizerConfig, SidEncoder, VERSION, check_codes, content_order,
};
use crate::{
    Accelerator, Artefact, ArtefactWriter, Code, CodeMatrix, Error, LastLevel, MAX_CODES, Result, SeededRng, Vectors,
};
use nalgebra::{DMatrix, SVD, SymmetricEigen};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

const METHOD: &str = "opq";

/// Numbers of OPQ beside those that all quantisers share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpqConfig {
    /// Times that codebooks and rotation are fitted in turn.
    pub alternations: usize,
    /// Iterations of k-means in each turn.
    pub iterations: usize,
    /// Fits on at most this many items per code; 0 for all.
    pub items_per_code: usize,
}

impl Default for OpqConfig {
    fn default() -> Self {
        Self { alternations: 8, iterations: 5, items_per_code: 256 }
    }
}

/// A fitted rotation with its codebooks.
#[derive(Debug, Clone)]
pub struct Opq {
    sizes: Vec<u32>,
    centered: Centered,
    /// Orthogonal: (width, width), row times matrix.
    rotation: Vec<f32>,
    /// One per part: (size, width of the part).
    codebooks: Vec<Vec<f32>>,
}

/// Where each part begins and ends: as even as can be.
fn parts(width: usize, levels: usize) -> Vec<Range<usize>> {
    (0..levels).map(|part| part * width / levels..(part + 1) * width / levels).collect()
}

impl Opq {
    /// Fits `content` (items, dim), codewords on `device` where there is one, the rotation here. The order of the items
    /// makes no difference.
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
        let mut order = content_order(content)?;
        let (levels, k) = (config.levels, config.codebook_size as usize);
        if config.opq.items_per_code > 0 {
            order.truncate(config.opq.items_per_code.saturating_mul(k));
        }
        let centered = Centered::fit(content, &order);
        let width = content.dim.max(levels);
        let points = widened(centered.points(content, &order), content.dim, width);
        let parts = parts(width, levels);
        let mut rotation = allocated(&points, width, &parts);
        let mut codebooks: Vec<Vec<f32>> = Vec::new();
        let rng = SeededRng::new(config.seed);
        let total = config.opq.alternations.max(1);
        for done in 1..=total {
            let rotated = multiply_rows(&points, width, &rotation, width);
            let mut quantized = vec![0.0; rotated.len()];
            let mut cost = 0.0;
            for (level, part) in parts.iter().enumerate() {
                let own = columns(&rotated, width, part);
                let mut own = Points::on(device, &own, part.len())?;
                let seed = rng.key("opq", level as u64);
                let kmeans = KmeansConfig { k, iterations: config.opq.iterations, tolerance: 1e-4, seed };
                if codebooks.len() == level {
                    codebooks.push(plus_plus(&mut own, &kmeans)?);
                }
                let costs = lloyd_from(&mut codebooks[level], &mut own, &kmeans)?;
                cost += costs.last().copied().unwrap_or(0.0);
                put_codewords(&mut quantized, width, part, &codebooks[level], &mut own)?;
            }
            progress(FitProgress { stage: METHOD, done, total, loss: Some(cost / order.len() as f64) });
            if done < total {
                rotation = procrustes(&points, &quantized, width).unwrap_or(rotation);
            }
        }
        Ok(Self { sizes: vec![config.codebook_size; levels], centered, rotation, codebooks })
    }

    fn width(&self) -> usize {
        self.centered.dim().max(self.sizes.len())
    }

    /// Content from quantised parts (items, width).
    fn turn_back(&self, quantized: &[f32]) -> Vectors {
        let (width, dim) = (self.width(), self.centered.dim());
        let back = multiply_rows(quantized, width, &transposed(&self.rotation, width), width);
        self.centered.restore(if width == dim { back } else { columns(&back, width, &(0..dim)) })
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt(artefact.path(), reason);
        let centered = Centered::load(artefact)?;
        let levels = artefact.names().filter(|name| name.starts_with("codebook.")).count();
        if !(1..=MAX_CODES).contains(&levels) {
            return Err(corrupt(format!("{levels} codebooks, expected 1 to {MAX_CODES}")));
        }
        let width = centered.dim().max(levels);
        let finite = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
            let (shape, data) = artefact.f32s(name)?;
            if data.iter().any(|x| !x.is_finite()) {
                return Err(corrupt(format!("`{name}` is not finite")));
            }
            Ok((shape, data))
        };
        let (shape, rotation) = finite("rotation")?;
        if shape != [width, width] {
            return Err(corrupt(format!("`rotation` has shape {shape:?}, expected ({width}, {width})")));
        }
        let (mut codebooks, mut sizes) = (Vec::new(), Vec::new());
        for (level, part) in parts(width, levels).into_iter().enumerate() {
            let (shape, codebook) = finite(&format!("codebook.{level}"))?;
            let size = shape.first().copied().unwrap_or(0);
            if shape != [size, part.len()] || !(1..=usize::from(Code::MAX) + 1).contains(&size) {
                let expected = format!("(size, {})", part.len());
                return Err(corrupt(format!("`codebook.{level}` has shape {shape:?}, expected {expected}")));
            }
            sizes.push(size as u32);
            codebooks.push(codebook);
        }
        Ok(Self { sizes, centered, rotation, codebooks })
    }
}

impl SidEncoder for Opq {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded> {
        let (width, levels) = (self.width(), self.sizes.len());
        let points = widened(self.centered.all(content)?, content.dim, width);
        let rotated = multiply_rows(&points, width, &self.rotation, width);
        let mut flat: Vec<Code> = vec![0; content.rows() * levels];
        let mut quantized = vec![0.0; rotated.len()];
        for (level, part) in parts(width, levels).iter().enumerate() {
            let own = columns(&rotated, width, part);
            let mut own = Points::on(device, &own, part.len())?;
            let codes = put_codewords(&mut quantized, width, part, &self.codebooks[level], &mut own)?;
            flat.chunks_exact_mut(levels).zip(codes).for_each(|(row, code)| row[level] = code);
        }
        let codes = CodeMatrix::new(levels, flat).expect("one code per level was made for each item");
        Ok(Encoded::new(codes, self.turn_back(&quantized), content))
    }

    fn decode(&self, codes: &CodeMatrix) -> Result<Option<Vectors>> {
        check_codes(codes, &self.sizes)?;
        let (width, levels) = (self.width(), self.sizes.len());
        let mut quantized = vec![0.0; codes.rows() * width];
        for (level, part) in parts(width, levels).into_iter().enumerate() {
            for (i, row) in quantized.chunks_exact_mut(width).enumerate() {
                let at = usize::from(codes.row(i)[level]) * part.len();
                row[part.clone()].copy_from_slice(&self.codebooks[level][at..][..part.len()]);
            }
        }
        Ok(Some(self.turn_back(&quantized)))
    }

    fn last_level(&self, content: &Vectors) -> Result<Option<LastLevel>> {
        let (width, levels) = (self.width(), self.sizes.len());
        let points = widened(self.centered.all(content)?, content.dim, width);
        let part = (levels - 1) * width / levels..width;
        let residuals = columns(&multiply_rows(&points, width, &self.rotation, width), width, &part);
        Ok(Some(LastLevel { dim: part.len(), residuals, codewords: self.codebooks[levels - 1].clone() }))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        self.centered.save(&mut writer)?;
        writer.f32s("rotation", &[self.width(), self.width()], &self.rotation)?;
        for (level, part) in parts(self.width(), self.sizes.len()).iter().enumerate() {
            let shape = [self.sizes[level] as usize, part.len()];
            writer.f32s(&format!("codebook.{level}"), &shape, &self.codebooks[level])?;
        }
        writer.write(&dir.join(FILE))
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

/// Rows of `dim` numbers, filled up with zeros to `width`.
fn widened(points: Vec<f32>, dim: usize, width: usize) -> Vec<f32> {
    if dim == width {
        return points;
    }
    let zeros = vec![0.0; width - dim];
    points.chunks_exact(dim).flat_map(|row| row.iter().chain(&zeros)).copied().collect()
}

/// Columns of `part`: (rows, width) -> (rows, part).
fn columns(rows: &[f32], width: usize, part: &Range<usize>) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| &row[part.clone()]).copied().collect()
}

fn transposed(matrix: &[f32], width: usize) -> Vec<f32> {
    (0..width * width).map(|at| matrix[at % width * width + at / width]).collect()
}

/// Writes the nearest codewords of `own` (rows, part) to the columns of `part`, and gives back their codes.
fn put_codewords(
    out: &mut [f32],
    width: usize,
    part: &Range<usize>,
    codebook: &[f32],
    own: &mut Points,
) -> Result<Vec<Code>> {
    let codes = own.nearest(codebook)?;
    for (row, &code) in out.chunks_exact_mut(width).zip(&codes) {
        row[part.clone()].copy_from_slice(&codebook[usize::from(code) * part.len()..][..part.len()]);
    }
    Ok(codes)
}

/// Principal directions, dealt out so that the parts have equal products of variances.
fn allocated(points: &[f32], width: usize, parts: &[Range<usize>]) -> Vec<f32> {
    let rows = points.len() / width;
    let mut covariance = vec![0.0; width * width];
    let x = Matrix::new(points, rows, width);
    matmul(&mut covariance, x.t(), x);
    let matrix = DMatrix::from_row_iterator(width, width, covariance.iter().map(|&x| f64::from(x) / rows as f64));
    let eigen = SymmetricEigen::new(matrix);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]).then(a.cmp(&b)));
    let largest = eigen.eigenvalues[order[0]].max(f64::MIN_POSITIVE);
    let mut logs = vec![0f64; parts.len()];
    let mut filled = vec![0; parts.len()];
    let mut rotation = vec![0.0; width * width];
    for direction in order {
        let room = (0..parts.len()).filter(|&p| filled[p] < parts[p].len());
        let Some(part) = room.min_by(|&a, &b| logs[a].total_cmp(&logs[b])) else { break };
        let column = parts[part].start + filled[part];
        for row in 0..width {
            rotation[row * width + column] = eigen.eigenvectors[(row, direction)] as f32;
        }
        filled[part] += 1;
        // Shares of the largest variance, so that products grow with every direction that matters.
        logs[part] += (eigen.eigenvalues[direction].max(0.0) / largest * 1e9 + 1.0).ln();
    }
    rotation
}

/// The rotation that brings `points` nearest to `targets`, both (rows, width).
fn procrustes(points: &[f32], targets: &[f32], width: usize) -> Option<Vec<f32>> {
    let rows = points.len() / width;
    let mut product = vec![0.0; width * width];
    matmul(&mut product, Matrix::new(points, rows, width).t(), Matrix::new(targets, rows, width));
    let matrix = DMatrix::from_row_iterator(width, width, product.iter().map(|&x| f64::from(x)));
    let svd = SVD::try_new(matrix, true, true, 1e-12, 10_000)?;
    let rotation = svd.u? * svd.v_t?;
    let rotation: Vec<f32> = (0..width * width).map(|at| rotation[(at / width, at % width)] as f32).collect();
    rotation.iter().all(|x| x.is_finite()).then_some(rotation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn correlated(items: usize) -> Vectors {
        let mut rng = SeededRng::new(5).stream("correlated");
        let row = |_| {
            let (a, b) = (rng.random::<f32>(), rng.random::<f32>());
            [a, a + 0.05 * rng.random::<f32>(), b, b - a]
        };
        Vectors::new(4, (0..items).flat_map(row).collect()).unwrap()
    }

    fn fit(alternations: usize) -> (Opq, Vec<f64>) {
        let opq = OpqConfig { alternations, ..OpqConfig::default() };
        let config = QuantizerConfig { levels: 2, codebook_size: 8, opq, ..QuantizerConfig::default() };
        let mut losses = Vec::new();
        let opq = Opq::fit(&config, &correlated(600), None, &mut |p| losses.extend(p.loss)).unwrap();
        (opq, losses)
    }

    #[test]
    fn the_rotation_is_one_and_the_error_falls() {
        let (opq, losses) = fit(8);
        let mut product = vec![0.0; 16];
        let rotation = Matrix::new(&opq.rotation, 4, 4);
        matmul(&mut product, rotation, rotation.t());
        for (at, x) in product.iter().enumerate() {
            assert!((x - if at % 5 == 0 { 1.0 } else { 0.0 }).abs() < 1e-4, "{product:?}");
        }
        assert!(losses.windows(2).all(|w| w[1] <= w[0] * 1.001), "{losses:?}");
        let content = correlated(600);
        let error = |opq: &Opq| opq.encode(&content).unwrap().relative_error(&content);
        assert!(error(&opq) <= error(&fit(1).0) + 1e-6);
    }

    #[test]
    fn parts_cover_the_width() {
        assert_eq!(parts(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(parts(3, 3), [0..1, 1..2, 2..3]);
    }
}
