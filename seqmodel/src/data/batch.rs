//! Training windows of histories, and seeded batches of windows of similar length.

use super::LeaveOneOut;
use rand::seq::SliceRandom;
use rqvae::{ItemIdx, SeededRng};

/// A stretch of one user's training history. Position `t` sees `items[..=t]` and predicts `items[t + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Between 2 and `cap + 1` items, oldest first.
    pub items: Vec<ItemIdx>,
    /// Positions before this one are context only: an earlier window has predicted them already.
    pub first_target: usize,
}

impl Window {
    /// Number of positions that carry a loss.
    pub fn targets(&self) -> usize {
        self.items.len() - 1 - self.first_target
    }
}

/// Cuts every user's training history into windows of at most `cap` positions. Windows of a long history overlap by
/// half, so that every target is predicted once, with at least `cap / 2` items of context where they exist.
pub fn windows(split: &LeaveOneOut, cap: usize) -> Vec<Window> {
    let mut all = Vec::new();
    for user in 0..split.users() {
        let items = split.train(user);
        let mut done = 0;
        while items.len() >= 2 && done < items.len() - 1 {
            let start = if done == 0 { 0 } else { done - cap / 2 };
            let end = (start + cap + 1).min(items.len());
            all.push(Window { items: items[start..end].to_vec(), first_target: done - start });
            done = end - 1;
        }
    }
    all
}

/// The `rows` of `all`.
pub(crate) fn pick<'a, T>(all: &'a [T], rows: &[u32]) -> Vec<&'a T> {
    rows.iter().map(|row| &all[*row as usize]).collect()
}

/// The batches of one epoch: a seeded shuffle, with windows of similar length brought together to save padding.
#[derive(Debug)]
pub struct Batches {
    order: Vec<Vec<u32>>,
}

impl Batches {
    /// Shuffles `lengths.len()` windows by (`rng`, `epoch`) into batches of `batch_size`.
    pub fn new(lengths: &[usize], batch_size: usize, rng: &SeededRng, epoch: u64) -> Self {
        let mut generator = rng.stream_at("shuffle", epoch);
        let mut rows: Vec<u32> = (0..lengths.len() as u32).collect();
        rows.shuffle(&mut generator);
        // Sorting inside pools of 16 batches keeps the composition of a batch random but for its length.
        let mut order = Vec::new();
        for pool in rows.chunks_mut(batch_size.max(1) * 16) {
            pool.sort_by_key(|row| lengths[*row as usize]);
            order.extend(pool.chunks(batch_size.max(1)).map(<[u32]>::to_vec));
        }
        order.shuffle(&mut generator);
        Self { order }
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Rows of batch `index`.
    pub fn rows(&self, index: usize) -> &[u32] {
        &self.order[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Histories;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_target_is_predicted_once(len in 0usize..60, cap in 2usize..12) {
            let items: Vec<_> = (0..len as u32).map(ItemIdx).collect();
            let histories = Histories::new(vec![items.clone()]);
            let split = LeaveOneOut::new(&histories);
            let train = split.train(0);
            let mut predicted: Vec<ItemIdx> = Vec::new();
            for window in windows(&split, cap) {
                prop_assert!(window.items.len() <= cap + 1);
                predicted.extend(&window.items[window.first_target + 1..]);
            }
            prop_assert_eq!(&predicted[..], train.get(1..).unwrap_or_default());
        }

        #[test]
        fn every_row_is_in_one_batch(lengths in prop::collection::vec(1usize..30, 0..200), size in 1usize..40) {
            let batches = Batches::new(&lengths, size, &SeededRng::new(3), 1);
            let mut rows: Vec<u32> = (0..batches.len()).flat_map(|b| batches.rows(b).to_vec()).collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len() as u32).collect::<Vec<_>>());
        }
    }
}
