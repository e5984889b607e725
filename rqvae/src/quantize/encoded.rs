//! What a quantiser says about items.

use super::Vectors;
use crate::CodeMatrix;
use crate::cluster::squared_distance;

/// Codes of items and what they keep of the content.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Codes: (items, levels).
    pub codes: CodeMatrix,
    /// Distance between content and reconstruction: (items,).
    pub residual_norms: Vec<f32>,
    /// Content as the codes tell it: (items, dim).
    pub reconstruction: Vectors,
}

impl Encoded {
    pub(crate) fn new(codes: CodeMatrix, mut reconstruction: Vectors, content: &Vectors) -> Self {
        // Sums near the largest f32 may pass it.
        reconstruction.data.iter_mut().for_each(|x| *x = x.clamp(f32::MIN, f32::MAX));
        let norm = |(a, b): (&[f32], &[f32])| {
            let squares = squared_distance(a, b);
            if squares.is_finite() { squares.sqrt() } else { square_sum(a, b).sqrt().min(f64::from(f32::MAX)) as f32 }
        };
        let rows = reconstruction.data.chunks_exact(content.dim);
        let residual_norms = rows.zip(content.data.chunks_exact(content.dim)).map(norm).collect();
        Self { codes, residual_norms, reconstruction }
    }

    /// Mean squared error per element of `content` (items, dim).
    pub fn mse(&self, content: &Vectors) -> f64 {
        square_sum(&self.reconstruction.data, &content.data) / content.data.len().max(1) as f64
    }

    /// [`Vectors::unexplained`] of the reconstruction.
    pub fn relative_error(&self, content: &Vectors) -> f64 {
        self.reconstruction.unexplained(content)
    }
}

impl Vectors {
    /// Share of the variance of `content` (items, dim) that these vectors, taken as its reconstruction, do not explain:
    /// the sum of `|x - x_hat|^2` over that of `|x - mean|^2`, 0 where nothing varies.
    pub fn unexplained(&self, content: &Vectors) -> f64 {
        let mut mean = vec![0f64; content.dim];
        let (rows, mut total, mut spread) = (content.rows().max(1) as f64, 0.0, 0.0);
        for row in content.data.chunks_exact(content.dim) {
            mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / rows);
        }
        for row in content.data.chunks_exact(content.dim) {
            for (&x, mean) in row.iter().zip(&mean) {
                total += f64::from(x).powi(2);
                spread += (f64::from(x) - mean).powi(2);
            }
        }
        // Below the rounding of f32 there is no variance to explain.
        if spread <= total * 1e-12 { 0.0 } else { square_sum(&self.data, &content.data) / spread }
    }
}

fn square_sum(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_on_paper() {
        let content = Vectors::new(2, vec![0.0, 0.0, 4.0, 0.0]).unwrap();
        let codes = CodeMatrix::new(1, vec![0, 1]).unwrap();
        let encoded = Encoded::new(codes, Vectors::new(2, vec![0.0, 1.0, 4.0, 0.0]).unwrap(), &content);
        assert_eq!(encoded.residual_norms, [1.0, 0.0]);
        assert!((encoded.mse(&content) - 0.25).abs() < 1e-12);
        assert!((encoded.relative_error(&content) - 1.0 / 8.0).abs() < 1e-12);
    }
}
