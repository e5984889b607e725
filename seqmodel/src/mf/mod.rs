//! Matrix factorisation: a vector for every item, and one for a history that is found from its items.
//!
//! Shapes: history -> (factors,), scores = item factors (items, factors) times it.
//! A user is nothing but a history here: vectors of users are folded in against fixed items by the very loss of the fit,
//! so that somebody who came after the fit is answered like anybody else.

mod als;
mod bpr;
mod cholesky;

pub use als::{Als, AlsConfig};
pub use bpr::{Bpr, BprConfig};

use crate::Result;
use crate::dense::DenseIndex;
use crate::retrieve::{Query, Scored};
use rayon::prelude::*;
use rqvae::ItemIdx;

/// Each item of a history once, in the order of the hash: how often and when it was met does not count.
fn distinct(history: &[ItemIdx], tie_hash: &[u64]) -> Vec<u32> {
    let mut items: Vec<u32> = history.iter().map(|item| item.0).collect();
    items.sort_unstable_by_key(|item| (tie_hash[*item as usize], *item));
    items.dedup();
    items
}

/// Best `k` items of each query by inner product with the vector that `fold_in` finds for its history.
fn ranked(
    index: &DenseIndex,
    queries: &[Query],
    k: usize,
    fold_in: impl Fn(&[ItemIdx]) -> Vec<f32> + Sync,
) -> Result<Vec<Vec<Scored>>> {
    let folded: Vec<Vec<f32>> = queries.par_iter().map(|query| fold_in(query.history)).collect();
    let exclude: Vec<&[ItemIdx]> = queries.iter().map(|query| query.exclude).collect();
    let mut lists = index.search(&folded.concat(), &exclude, k)?;
    for (list, query) in lists.iter_mut().zip(queries) {
        if query.history.is_empty() {
            list.clear();
        }
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retriever;

    /// Two groups of items that are never mixed, ten users each.
    fn groups() -> Vec<Vec<ItemIdx>> {
        (0..20u32).map(|u| (0..5).map(|i| ItemIdx((u % 2) * 8 + (u / 2 + i * (1 + u % 3)) % 8)).collect()).collect()
    }

    /// Whatever the loss: after items of one group, the items of that group come first.
    #[test]
    fn both_losses_tell_the_groups_apart() {
        let histories = groups();
        let histories: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let ties: Vec<u64> = (0..16).map(rqvae::mix).collect();
        let als = Als::fit(&histories, &ties, &AlsConfig { factors: 4, ..AlsConfig::default() }).unwrap();
        let bpr = Bpr::fit(&histories, &ties, &BprConfig { factors: 4, epochs: 60, ..BprConfig::default() }).unwrap();
        let seen = [ItemIdx(8), ItemIdx(9)];
        for model in [&als as &dyn Retriever, &bpr] {
            let query = Query { history: &seen, user: None, exclude: &seen };
            let list = &model.retrieve(&[query, Query { history: &[], user: None, exclude: &[] }], 6).unwrap();
            assert_eq!(list[0].len(), 6, "{}", model.name());
            assert!(
                list[0].iter().all(|s| s.item.0 >= 8 && !seen.contains(&s.item)),
                "{}: {:?}",
                model.name(),
                list[0]
            );
            assert!(list[1].is_empty());
        }
    }
}
