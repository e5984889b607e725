//! What follows what: neighbours by ordered co-occurrence, and by plain co-occurrence beside it.
//!
//! Shapes: (items, neighbours) pairs of item and weight; a history scores every item.
//! Papers: Rendle et al. 2010, Factorizing Personalized Markov Chains, sec. 4 (transitions between items); Ludewig and
//! Jannach 2018, Evaluation of Session-based Recommendation Algorithms, sec. 2 (sequential rules with fading weights).
//! Deviations: weights are shrunk cosines, to which the cosine of [`ItemKnn`](super::ItemKnn) is added, and older items of
//! a history fade.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored, top_k};
use rayon::prelude::*;
use rqvae::ItemIdx;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Followers of every item.
pub struct Transitions {
    followers: Vec<Vec<Scored>>,
    tie_hash: Arc<[u64]>,
}

impl Transitions {
    /// Items after an item that count as following it.
    const WINDOW: usize = 5;
    /// Weight of a follower relative to the one before it.
    const FADE: f32 = 0.7;
    /// Added to the root of the product of both items' counts, for followers.
    const SHRINK: f32 = 5.0;
    /// The same for what was met by the same user in whatever order.
    const SHRINK_PLAIN: f32 = 10.0;
    /// Weight of an item of a history relative to the one after it.
    const DECAY: f32 = 0.8;
    /// Newest items of a history that count.
    const NEWEST: usize = 20;

    /// Fits on the users' `histories`, with the `most` strongest followers of each item.
    pub fn fit(histories: &[&[ItemIdx]], tie_hash: &[u64], most: usize) -> Self {
        let items = tie_hash.len();
        let mut counts = vec![0f32; items];
        // Followers with fading weights, and users of both.
        let mut follows: Vec<BTreeMap<u32, (f32, f32)>> = vec![BTreeMap::new(); items];
        for history in histories {
            for (at, item) in history.iter().enumerate() {
                counts[item.0 as usize] += 1.0;
                let mut weight = 1.0;
                for next in history[at + 1..].iter().take(Self::WINDOW) {
                    if next != item {
                        follows[item.0 as usize].entry(next.0).or_default().0 += weight;
                    }
                    weight *= Self::FADE;
                }
            }
            let mut met = history.to_vec();
            met.sort_unstable();
            met.dedup();
            for a in &met {
                for b in met.iter().filter(|b| *b != a) {
                    follows[a.0 as usize].entry(b.0).or_default().1 += 1.0;
                }
            }
        }
        let row = |(item, follows): (usize, BTreeMap<u32, (f32, f32)>)| {
            let cosine = |(next, (after, beside)): (u32, (f32, f32))| {
                let size = (counts[item] * counts[next as usize]).sqrt();
                let score = after / (size + Self::SHRINK) + beside / (size + Self::SHRINK_PLAIN);
                Scored { item: ItemIdx(next), score }
            };
            let mut row: Vec<Scored> = follows.into_iter().map(cosine).collect();
            let hash = |scored: &Scored| tie_hash[scored.item.0 as usize];
            row.sort_by(|a, b| b.score.total_cmp(&a.score).then(hash(a).cmp(&hash(b))));
            row.truncate(most);
            row
        };
        let followers = follows.into_par_iter().enumerate().map(row).collect();
        Self { followers, tie_hash: Arc::from(tie_hash) }
    }

    /// From rows as [`Transitions::rows`] gives them; `tie_hash` may have more items than there are rows.
    pub fn from_rows(rows: Vec<Vec<Scored>>, tie_hash: &[u64]) -> Self {
        let mut followers = rows;
        followers.resize(tie_hash.len(), Vec::new());
        Self { followers, tie_hash: Arc::from(tie_hash) }
    }

    /// Followers of each item, strongest first.
    pub fn rows(&self) -> &[Vec<Scored>] {
        &self.followers
    }

    /// Score of every item after `history`: (items,).
    pub fn scores(&self, history: &[ItemIdx]) -> Vec<f32> {
        let mut scores = vec![0.0; self.followers.len()];
        let mut weight = 1.0;
        for item in history.iter().rev().take(Self::NEWEST) {
            for next in &self.followers[item.0 as usize] {
                scores[next.item.0 as usize] += weight * next.score;
            }
            weight *= Self::DECAY;
        }
        scores
    }
}

impl Retriever for Transitions {
    fn name(&self) -> &'static str {
        "transitions"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let list = |query: &Query| {
            let mut scores = self.scores(query.history);
            query.exclude.iter().for_each(|item| scores[item.0 as usize] = f32::NEG_INFINITY);
            top_k(&scores, k, &self.tie_hash)
        };
        Ok(queries.par_iter().map(list).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_counts_and_near_counts_more() {
        let items = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let histories = [items(&[0, 1, 2]), items(&[0, 1, 3]), items(&[4, 0])];
        let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let fitted = Transitions::fit(&histories, &[0; 5], 10);
        let scores = fitted.scores(&items(&[0]));
        // 1 follows twice at once, by two users of both; 4 never follows 0, but one user has met both.
        assert!((scores[1] - 2.0 / (6f32.sqrt() + 5.0) - 2.0 / (6f32.sqrt() + 10.0)).abs() < 1e-6);
        assert!((scores[2] - 0.7 / (3f32.sqrt() + 5.0) - 1.0 / (3f32.sqrt() + 10.0)).abs() < 1e-6);
        assert!((scores[4] - 1.0 / (3f32.sqrt() + 10.0)).abs() < 1e-6);
        assert_eq!((scores[0], scores[2]), (0.0, scores[3]));
        let again = Transitions::from_rows(fitted.rows().to_vec(), &[0; 6]);
        assert_eq!(again.scores(&items(&[0]))[..5], scores[..]);
        assert_eq!(Transitions::fit(&histories, &[0; 5], 1).rows()[0].len(), 1);
    }
}
