//! The set of valid IDs: level arrays with the children of a node and the items of a leaf.
//!
//! Levels count codes: the root is node 0 of level 0, a node of level l stands for a prefix of l codes, and the nodes of
//! level [`Trie::levels`] are leaves. Nodes of a level are numbered in lexicographic order of their prefixes, so the
//! children of a node are neighbours in the next level and their numbers need not be stored. The arrays lie in one
//! block, see `arena`; an item may stand behind several leaves, and a leaf has at least one item. An ID that is shorter
//! than the tree is deep (a path of DSI) ends in zeros; among valid codes those cost nothing.

mod arena;
mod bits;
mod build;
mod delta;
mod file;
mod live;
mod mapped;
mod overlay;

pub use arena::Codes;
pub use delta::TrieDelta;
pub use live::LiveMask;
pub(crate) use live::Plain;
pub(crate) use overlay::LiveNodes;

#[cfg(test)]
pub(crate) use build::tests as build_tests;

use arena::{Cuts, Layout, Width, Words};
use rqvae::{Code, ItemIdx, SidSpec};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Number of a node within its level.
pub type NodeId = u32;

/// All valid IDs of a catalogue and the items behind them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Trie {
    spec: SidSpec,
    layout: Layout,
    words: Arc<Words>,
    /// Whether some item has several IDs.
    aliases: bool,
    /// One more than the greatest item.
    bound: u32,
    /// Items there are; `None` when it is all below the bound.
    known: Option<Arc<bits::Bits>>,
    places: Arc<OnceLock<Places>>,
}

/// Places of every item in the order of the leaves; made when first asked for.
#[derive(Debug)]
enum Places {
    /// Every item below the bound has one: (bound,).
    All(Vec<u32>),
    /// Items and places, ascending.
    Some(Vec<(ItemIdx, u32)>),
}

impl PartialEq for Trie {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec && self.layout == other.layout && self.words() == other.words()
    }
}

impl Eq for Trie {}

impl Trie {
    /// The empty prefix, the one node of level 0.
    pub const ROOT: NodeId = 0;

    /// Shape of the IDs.
    pub fn spec(&self) -> &SidSpec {
        &self.spec
    }

