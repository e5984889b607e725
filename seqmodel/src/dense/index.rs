//! Exact top-k by inner product over a table of item vectors.
//!
//! Shapes: table (items, dim), queries (batch, dim) -> `batch` lists.

use crate::nn::{project, with_values};
use crate::retrieve::{Scored, top_k};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use rqvae::ItemIdx;
use std::sync::Arc;

/// Queries multiplied with the table at once.
const BLOCK: usize = 128;

/// Item vectors that are scanned whole.
pub struct DenseIndex {
    dim: usize,
    rows: Vec<f32>,
    table: Tensor,
    tie_hash: Arc<[u64]>,
}

impl DenseIndex {
    /// Over `rows` (items, dim); equal scores go by `tie_hash`, one per item.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the two differ in items.
    pub fn new(dim: usize, rows: Vec<f32>, tie_hash: &[u64]) -> Result<Self> {
        if rows.len() != dim * tie_hash.len() {
            return Err(Error::Mismatch {
                what: "item vectors".into(),
                expected: format!("{} items of {dim} values", tie_hash.len()),
                found: format!("{} values", rows.len()),
            });
        }
        let table = Tensor::from_slice(&rows, (tie_hash.len(), dim), &Device::Cpu)?;
        Ok(Self { dim, rows, table, tie_hash: Arc::from(tie_hash) })
    }

    /// Vector of an item.
    pub fn row(&self, item: u32) -> &[f32] {
        &self.rows[item as usize * self.dim..][..self.dim]
    }

    /// Width of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The hash that breaks ties, one per item.
    pub fn tie_hash(&self) -> &[u64] {
        &self.tie_hash
    }

    /// Best `k` items of each row of `queries` (batch, dim) without those of `exclude`, which has one list per row.
    pub fn search(&self, queries: &[f32], exclude: &[&[ItemIdx]], k: usize) -> Result<Vec<Vec<Scored>>> {
        let items = self.tie_hash.len();
        let mut lists = Vec::with_capacity(exclude.len());
        for (queries, exclude) in queries.chunks(BLOCK * self.dim).zip(exclude.chunks(BLOCK)) {
            let queries = Tensor::from_slice(queries, (exclude.len(), self.dim), &Device::Cpu)?;
            let scores = project(&queries, &self.table)?;
            lists.extend(with_values(&scores, |scores| {
                let list = |(row, exclude): (&[f32], &&[ItemIdx])| {
                    let mut row = row.to_vec();
                    exclude.iter().for_each(|item| row[item.0 as usize] = f32::NEG_INFINITY);
                    top_k(&row, k, &self.tie_hash)
                };
                scores.par_chunks(items.max(1)).zip(exclude).map(list).collect::<Vec<_>>()
            })?);
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_best_and_leaves_out() {
        let index = DenseIndex::new(2, vec![1.0, 0.0, 0.0, 1.0, 2.0, 0.0], &[5, 6, 7]).unwrap();
        let lists = index.search(&[1.0, 0.0, 0.0, 3.0], &[&[], &[ItemIdx(1)]], 2).unwrap();
        let items = |list: &Vec<Scored>| list.iter().map(|s| s.item.0).collect::<Vec<_>>();
        assert_eq!((items(&lists[0]), items(&lists[1])), (vec![2, 0], vec![0, 2]));
        assert!(DenseIndex::new(2, vec![1.0], &[1]).is_err());
    }
}
