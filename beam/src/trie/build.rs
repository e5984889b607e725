//! Sort the IDs, then one pass per level.

use super::{Level, Trie};
use crate::Result;
use rqvae::{Code, ItemIdx, SidSpec, SidTable};

impl Trie {
    /// The trie of all IDs of `table`.
    pub fn build(table: &SidTable) -> Result<Self> {
        let levels = table.spec().len();
        let mut order: Vec<u32> = (0..table.items() as u32).collect();
        order.sort_by_key(|item| table.codes(ItemIdx(*item)));
        let mut codes: Vec<Vec<Code>> = vec![Vec::new(); levels];
        let mut starts: Vec<Vec<u32>> = vec![Vec::new(); levels];
        let mut leaf_starts = Vec::new();
        let mut last: Option<&[Code]> = None;
        for (at, item) in order.iter().enumerate() {
            let id = table.codes(ItemIdx(*item));
            let shared = last.map_or(0, |last| last.iter().zip(id).take_while(|(a, b)| a == b).count());
            for level in shared..levels {
                // The first child of its parent opens the parent's range.
                if level > shared || last.is_none() {
                    starts[level].push(codes[level].len() as u32);
                }
                codes[level].push(id[level]);
            }
            if shared < levels {
                leaf_starts.push(at as u32);
            }
            last = Some(id);
        }
        if order.is_empty() {
            starts[0].push(0);
        }
        for level in 0..levels {
            starts[level].push(codes[level].len() as u32);
        }
        leaf_starts.push(order.len() as u32);
        let leaf_items = order.into_iter().map(ItemIdx).collect();
        Ok(Self::assemble(table.spec().clone(), codes, starts, leaf_starts, leaf_items))
    }

    /// Derives parents and counts from arrays that are known to be a valid trie.
    pub(super) fn assemble(
        spec: SidSpec,
        codes: Vec<Vec<Code>>,
        starts: Vec<Vec<u32>>,
        leaf_starts: Vec<u32>,
        leaf_items: Vec<ItemIdx>,
    ) -> Self {
        let mut levels: Vec<Level> = codes
            .into_iter()
            .zip(starts)
            .map(|(codes, starts)| {
                let mut parents = vec![0; codes.len()];
                for (parent, range) in starts.windows(2).enumerate() {
                    parents[range[0] as usize..range[1] as usize].fill(parent as u32);
                }
                Level { items: vec![0; codes.len()], codes, starts, parents }
            })
            .collect();
        let mut counts: Vec<u32> = leaf_starts.windows(2).map(|w| w[1] - w[0]).collect();
        for level in levels.iter_mut().rev() {
            level.items.copy_from_slice(&counts);
            counts = vec![0; level.starts.len() - 1];
            for (parent, count) in level.parents.iter().zip(&level.items) {
                counts[*parent as usize] += count;
            }
        }
        let mut leaf_of = vec![0; leaf_items.len()];
        for (leaf, range) in leaf_starts.windows(2).enumerate() {
            for item in &leaf_items[range[0] as usize..range[1] as usize] {
                leaf_of[item.0 as usize] = leaf as u32;
            }
        }
        Self { spec, levels, leaf_starts, leaf_items, leaf_of }
    }
}
