//! Content vectors as plain numbers.

use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// One finite content vector per item: (items, dim), row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Width of a vector, at least 1.
    pub dim: usize,
    /// The numbers: (items, dim).
    pub data: Vec<f32>,
}

impl Vectors {
    /// Vectors of `data`: (items, dim).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] when `data` has no whole number of rows, [`Error::BadVectors`] naming the first row
    /// with NaN or infinity.
    pub fn new(dim: usize, data: Vec<f32>) -> Result<Self> {
        let vectors = Self { dim, data };
        vectors.check()?;
        Ok(vectors)
    }

    /// Checks what [`Vectors::new`] checks, for vectors put together by hand.
    pub fn check(&self) -> Result<()> {
        let (dim, data) = (self.dim, &self.data);
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(Error::shape("content vectors", format!("rows of {dim} > 0 numbers"), data.len()));
        }
        if let Some(at) = data.iter().position(|x| !x.is_finite()) {
            let reason = format!("element {} is {}, expected a finite number", at % dim, data[at]);
            return Err(Error::BadVectors { row: at / dim, reason });
        }
        Ok(())
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.data.len() / self.dim
    }

    /// Vector of item `i`: (dim,).
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..][..self.dim]
    }

    /// The same numbers as a tensor: (items, dim).
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.data, (self.rows(), self.dim), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_rows_are_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Vectors::new(2, vec![0.0, 1.0, 2.0, bad]).unwrap_err();
            assert!(matches!(error, Error::BadVectors { row: 1, .. }), "{error}");
        }
        assert!(Vectors::new(2, vec![0.0]).is_err());
        assert!(Vectors::new(0, vec![]).is_err());
    }

    #[test]
    fn rows_and_tensor() {
        let vectors = Vectors::new(2, vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((vectors.rows(), vectors.row(1)), (2, &[2.0, 3.0][..]));
        assert_eq!(vectors.to_tensor().unwrap().dims(), [2, 2]);
    }
}
