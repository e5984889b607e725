//! Neighbours by content, item by item: what is close to one thing of a history counts, not what is close to their mean.
//!
//! Score of an item: the sum over the history of decay^age max(0, cosine)^power, on vectors from which the mean of the
//! known items is taken. The power makes one near thing count more than several that are half near. No interactions are
//! needed, so that an item can be scored the moment it has a text.

use crate::Result;
use crate::nn::inner_product;
use crate::retrieve::{Query, Retriever, Scored, top_k};
use rayon::prelude::*;
use rqvae::{ItemIdx, Vectors};
use std::sync::Arc;

/// Ranks items by a kernel on the cosine of their content to each item of a history.
pub struct ContentKernel {
    /// Centred unit rows.
    vectors: Vectors,
    tie_hash: Arc<[u64]>,
}

impl ContentKernel {
    /// Weight of an item of a history relative to the one after it.
    const DECAY: f32 = 0.8;
    /// Newest items of a history that count.
    const NEWEST: usize = 20;

    /// Over the content of all items, centred on the mean of those that are `known`.
    ///
    /// # Errors
    /// The vectors are not finite.
    pub fn new(content: &Vectors, known: &dyn Fn(ItemIdx) -> bool, tie_hash: &[u64]) -> Result<Self> {
        let dim = content.dim;
        let (mut mean, mut count) = (vec![0f64; dim], 0f64);
        for row in (0..content.rows()).filter(|row| known(ItemIdx(*row as u32))) {
            mean.iter_mut().zip(content.row(row)).for_each(|(mean, x)| *mean += f64::from(*x));
            count += 1.0;
        }
        let mut data = content.data.clone();
        data.par_chunks_mut(dim).for_each(|row| {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= (mean / f64::max(count, 1.0)) as f32);
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x /= norm);
            }
        });
        Ok(Self { vectors: Vectors::new(dim, data)?, tie_hash: Arc::from(tie_hash) })
    }

    /// Cosine of two items.
    pub fn cosine(&self, a: ItemIdx, b: ItemIdx) -> f32 {
        inner_product(self.vectors.row(a.0 as usize), self.vectors.row(b.0 as usize))
    }

    /// Scores of `items` after `history`, in their order.
    pub fn scores(&self, history: &[ItemIdx], items: impl Iterator<Item = ItemIdx>) -> Vec<f32> {
        let newest = &history[history.len().saturating_sub(Self::NEWEST)..];
        let score = |item: ItemIdx| {
            // From the oldest on: each step fades what came before it.
            newest.iter().fold(0.0, |sum, seen| {
                let near = self.cosine(*seen, item).max(0.0);
                Self::DECAY * sum + near * near * near
            })
        };
        items.map(score).collect()
    }
}

impl Retriever for ContentKernel {
    fn name(&self) -> &'static str {
        "content-kernel"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let list = |query: &Query| {
            if query.history.is_empty() {
                return Vec::new();
            }
            let mut asked = vec![true; self.vectors.rows()];
            query.exclude.iter().for_each(|item| asked[item.0 as usize] = false);
            let items: Vec<ItemIdx> = (0..asked.len() as u32).map(ItemIdx).filter(|i| asked[i.0 as usize]).collect();
            let scores = self.scores(query.history, items.iter().copied());
            let ties: Vec<u64> = items.iter().map(|item| self.tie_hash[item.0 as usize]).collect();
            let best = top_k(&scores, k, &ties).into_iter();
            best.map(|s| Scored { item: items[s.item.0 as usize], score: s.score }).collect()
        };
        Ok(queries.par_iter().map(list).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_near_thing_beats_the_mean_of_two() {
        // 0 and 1 are the history; 2 is near to 0, 3 lies between both; 4 and 5 balance the mean.
        let rows = vec![1.0, 0.0, 0.0, 1.0, 0.99, 0.1, 0.7, 0.7, -1.0, 0.0, 0.0, -1.0];
        let content = Vectors::new(2, rows).unwrap();
        let known = |item: ItemIdx| item.0 != 2 && item.0 != 3;
        let kernel = ContentKernel::new(&content, &known, &[0; 6]).unwrap();
        let history = [ItemIdx(1), ItemIdx(0)];
        let list = &kernel.retrieve(&[Query { history: &history, user: None, exclude: &history }], 2).unwrap()[0];
        assert_eq!((list[0].item, list[1].item), (ItemIdx(2), ItemIdx(3)));
        let by_hand = 0.8 * (0.5f32).sqrt().powi(3) + (0.5f32).sqrt().powi(3);
        assert!((list[1].score - by_hand).abs() < 1e-5, "{} {by_hand}", list[1].score);
        // The newest counts most.
        let turned = kernel.scores(&[ItemIdx(0), ItemIdx(1)], [ItemIdx(2)].into_iter())[0];
        assert!(turned < list[0].score);
    }
}
