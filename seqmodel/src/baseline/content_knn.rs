//! Neighbours by content: cosine to a recency-weighted mean of the history's vectors. Needs no interactions at all.

use crate::Result;
use crate::dense::DenseIndex;
use crate::retrieve::{Query, Retriever, Scored};
use rqvae::Vectors;

/// Ranks items by the cosine of their content.
pub struct ContentKnn {
    /// Unit rows.
    index: DenseIndex,
    /// Weight of an item relative to the one after it; 0 looks at the last item only.
    decay: f32,
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
        Ok(Self { index: DenseIndex::new(content.dim, data, tie_hash)?, decay })
    }

    fn profile(&self, query: &Query) -> Vec<f32> {
        let mut profile = vec![0.0; self.index.dim()];
        let mut weight = 1.0;
        for item in query.history.iter().rev() {
            for (sum, x) in profile.iter_mut().zip(self.index.row(item.0)) {
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
        let profiles: Vec<f32> = queries.iter().flat_map(|query| self.profile(query)).collect();
        let exclude: Vec<_> = queries.iter().map(|query| query.exclude).collect();
        let mut lists = self.index.search(&profiles, &exclude, k)?;
        lists.iter_mut().zip(queries).filter(|(_, query)| query.history.is_empty()).for_each(|(list, _)| list.clear());
        Ok(lists)
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
        let query = Query { history: &history, user: None, exclude: &history };
        let items: Vec<u32> = knn.retrieve(&[query], 2).unwrap()[0].iter().map(|s| s.item.0).collect();
        assert_eq!(items, [3, 2]);
    }
}
