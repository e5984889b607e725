//! Content moved to its mean and divided by one number, so that no square overflows and no method sees units.
//!
//! Shapes: content (items, dim) -> points (items, dim), every number of the fitted items in [-1, 1].

use crate::{Artefact, ArtefactWriter, Error, Result, Vectors};
use rayon::prelude::*;

/// Where the middle of the content is and how far it reaches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Centered {
    mean: Vec<f32>,
    scale: f32,
}

impl Centered {
    /// Mean of the rows of `order`, and the largest distance from it along one dimension.
    pub(crate) fn fit(content: &Vectors, order: &[u32]) -> Self {
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
        Self { mean, scale: if scale.is_normal() { scale } else { 1.0 } }
    }

    /// Width of the content.
    pub(crate) fn dim(&self) -> usize {
        self.mean.len()
    }

    /// Rows of `order` as points.
    pub(crate) fn points(&self, content: &Vectors, order: &[u32]) -> Vec<f32> {
        let mut points = vec![0.0; order.len() * content.dim];
        points.par_chunks_exact_mut(content.dim).zip(order).for_each(|(point, &i)| {
            for ((point, &x), &mean) in point.iter_mut().zip(content.row(i as usize)).zip(&self.mean) {
                *point = ((f64::from(x) - f64::from(mean)) / f64::from(self.scale)) as f32;
            }
        });
        points
    }

    /// All rows of `content` as points.
    ///
    /// # Errors
    /// `content` is not finite or not of the fitted width.
    pub(crate) fn all(&self, content: &Vectors) -> Result<Vec<f32>> {
        content.check()?;
        if content.dim != self.dim() {
            return Err(Error::shape("content vectors", format!("width {}", self.dim()), content.dim));
        }
        let order: Vec<u32> = (0..content.rows() as u32).collect();
        Ok(self.points(content, &order))
    }

    /// Points back to content.
    pub(crate) fn restore(&self, mut points: Vec<f32>) -> Vectors {
        points.par_chunks_exact_mut(self.dim()).for_each(|point| {
            point.iter_mut().zip(&self.mean).for_each(|(x, mean)| *x = mean + self.scale * *x);
        });
        Vectors { dim: self.dim(), data: points }
    }

    pub(crate) fn save(&self, writer: &mut ArtefactWriter) -> Result<()> {
        writer.f32s("mean", &[self.mean.len()], &self.mean)?;
        writer.f32s("scale", &[1], &[self.scale])
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
        Ok(Self { mean, scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_on_paper() {
        let content = Vectors::new(2, vec![1.0, 0.0, 5.0, 2.0]).unwrap();
        let centered = Centered::fit(&content, &[0, 1]);
        let points = centered.all(&content).unwrap();
        assert_eq!(points, [-1.0, -0.5, 1.0, 0.5]);
        assert_eq!(centered.restore(points), content);
        assert!(centered.all(&Vectors::new(1, vec![0.0]).unwrap()).is_err());
    }
}
