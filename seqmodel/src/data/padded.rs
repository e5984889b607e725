//! Sequences of unequal length as one block, filled up at the end.

use super::Window;
use crate::{Error, Result};
use rqvae::ItemIdx;

/// `batch` sequences of `seq` places.
#[derive(Debug, Clone)]
pub struct Padded {
    /// (batch * seq,), `None` behind the end of a sequence.
    pub items: Vec<Option<ItemIdx>>,
    /// Length of the longest sequence, at least 1.
    pub seq: usize,
    /// Places that are asked about, ascending: (asked,).
    pub positions: Vec<u32>,
    /// What follows each of them; empty where that is what is asked: (asked,) or (0,).
    pub targets: Vec<u32>,
}

impl Padded {
    /// All places of `windows` that have a target.
    ///
    /// # Errors
    /// [`Error::NoData`] when there is none.
    pub fn of_windows(windows: &[&Window]) -> Result<Self> {
        let seq = windows.iter().map(|w| w.items.len() - 1).max().unwrap_or(0).max(1);
        let mut items = vec![None; windows.len() * seq];
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, (slots, window)) in items.chunks_exact_mut(seq).zip(windows).enumerate() {
            for (at, pair) in window.items.windows(2).enumerate() {
                slots[at] = Some(pair[0]);
                if at >= window.first_target {
                    positions.push((row * seq + at) as u32);
                    targets.push(pair[1].0);
                }
            }
        }
        if targets.is_empty() {
            return Err(Error::NoData { what: "training targets" });
        }
        Ok(Self { items, seq, positions, targets })
    }

    /// The newest place of each history, of which the newest `cap` items count.
    pub fn of_histories(histories: &[&[ItemIdx]], cap: usize) -> Self {
        let newest = |history: &&[ItemIdx]| history.len().min(cap);
        let seq = histories.iter().map(newest).max().unwrap_or(0).max(1);
        let mut items = vec![None; histories.len() * seq];
        let mut positions = Vec::with_capacity(histories.len());
        for (row, (slots, history)) in items.chunks_exact_mut(seq).zip(histories).enumerate() {
            let count = newest(history);
            slots.iter_mut().zip(&history[history.len() - count..]).for_each(|(slot, item)| *slot = Some(*item));
            positions.push((row * seq + count.max(1) - 1) as u32);
        }
        Self { items, seq, positions, targets: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_targets_by_hand() {
        let items = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let (a, b) =
            (Window { items: items(&[1, 2, 3]), first_target: 1 }, Window { items: items(&[4, 5]), first_target: 0 });
        let padded = Padded::of_windows(&[&a, &b]).unwrap();
        assert_eq!((padded.seq, padded.positions, padded.targets), (2, vec![1, 2], vec![3, 5]));
        assert_eq!(padded.items, [Some(ItemIdx(1)), Some(ItemIdx(2)), Some(ItemIdx(4)), None]);
        let history = items(&[7, 8, 9]);
        let padded = Padded::of_histories(&[&history, &history[..1]], 2);
        assert_eq!((padded.seq, &padded.positions[..]), (2, &[1, 2][..]));
        assert_eq!(padded.items, [Some(ItemIdx(8)), Some(ItemIdx(9)), Some(ItemIdx(7)), None]);
    }
}
