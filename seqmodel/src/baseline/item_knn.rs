//! Item-to-item neighbours by co-occurrence.
//!
//! Paper: Sarwar et al. 2001, Item-based collaborative filtering; cosine with shrinkage: users of both over
//! `sqrt(users of a * users of b) + shrink`, the `k` nearest of each item, summed over the history. How often a user
//! met an item does not count.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored, top_k};
use rayon::prelude::*;
use rqvae::ItemIdx;
use std::sync::Arc;

/// Neighbours of every item.
pub struct ItemKnn {
    neighbours: Vec<Vec<Scored>>,
    tie_hash: Arc<[u64]>,
}

impl ItemKnn {
    /// Fits on the users' `histories` with 200 neighbours and a shrinkage of 10.
    pub fn fit(histories: &[&[ItemIdx]], tie_hash: &[u64]) -> Self {
        Self::fit_with(histories, tie_hash, 200, 10.0)
    }

    /// As [`ItemKnn::fit`] with other numbers.
    pub fn fit_with(histories: &[&[ItemIdx]], tie_hash: &[u64], k: usize, shrink: f32) -> Self {
        let items = tie_hash.len();
        let histories: Vec<Vec<ItemIdx>> = histories.iter().map(|history| distinct(history, tie_hash)).collect();
        let mut users = vec![Vec::new(); items];
        for (user, history) in histories.iter().enumerate() {
            for item in history {
                users[item.0 as usize].push(user as u32);
            }
        }
        let sizes: Vec<f32> = users.iter().map(|u: &Vec<u32>| u.len() as f32).collect();
        let neighbours = (0..items)
            .into_par_iter()
            .map_init(
                || (vec![f32::NEG_INFINITY; items], Vec::new()),
                |(scores, touched), item| {
                    for user in &users[item] {
                        for other in &histories[*user as usize] {
                            let score = &mut scores[other.0 as usize];
                            if score.is_finite() {
                                *score += 1.0;
                            } else {
                                *score = 1.0;
                                touched.push(*other);
                            }
                        }
                    }
                    for other in touched.iter() {
                        let at = other.0 as usize;
                        scores[at] /= (sizes[item] * sizes[at]).sqrt() + shrink;
                    }
                    scores[item] = f32::NEG_INFINITY;
                    let order = |a: &ItemIdx, b: &ItemIdx| {
                        let (a, b) = (a.0 as usize, b.0 as usize);
                        scores[b].total_cmp(&scores[a]).then(tie_hash[a].cmp(&tie_hash[b]))
                    };
                    touched.sort_unstable_by(order);
                    let near = touched.iter().filter(|o| o.0 as usize != item).take(k);
                    let near = near.map(|o| Scored { item: *o, score: scores[o.0 as usize] }).collect();
                    for other in touched.drain(..) {
                        scores[other.0 as usize] = f32::NEG_INFINITY;
                    }
                    near
                },
            )
            .collect();
        Self { neighbours, tie_hash: Arc::from(tie_hash) }
    }
}

/// Each item once, by hash: sums over a history are then the same in whatever order it was lived or items are numbered.
fn distinct(history: &[ItemIdx], tie_hash: &[u64]) -> Vec<ItemIdx> {
    let mut items = history.to_vec();
    items.sort_unstable_by_key(|item| (tie_hash[item.0 as usize], item.0));
    items.dedup();
    items
}

impl Retriever for ItemKnn {
    fn name(&self) -> &'static str {
        "itemknn"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let list = |query: &Query| {
            let mut scores = vec![0.0; self.neighbours.len()];
            let history = distinct(query.history, &self.tie_hash);
            for near in history.iter().flat_map(|item| &self.neighbours[item.0 as usize]) {
                scores[near.item.0 as usize] += near.score;
            }
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

    #[test]
    fn neighbours_by_hand() {
        let items = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let histories = [items(&[0, 1]), items(&[0, 1, 2]), items(&[2, 3])];
        let views: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let knn = ItemKnn::fit_with(&views, &[0, 1, 2, 3], 2, 0.0);
        let near = &knn.neighbours[0];
        assert_eq!((near[0].item, near[0].score), (ItemIdx(1), 1.0));
        assert_eq!((near[1].item, near[1].score), (ItemIdx(2), 0.5));
        let query = Query { history: &histories[0], user: None, exclude: &histories[0] };
        let list = knn.retrieve(&[query], 10).unwrap();
        assert_eq!(list[0][0].item, ItemIdx(2));
        assert!(list[0].iter().all(|s| !histories[0].contains(&s.item)));
    }

    #[test]
    fn meeting_an_item_twice_changes_nothing() {
        let items = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let (once, twice) = ([items(&[0, 1, 2]), items(&[1, 3])], [items(&[1, 0, 1, 2, 0]), items(&[1, 3, 3])]);
        let lists = [&once, &twice].map(|histories| {
            let views: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
            let knn = ItemKnn::fit_with(&views, &[0, 1, 2, 3], 2, 1.0);
            knn.retrieve(&[Query { history: views[1], user: None, exclude: &[] }], 4).unwrap()
        });
        assert_eq!(lists[0], lists[1]);
    }
}
