//! Neighbours by content: cosine to a recency-weighted mean of the history's vectors. Needs no interactions at all.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored, top_k};
use rayon::prelude::*;
use rqvae::Vectors;
use std::sync::Arc;

/// Ranks items by the cosine of their content.
pub struct ContentKnn {
    /// Unit rows.
    vectors: Vectors,
    /// Weight of an item relative to the one after it; 0 looks at the last item only.
    decay: f32,
    tie_hash: Arc<[u64]>,
}

impl ContentKnn {
    /// Weight of an item relative to the one after it.
    pub const DECAY: f32 = 0.8;

    /// Over the content of all items.
    pub fn new(content: &Vectors, decay: f32, tie_hash: &[u64]) -> Result<Self> {
        let mut data = content.data.clone();
        for row in data.chunks_exact_mut(content.dim) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        Ok(Self { vectors: Vectors::new(content.dim, data)?, decay, tie_hash: Arc::from(tie_hash) })
    }

    fn profile(&self, query: &Query) -> Vec<f32> {
        let mut profile = vec![0.0; self.vectors.dim];
        let mut weight = 1.0;
        for item in query.history.iter().rev() {
            for (sum, x) in profile.iter_mut().zip(self.vectors.row(item.0 as usize)) {
                *sum += weight * x;
            }
            weight *= self.decay;
            if weight < 1e-4 {
                break;
            }
        }
        profile
    }
}

impl Retriever for ContentKnn {
    fn name(&self) -> &'static str {
        "content-knn"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let list = |query: &Query| {
            if query.history.is_empty() {
                return Vec::new();
            }
            let profile = self.profile(query);
            let rows = self.vectors.data.chunks_exact(self.vectors.dim);
            let mut scores: Vec<f32> = rows.map(|row| crate::nn::inner_product(&profile, row)).collect();
            for item in query.exclude {
                scores[item.0 as usize] = f32::NEG_INFINITY;
            }
            top_k(&scores, k, &self.tie_hash)
        };
        Ok(queries.par_iter().map(list).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::ItemIdx;

    #[test]
    fn the_last_item_weighs_most() {
        let content = Vectors::new(2, vec![2.0, 0.0, 0.0, 1.0, 1.0, 0.1, 0.1, 1.0]).unwrap();
        let knn = ContentKnn::new(&content, 0.5, &[0; 4]).unwrap();
        let history = [ItemIdx(0), ItemIdx(1)];
        let query = Query { history: &history, exclude: &history };
        let items: Vec<u32> = knn.retrieve(&[query], 2).unwrap()[0].iter().map(|s| s.item.0).collect();
        assert_eq!(items, [3, 2]);
    }
}