    /// Whether both are the same one in memory; equal ones that were made apart are not.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.words, &other.words)
    }

    /// Codes per ID, suffix included.
    pub fn levels(&self) -> usize {
        self.layout.cuts.len() - 1
    }

    /// Number of items, each counted once for every ID it has.
    pub fn items_total(&self) -> usize {
        self.layout.items(self.words()).len()
    }

    /// Number of nodes at `level`: 1 for the root's, the number of distinct IDs for the leaves'.
    ///
    /// # Panics
    /// When `level` is beyond the leaves.
    pub fn nodes(&self, level: usize) -> usize {
        self.layout.cuts[level].nodes()
    }

    /// Codes, ascending, and numbers of the children of `node` of `level`; they are nodes of `level + 1`.
    ///
    /// # Panics
    /// When `level` has no such node or is that of the leaves.
    #[inline]
    pub fn children(&self, level: usize, node: NodeId) -> (Codes<'_>, Range<NodeId>) {
        let range = self.places_of_children(level, node);
        (self.codes_of(level, range.clone()), range)
    }

    /// Numbers of the children of `node` of `level`.
    #[inline]
    pub(crate) fn places_of_children(&self, level: usize, node: NodeId) -> Range<NodeId> {
        self.layout.cuts[level].range(self.words(), node as usize)
    }

    /// Codes of some nodes of `level + 1`.
    #[inline]
    pub(crate) fn codes_of(&self, level: usize, nodes: Range<NodeId>) -> Codes<'_> {
        self.layout.codes(self.words(), level, nodes)
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
        let range = self.places_below(level, node);
        &self.in_order()[range.start as usize..range.end as usize]
    }

    /// Node of `prefix`, of level `prefix.len()`; `None` when no ID begins so.
    pub fn find(&self, prefix: &[Code]) -> Option<NodeId> {
        if prefix.len() > self.levels() {
            return None;
        }
        let mut levels = prefix.iter().enumerate();
        levels.try_fold(Self::ROOT, |node, (level, code)| self.child(level, node, *code))
    }

    /// Leaf of `item`, the first one when it has several IDs; `None` when it is not in the catalogue.
    ///
    /// The first call makes a table of four bytes an item.
    pub fn leaf(&self, item: ItemIdx) -> Option<NodeId> {
        self.leaves(item).next()
    }

    /// Bytes of the index: what is stored, and what search reads.
    pub fn size_bytes(&self) -> usize {
        4 * self.layout.len
    }

    /// All items in the order of their IDs; an item with several IDs stands at each of them.
    pub fn in_order(&self) -> &[ItemIdx] {
        self.layout.items(self.words())
    }

    /// Whether some item has several IDs.
    pub(crate) fn has_aliases(&self) -> bool {
        self.aliases
    }

    /// One more than the greatest item.
    pub fn bound(&self) -> usize {
        self.bound as usize
    }

    /// The child of `node` of `level` by `code`.
    #[inline]
    pub(crate) fn child(&self, level: usize, node: NodeId, code: Code) -> Option<NodeId> {
        let (codes, range) = self.children(level, node);
        codes.position(code).map(|at| range.start + at as u32)
    }

    /// One bit a code of the children of `node`, on levels where nodes have many.
    #[inline]
    pub(crate) fn row(&self, level: usize, node: NodeId) -> Option<&[u32]> {
        self.layout.row(self.words(), level, node)
    }

    /// Leaves of `item`.
    fn leaves(&self, item: ItemIdx) -> impl Iterator<Item = NodeId> {
        let words = self.words();
        let cuts = self.layout.cuts[self.levels()];
        self.places_of(item).map(move |place| cuts.owner(words, place))
    }

    /// Places of `item` in the order of the leaves.
    fn places_of(&self, item: ItemIdx) -> impl Iterator<Item = u32> {
        let (one, many) = match self.places.get_or_init(|| Places::of(self)) {
            Places::All(places) => (places.get(item.0 as usize).copied(), &[][..]),
            Places::Some(pairs) => {
                let start = pairs.partition_point(|pair| pair.0 < item);
                (None, &pairs[start..])
            }
        };
        one.into_iter().chain(many.iter().take_while(move |pair| pair.0 == item).map(|pair| pair.1))
    }

    /// Places in the order of the leaves that `node` of `level` covers.
    fn places_below(&self, level: usize, node: NodeId) -> Range<u32> {
        let words = self.words();
        self.layout.cuts[level..].iter().fold(node..node + 1, |range, cuts| {
            cuts.get(words, range.start as usize)..cuts.get(words, range.end as usize)
        })
    }

    /// Parent of `node` of `level`, which is not the root's.
    fn parent(&self, level: usize, node: NodeId) -> NodeId {
        self.layout.cuts[level - 1].owner(self.words(), node)
    }

    /// Every level's arrays in [`Trie::words`], and the first word of the items.
    pub(crate) fn arrays(&self) -> (Vec<arena::Arrays>, usize) {
        self.layout.arrays()
    }

    /// The arena.
    #[inline]
    pub(crate) fn words(&self) -> &[u32] {
        self.words.as_slice()
    }

    /// Adds what follows from the arrays.
    fn new(spec: SidSpec, layout: Layout, words: Words) -> Self {
        let items = layout.items(words.as_slice());
        let bound = items.iter().map(|item| item.0 + 1).max().unwrap_or(0);
        let mut seen = bits::Bits::new(bound as usize);
        let again = items.iter().filter(|item| seen.replace(item.0 as usize)).count();
        let gaps = items.len() - again < bound as usize;
        let known = gaps.then(|| Arc::new(seen));
        Self { spec, layout, words: Arc::new(words), aliases: again > 0, bound, known, places: Arc::default() }
    }

    /// Packs full arrays: `codes[l]` of the nodes of level l + 1, `cuts[l]` between the children of level l (those of
    /// the leaves are places in `items`).
    fn pack(spec: SidSpec, mut codes: Vec<Vec<Code>>, mut cuts: Vec<Vec<u32>>, items: Vec<ItemIdx>) -> Self {
        let sizes: Vec<u32> = (0..spec.len()).map(|level| spec.codes_at(level)).collect();
        let nodes: Vec<usize> = cuts.iter().map(|cuts| cuts.len() - 1).collect();
        let widths: Vec<Width> = cuts.iter().map(|cuts| Cuts::narrowest(cuts)).collect();
        let layout = Layout::new(&sizes, &nodes, items.len(), &widths).expect("smaller than what is in memory");
        let mut words = vec![0; layout.len];
        for (level, cuts) in cuts.iter_mut().enumerate() {
            let codes = codes.get_mut(level).map(std::mem::take);
            layout.fill(&mut words, level, &std::mem::take(cuts), codes.as_deref());
        }
        layout.fill_items(&mut words, &items);
        drop(items);
        Self::new(spec, layout, Words::Owned(words))
    }
}

impl Places {
    fn of(trie: &Trie) -> Self {
        let items = trie.in_order();
        if trie.known.is_none() && !trie.has_aliases() {
            let mut places = vec![0; items.len()];
            for (place, item) in items.iter().enumerate() {
                places[item.0 as usize] = place as u32;
            }
            return Self::All(places);
        }
        let mut pairs: Vec<_> = items.iter().zip(0..).map(|(item, place)| (*item, place)).collect();
        pairs.sort_unstable();
        Self::Some(pairs)
    }
}
