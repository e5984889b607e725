//! The most interacted items, the same for everybody.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored, top_k};
use rqvae::ItemIdx;

/// All items by the number of interactions.
pub struct Popular {
    ranked: Vec<Scored>,
}

impl Popular {
    /// Counts `histories`; ties go by `tie_hash`, one per item.
    pub fn fit<'a>(histories: impl IntoIterator<Item = &'a [ItemIdx]>, tie_hash: &[u64]) -> Self {
        let mut counts = vec![0f32; tie_hash.len()];
        for item in histories.into_iter().flatten() {
            counts[item.0 as usize] += 1.0;
        }
        Self { ranked: top_k(&counts, counts.len(), tie_hash) }
    }
}

impl Retriever for Popular {
    fn name(&self) -> &'static str {
        "popular"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let list = |query: &Query| {
            self.ranked.iter().filter(|scored| !query.exclude.contains(&scored.item)).take(k).copied().collect()
        };
        Ok(queries.iter().map(list).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_leaves_out() {
        let history = [ItemIdx(2), ItemIdx(1), ItemIdx(2)];
        let popular = Popular::fit([&history[..]], &[3, 2, 1]);
        let query = Query { history: &[], user: None, exclude: &[ItemIdx(1)] };
        let items: Vec<u32> = popular.retrieve(&[query], 2).unwrap()[0].iter().map(|s| s.item.0).collect();
        assert_eq!(items, [2, 0]);
    }
}
