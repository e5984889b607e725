//! History in, ranked items out: the one question every system answers, so that they share one evaluation.

use crate::Result;
use crate::data::{History, UserHash};
use rqvae::ItemIdx;

/// An item and how much it is recommended; only the order within one list is comparable between models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The item.
    pub item: ItemIdx,
    /// Natural-log probability where the model has one.
    pub score: f32,
}

/// One user to recommend to.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Oldest first, uncapped.
    pub history: &'a [ItemIdx],
    /// Whose history it is, where that is known; models without user tokens do not look.
    pub user: Option<UserHash>,
    /// Never returned.
    pub exclude: &'a [ItemIdx],
}

impl<'a> Query<'a> {
    /// What a model reads.
    pub fn read(&self) -> History<'a> {
        History { items: self.history, user: self.user }
    }
}

/// Anything that ranks items after a history.
pub trait Retriever: Sync {
    /// Name for tables.
    fn name(&self) -> &str;

    /// At most `k` items per query, best first, no item twice.
    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>>;
}

/// The `k` best finite scores, best first; equal scores go by ascending `tie_hash`, never by row.
pub fn top_k(scores: &[f32], k: usize, tie_hash: &[u64]) -> Vec<Scored> {
    let mut rows: Vec<u32> = (0..scores.len() as u32).filter(|row| scores[*row as usize].is_finite()).collect();
    let order = |a: &u32, b: &u32| {
        let (a, b) = (*a as usize, *b as usize);
        scores[b].total_cmp(&scores[a]).then(tie_hash[a].cmp(&tie_hash[b]))
    };
    if rows.len() > k {
        rows.select_nth_unstable_by(k, order);
        rows.truncate(k);
    }
    rows.sort_unstable_by(order);
    rows.into_iter().map(|row| Scored { item: ItemIdx(row), score: scores[row as usize] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_by_hash_and_impossible_items_are_left_out() {
        let scores = [1.0, 2.0, 1.0, f32::NEG_INFINITY, f32::NAN, 1.0];
        let items: Vec<u32> = top_k(&scores, 3, &[9, 0, 1, 0, 0, 5]).iter().map(|s| s.item.0).collect();
        assert_eq!(items, [1, 2, 5]);
        assert_eq!(top_k(&scores, 10, &[0; 6]).len(), 4);
    }
}
