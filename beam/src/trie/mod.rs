//! Level arrays: the children of a node, the items of a leaf.
//!
//! A node of level `l` (the root is level 0) is a prefix of `l` codes, numbered in lexicographic order. Its children
//! are a range of level `l + 1`; a child's number is its position there, so no next-state array is stored.

mod build;
mod file;
mod live;

pub use live::LiveMask;

use rqvae::{Code, ItemIdx, SidSpec};
use std::ops::Range;

/// Number of a node among those of its level.
pub type NodeId = u32;

/// One level: for each node its last code and its parent, and for each parent where its children start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    codes: Vec<Code>,
    /// (parents + 1).
    starts: Vec<u32>,
    parents: Vec<NodeId>,
    /// Items below each node.
    items: Vec<u32>,
}

/// Every valid ID of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    spec: SidSpec,
    /// `levels[l]` holds the nodes with `l + 1` codes.
    levels: Vec<Level>,
    /// (leaves + 1) into `leaf_items`.
    leaf_starts: Vec<u32>,
    leaf_items: Vec<ItemIdx>,
    /// Leaf of each item.
    leaf_of: Vec<NodeId>,
}

impl Trie {
    /// The empty prefix.
    pub const ROOT: NodeId = 0;

    /// Codes per ID.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// Shape of the IDs.
    pub fn spec(&self) -> &SidSpec {
        &self.spec
    }

    /// Nodes with `level` codes; level 0 is the root alone.
    pub fn nodes(&self, level: usize) -> usize {
        if level == 0 { 1 } else { self.levels[level - 1].codes.len() }
    }

    /// Number of items.
    pub fn items_total(&self) -> usize {
        self.leaf_items.len()
    }

    /// Children of `node`, which has `level` codes: their codes, ascending, and their numbers at `level + 1`.
    pub fn children(&self, level: usize, node: NodeId) -> (&[Code], Range<NodeId>) {
        let below = &self.levels[level];
        let range = below.starts[node as usize]..below.starts[node as usize + 1];
        (&below.codes[range.start as usize..range.end as usize], range)
    }

    /// Items of a leaf; several when IDs are shared.
    pub fn items(&self, leaf: NodeId) -> &[ItemIdx] {
        let (start, end) = (self.leaf_starts[leaf as usize], self.leaf_starts[leaf as usize + 1]);
        &self.leaf_items[start as usize..end as usize]
    }

    /// Items below `node`, which has `level` codes, in the order of their IDs.
    pub fn items_below(&self, level: usize, node: NodeId) -> &[ItemIdx] {
        let (mut start, mut end) = (node, node + 1);
        for below in &self.levels[level..] {
            (start, end) = (below.starts[start as usize], below.starts[end as usize]);
        }
        let (start, end) = (self.leaf_starts[start as usize], self.leaf_starts[end as usize]);
        &self.leaf_items[start as usize..end as usize]
    }

    /// The node of a prefix, if any item has it.
    pub fn find(&self, prefix: &[Code]) -> Option<NodeId> {
        let mut node = Self::ROOT;
        for (level, code) in prefix.iter().enumerate() {
            if level >= self.levels() {
                return None;
            }
            let (codes, nodes) = self.children(level, node);
            node = nodes.start + codes.binary_search(code).ok()? as u32;
        }
        Some(node)
    }

    /// A mask of the items that `allowed` chooses; one pass over the catalogue, to be made once and shared.
    pub fn live(&self, allowed: impl Fn(ItemIdx) -> bool) -> LiveMask {
        LiveMask::new(self, allowed)
    }

    /// Bytes of all arrays.
    pub fn size_bytes(&self) -> usize {
        let level = |l: &Level| 2 * l.codes.len() + 4 * (l.starts.len() + l.parents.len() + l.items.len());
        self.levels.iter().map(level).sum::<usize>()
            + 4 * (self.leaf_starts.len() + self.leaf_items.len() + self.leaf_of.len())
    }
}
