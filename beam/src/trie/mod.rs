//! The set of valid IDs: level arrays with the children of a node and the items of a leaf.
//!
//! Levels count codes: the root is node 0 of level 0, a node of level l stands for a prefix of l codes, and the nodes of
//! level [`Trie::levels`] are leaves. Nodes of a level are numbered in lexicographic order of their prefixes, so the
//! children of a node are neighbours in the next level and their numbers need not be stored.
//!
//! Shapes, with `n_l` nodes at level l: `codes[l]` (`n_{l+1}`,), `starts[l]` (`n_l` + 1,), leaf items (items,).

mod build;
mod file;
mod live;

pub use live::LiveMask;

#[cfg(test)]
pub(crate) use build::tests as build_tests;

use rqvae::{Code, ItemIdx, SidSpec};
use std::ops::Range;

/// Number of a node within its level.
pub type NodeId = u32;

/// All valid IDs of a catalogue and the items behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    spec: SidSpec,
    /// `codes[l]`: last code of every node of level l + 1.
    codes: Vec<Vec<Code>>,
    /// `starts[l]`: where the children of each node of level l begin; those of leaves are places in `leaf_items`.
    starts: Vec<Vec<u32>>,
    leaf_items: Vec<ItemIdx>,
    /// Leaf of every item.
    leaves: Vec<NodeId>,
}

impl Trie {
    /// The empty prefix, the one node of level 0.
    pub const ROOT: NodeId = 0;

    /// Shape of the IDs.
    pub fn spec(&self) -> &SidSpec {
        &self.spec
    }

    /// Codes per ID, suffix included.
    pub fn levels(&self) -> usize {
        self.codes.len()
    }

    /// Number of items.
    pub fn items_total(&self) -> usize {
        self.leaf_items.len()
    }

    /// Number of nodes at `level`: 1 for the root's, the number of distinct IDs for the leaves'.
    ///
    /// # Panics
    /// When `level` is beyond the leaves.
    pub fn nodes(&self, level: usize) -> usize {
        self.starts[level].len() - 1
    }

    /// Codes, ascending, and numbers of the children of `node` of `level`; they are nodes of `level + 1`.
    ///
    /// # Panics
    /// When `level` has no such node or is that of the leaves.
    #[inline]
    pub fn children(&self, level: usize, node: NodeId) -> (&[Code], Range<NodeId>) {
        let range = self.below(level, node);
        (&self.codes[level][range.start as usize..range.end as usize], range)
    }

    /// Items of a leaf: several where items share an ID.
    ///
    /// # Panics
    /// When there is no such leaf.
    pub fn items(&self, leaf: NodeId) -> &[ItemIdx] {
        self.items_below(self.levels(), leaf)
    }

    /// All items whose ID begins with the prefix of `node` of `level`, in order of their IDs.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn items_below(&self, level: usize, node: NodeId) -> &[ItemIdx] {
        let mut range = node..node + 1;
        for starts in &self.starts[level..] {
            range = starts[range.start as usize]..starts[range.end as usize];
        }
        &self.leaf_items[range.start as usize..range.end as usize]
    }

    /// Node of `prefix`, of level `prefix.len()`; `None` when no ID begins so.
    pub fn find(&self, prefix: &[Code]) -> Option<NodeId> {
        if prefix.len() > self.levels() {
            return None;
        }
        let mut levels = prefix.iter().enumerate();
        levels.try_fold(Self::ROOT, |node, (level, code)| self.child(level, node, *code))
    }

    /// Leaf of `item`; `None` when it is not in the catalogue.
    pub fn leaf(&self, item: ItemIdx) -> Option<NodeId> {
        self.leaves.get(item.0 as usize).copied()
    }

    /// Bytes held in memory.
    pub fn size_bytes(&self) -> usize {
        let codes: usize = self.codes.iter().map(|codes| size_of_val(codes.as_slice())).sum();
        let starts: usize = self.starts.iter().map(|starts| size_of_val(starts.as_slice())).sum();
        codes + starts + size_of_val(self.leaf_items.as_slice()) + size_of_val(self.leaves.as_slice())
    }

    /// The child of `node` of `level` by `code`.
    #[inline]
    pub(crate) fn child(&self, level: usize, node: NodeId, code: Code) -> Option<NodeId> {
        let (codes, range) = self.children(level, node);
        codes.binary_search(&code).ok().map(|at| range.start + at as u32)
    }

    /// What follows `node` in the next array: children, or places in `leaf_items`.
    #[inline]
    fn below(&self, level: usize, node: NodeId) -> Range<u32> {
        let starts = &self.starts[level];
        starts[node as usize]..starts[node as usize + 1]
    }

    /// Parent of `node` of `level`, which is not the root's.
    fn parent(&self, level: usize, node: NodeId) -> NodeId {
        self.starts[level - 1].partition_point(|start| *start <= node) as u32 - 1
    }

    /// Adds what follows from the arrays.
    fn new(spec: SidSpec, codes: Vec<Vec<Code>>, starts: Vec<Vec<u32>>, leaf_items: Vec<ItemIdx>) -> Self {
        let mut leaves = vec![0; leaf_items.len()];
        for (leaf, ends) in starts[codes.len()].windows(2).enumerate() {
            for item in &leaf_items[ends[0] as usize..ends[1] as usize] {
                leaves[item.0 as usize] = leaf as u32;
            }
        }
        Self { spec, codes, starts, leaf_items, leaves }
    }
}
