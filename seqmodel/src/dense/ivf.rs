//! Approximate top-k by inner product: items in lists by nearest centroid, of which the best few are scanned.
//!
//! Paper: Jégou et al. 2011, Product Quantization for Nearest Neighbor Search, sec. IV (the inverted file).
//! Deviation: lists are chosen by the inner product with their centroid, and vectors are kept whole.

use super::DenseIndex;
use crate::Result;
use crate::nn::inner_product;
use crate::retrieve::{Scored, top_k};
use rayon::prelude::*;
use rqvae::{ItemIdx, Kmeans, KmeansConfig, Vectors};

/// Items by cluster.
pub struct IvfIndex {
    index: DenseIndex,
    centroids: Vec<f32>,
    /// Items of each list, ascending.
    lists: Vec<Vec<u32>>,
}

impl IvfIndex {
    /// Over the vectors of `index`, in `lists` lists.
    ///
    /// # Errors
    /// No items, or more lists than can be clustered.
    pub fn new(index: DenseIndex, lists: usize, seed: u64) -> Result<Self> {
        let dim = index.dim();
        let items = index.tie_hash().len();
        let rows = Vectors::new(dim, (0..items as u32).flat_map(|item| index.row(item).to_vec()).collect())?;
        let config = KmeansConfig { k: lists.clamp(1, items.max(1)), iterations: 12, seed, ..KmeansConfig::default() };
        let fitted = Kmeans::fit(&rows, &config)?;
        let codes = fitted.nearest(&rows)?;
        let mut members = vec![Vec::new(); config.k];
        for (item, code) in codes.iter().enumerate() {
            members[usize::from(*code)].push(item as u32);
        }
        Ok(Self { index, centroids: fitted.centroids, lists: members })
    }

    /// Lists.
    pub fn lists(&self) -> usize {
        self.lists.len()
    }

    /// As [`DenseIndex::search`], among the `probes` lists that promise most.
    pub fn search(&self, queries: &[f32], exclude: &[&[ItemIdx]], k: usize, probes: usize) -> Vec<Vec<Scored>> {
        let dim = self.index.dim();
        let list = |(query, exclude): (&[f32], &&[ItemIdx])| {
            let promises: Vec<f32> = self.centroids.chunks_exact(dim).map(|row| inner_product(query, row)).collect();
            let order: Vec<u64> = (0..promises.len() as u64).collect();
            let chosen = top_k(&promises, probes, &order);
            let items: Vec<u32> = chosen.iter().flat_map(|list| &self.lists[list.item.0 as usize]).copied().collect();
            let score = |item: &u32| {
                let out = exclude.contains(&ItemIdx(*item));
                if out { f32::NEG_INFINITY } else { inner_product(query, self.index.row(*item)) }
            };
            let scores: Vec<f32> = items.iter().map(score).collect();
            let ties: Vec<u64> = items.iter().map(|item| self.index.tie_hash()[*item as usize]).collect();
            let best = top_k(&scores, k, &ties);
            best.into_iter().map(|s| Scored { item: ItemIdx(items[s.item.0 as usize]), score: s.score }).collect()
        };
        queries.par_chunks(dim).zip(exclude).map(list).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::mix;

    /// 600 vectors around 30 centres, unit length.
    fn index() -> DenseIndex {
        let draw = |key: u64| (mix(key) % 2000) as f32 / 1000.0 - 1.0;
        let mut rows = Vec::new();
        for item in 0..600u64 {
            let row: Vec<f32> =
                (0..8).map(|i| draw((item % 30) * 8 + i) + 0.15 * draw(10_000 + item * 8 + i)).collect();
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            rows.extend(row.iter().map(|x| x / length));
        }
        DenseIndex::new(8, rows, &(0..600).map(mix).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn all_lists_are_exact_and_few_find_nearly_all() {
        let exact = index();
        let ivf = IvfIndex::new(index(), 30, 1).unwrap();
        let queries: Vec<f32> = (0..50u32).flat_map(|q| exact.row(q * 12 + q % 5).to_vec()).collect();
        let exclude: Vec<Vec<ItemIdx>> = (0..50).map(|q| vec![ItemIdx(q * 12 + q % 5)]).collect();
        let exclude: Vec<&[ItemIdx]> = exclude.iter().map(Vec::as_slice).collect();
        let items = |lists: &[Vec<Scored>]| -> Vec<Vec<u32>> {
            lists.iter().map(|list| list.iter().map(|s| s.item.0).collect()).collect()
        };
        let want = items(&exact.search(&queries, &exclude, 10).unwrap());
        assert_eq!(items(&ivf.search(&queries, &exclude, 10, ivf.lists())), want);
        let few = items(&ivf.search(&queries, &exclude, 10, 3));
        let found =
            few.iter().zip(&want).map(|(few, want)| few.iter().filter(|i| want.contains(i)).count()).sum::<usize>();
        assert!(found >= 450, "{found} of 500 by 3 of 30 lists");
    }
}
