//! Content vectors as plain numbers.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

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

    /// Hash of the numbers of item `i`: what order and ties among items go by where no ids are known.
    pub(crate) fn hash(&self, i: usize) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.digest(i)[..8]);
        u64::from_le_bytes(first)
    }

    /// First 16 bytes of the BLAKE3 digest of the numbers of item `i`: equal exactly where nothing has changed.
    pub fn digest(&self, i: usize) -> [u8; 16] {
        let bytes: Vec<u8> = self.row(i).iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        first
    }

    /// The same numbers as a tensor: (items, dim).
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.data, (self.rows(), self.dim), &Device::Cpu)?)
    }
}

/// Rows of checked `content` in an order that the content alone decides, so that no fit depends on that of the items.
pub(crate) fn content_order(content: &Vectors) -> Result<Vec<u32>> {
    content.check()?;
    if content.data.is_empty() {
        return Err(Error::BadVectors { row: 0, reason: "there are no items".into() });
    }
    let mut order: Vec<(u64, u32)> =
        (0..content.rows() as u32).into_par_iter().map(|i| (content.hash(i as usize), i)).collect();
    order.sort_unstable();
    Ok(order.into_iter().map(|(_, i)| i).collect())
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
    fn digests_see_every_bit() {
        let vectors = Vectors::new(2, vec![0.0, 1.0, 0.0, 1.0, -0.0, 1.0]).unwrap();
        assert_eq!(vectors.digest(0), vectors.digest(1));
        assert_ne!(vectors.digest(0), vectors.digest(2));
    }

    #[test]
    fn rows_and_tensor() {
        let vectors = Vectors::new(2, vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((vectors.rows(), vectors.row(1)), (2, &[2.0, 3.0][..]));
        assert_eq!(vectors.to_tensor().unwrap().dims(), [2, 2]);
    }
}
