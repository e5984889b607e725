//! One block of 32-bit words with all arrays of a trie: the same bytes in memory, in a file and on a device.
//!
//! Per level: the cuts between the children of its nodes, then the children's codes, one or two bytes each, then, where
//! nodes have more than a sixteenth of all codes on average, one bit a code and node once more. Behind the last level:
//! the cuts between the items of the leaves, then the items. Cuts are not kept where every node has one child.
//! Where nodes have fewer than [`FEW`] on average, they are one bit a child, set at the first one of each node, and the
//! place of every [`STRIDE`]th. Elsewhere they are a 32-bit base for every [`BLOCK`] nodes and a small distance a node.
//! Every array starts on a word.

use super::NodeId;
use rqvae::{Code, ItemIdx};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Nodes that share a base.
pub(super) const BLOCK: usize = 16;

/// Levels with at most this many codes take one byte a node.
const BYTE: u32 = 256;

/// Nodes between two that are found without counting bits.
const STRIDE: usize = 32;

/// Fewest children a node, on average, that are not kept as bits.
const FEW: usize = 4;

/// Longest run of children between two such nodes that is kept as bits.
const MAX_RUN: u32 = 1024;

/// A level gets rows of bits when its nodes have more than one in this many codes.
const DENSE: usize = 16;

/// Levels with fewer codes never get rows.
const SMALL: u32 = 64;

/// Where the words live.
#[derive(Debug)]
pub(super) enum Words {
    Owned(Vec<u32>),
    /// Bytes `from..` of a file, checked to be whole words on a word's boundary.
    Mapped {
        map: memmap2::Mmap,
        from: usize,
    },
}

impl Words {
    #[inline]
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::Owned(words) => words,
            Self::Mapped { map, from } => bytemuck::cast_slice(&map[*from..]),
        }
    }
}

/// How the cuts of one level are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Width {
    /// Node n has the one child n.
    One,
    /// One bit a child and the place of every [`STRIDE`]th node.
    Bits,
    /// Bases and one byte a node.
    U8,
    /// Bases and two bytes a node.
    U16,
    /// Four bytes a node and no bases.
    U32,
}

/// Cuts between the children of `nodes` nodes: node n has the children `get(n)..get(n + 1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cuts {
    width: Width,
    nodes: usize,
    bases: usize,
    distances: usize,
}

impl Cuts {
    /// Sums wrap, so that a damaged file is found by what it gives.
    #[inline]
    pub(super) fn get(&self, words: &[u32], node: usize) -> u32 {
        let base = || words[self.bases + node / BLOCK];
        match self.width {
            Width::One => node as u32,
            Width::Bits => self.select(words, node),
            Width::U8 => {
                base().wrapping_add(u32::from(bytemuck::cast_slice::<u32, u8>(&words[self.distances..])[node]))
            }
            Width::U16 => {
                base().wrapping_add(u32::from(bytemuck::cast_slice::<u32, u16>(&words[self.distances..])[node]))
            }
            Width::U32 => words[self.distances + node],
        }
    }

    #[inline]
    pub(super) fn range(&self, words: &[u32], node: usize) -> Range<u32> {
        if self.width != Width::Bits {
            return self.get(words, node)..self.get(words, node + 1);
        }
        let start = self.select(words, node);
        // The next bit: behind the last child there is one more.
        let bits = &words[self.distances..];
        let mut at = start as usize / 32;
        let mut word = bits[at] & (u32::MAX - 1) << (start % 32);
        while word == 0 {
            at += 1;
            word = bits[at];
        }
        start..32 * at as u32 + word.trailing_zeros()
    }

    /// The place of bit `node` among those that are set.
    #[inline]
    fn select(&self, words: &[u32], node: usize) -> u32 {
        let first = words[self.bases + node / STRIDE];
        let bits = &words[self.distances..];
        let mut at = first as usize / 32;
        let mut word = bits[at] & u32::MAX << (first % 32);
        let mut skip = (node % STRIDE) as u32;
        loop {
            let here = word.count_ones();
            if skip < here {
                break;
            }
            skip -= here;
            at += 1;
            word = bits[at];
        }
        for _ in 0..skip {
            word &= word - 1;
        }
        32 * at as u32 + word.trailing_zeros()
    }

    /// Whether the bits of a level in a file are as many as its nodes, and the places those of the bits: then they cut.
    /// The other widths have nothing to be wrong before they are read.
    pub(super) fn is_readable(&self, words: &[u32], below: usize) -> bool {
        let Some(bits) = self.bits(words, below) else {
            return true;
        };
        let places = &words[self.bases..][..(self.nodes + 1).div_ceil(STRIDE)];
        let (mut known, mut before) = (places.iter().enumerate().peekable(), 0);
        for (at, word) in bits.iter().enumerate() {
            let here = |place: &u32| *place as usize / 32 == at;
            while let Some((index, place)) = known.next_if(|(_, place)| here(place)) {
                let below = word & !(u32::MAX << (place % 32));
                if word >> (place % 32) & 1 == 0 || before + below.count_ones() as usize != index * STRIDE {
                    return false;
                }
            }
            before += word.count_ones() as usize;
        }
        known.next().is_none() && before == self.nodes + 1
    }

    /// One bit a child and one behind them, set at the first child of each node: (below + 1,) in words.
    pub(super) fn bits<'t>(&self, words: &'t [u32], below: usize) -> Option<&'t [u32]> {
        (self.width == Width::Bits).then(|| &words[self.distances..][..(below + 1).div_ceil(32)])
    }

    pub(super) fn width(&self) -> Width {
        self.width
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The node that `child` belongs to.
    pub(super) fn owner(&self, words: &[u32], child: u32) -> NodeId {
        if self.width == Width::One {
            return child;
        }
        // The last node that begins at `child` or before.
        let (mut low, mut high) = (0, self.nodes);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.get(words, middle) <= child {
                low = middle;
            } else {
                high = middle;
            }
        }
        low as NodeId
    }

    /// The narrowest width for `cuts`: (nodes + 1,).
    pub(super) fn narrowest(cuts: &[u32]) -> Width {
        if cuts.iter().enumerate().all(|(node, cut)| *cut as usize == node) {
            return Width::One;
        }
        let span = |block: &[u32]| block[block.len() - 1] - block[0];
        let (nodes, below) = (cuts.len() - 1, cuts[cuts.len() - 1] as usize);
        let filled = || cuts.windows(2).all(|ends| ends[0] < ends[1]);
        // An overlap of one, so that a run is from each known place to the next.
        let runs = || (0..nodes).step_by(STRIDE).all(|at| span(&cuts[at..cuts.len().min(at + STRIDE + 1)]) <= MAX_RUN);
        if below < FEW * nodes && runs() && filled() {
            return Width::Bits;
        }
        match cuts.chunks(BLOCK).map(span).max().unwrap_or(0) {
            0..=0xff => Width::U8,
            0x100..=0xffff => Width::U16,
            _ => Width::U32,
        }
    }
}

/// Codes of siblings, ascending, as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes<'t> {
    /// A level with at most 256 codes.
    Narrow(&'t [u8]),
    /// A level with more.
    Wide(&'t [Code]),
}

impl<'t> Codes<'t> {
    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(codes) => codes.len(),
            Self::Wide(codes) => codes.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code at `place`.
    ///
    /// # Panics
    /// When there are not that many.
    #[inline]
    pub fn at(&self, place: usize) -> Code {
        match self {
            Self::Narrow(codes) => Code::from(codes[place]),
            Self::Wide(codes) => codes[place],
        }
    }

    /// All of them.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = Code> + Clone + 't {
        (0..self.len()).map(move |place| self.at(place))
    }

    /// Where `code` is.
    #[inline]
    pub fn position(&self, code: Code) -> Option<usize> {
        match self {
            Self::Narrow(codes) => u8::try_from(code).ok().and_then(|code| codes.binary_search(&code).ok()),
            Self::Wide(codes) => codes.binary_search(&code).ok(),
        }
    }
}

/// Where the arrays of one level are, for readers that are not written in Rust: first words, counted from the arena's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrays {
    /// In the order of [`Width`], from 0.
    pub(crate) width: u32,
    pub(crate) nodes: usize,
    pub(crate) bases: usize,
    pub(crate) distances: usize,
    /// Of the children, and whether they take two bytes; `None` behind the leaves.
    pub(crate) codes: Option<(usize, bool)>,
}

/// Where each array begins. A function of the counts and widths alone, so that a file cannot lie about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// `cuts[l]` cuts the nodes of level l + 1, those of the leaves cut the items.
    pub(super) cuts: Vec<Cuts>,
    /// `codes[l]`: first word and number of the codes of level l + 1, and whether they take two bytes.
    codes: Vec<(usize, usize, bool)>,
    /// `rows[l]`: first word and words a node of the bits of the nodes of level l, where it has them.
    rows: Vec<Option<(usize, usize)>>,
    items: usize,
    entries: usize,
    /// Words of all arrays.
    pub(super) len: usize,
}

impl Layout {
    /// For `nodes[l]` nodes at level l, the root's included, and `entries` places for items behind the leaves.
    /// `None` when the words would not fit an address.
    pub(super) fn new(sizes: &[u32], nodes: &[usize], entries: usize, widths: &[Width]) -> Option<Self> {
        let mut len = 0usize;
        let mut take = |bytes: Option<usize>| {
            let start = len;
            len = len.checked_add(bytes?.div_ceil(4))?;
            Some(start)
        };
        let mut cuts = Vec::with_capacity(nodes.len());
        let (mut codes, mut rows) = (Vec::with_capacity(sizes.len()), Vec::with_capacity(sizes.len()));
        for (level, (nodes_here, width)) in nodes.iter().zip(widths).enumerate() {
            let marks = nodes_here.checked_add(1)?;
            let below = nodes.get(level + 1).copied().unwrap_or(entries);
            let (bases, bytes) = match width {
                Width::One => (0, 0),
                Width::Bits => (marks.div_ceil(STRIDE), 4 * below.checked_add(1)?.div_ceil(32)),
                Width::U8 => (marks.div_ceil(BLOCK), marks),
                Width::U16 => (marks.div_ceil(BLOCK), marks.checked_mul(2)?),
                Width::U32 => (0, marks.checked_mul(4)?),
            };
            let bases = take(bases.checked_mul(4))?;
            let distances = take(Some(bytes))?;
            cuts.push(Cuts { width: *width, nodes: *nodes_here, bases, distances });
            if let (Some(size), Some(below)) = (sizes.get(level), nodes.get(level + 1)) {
                let wide = *size > BYTE;
                codes.push((take(below.checked_mul(if wide { 2 } else { 1 }))?, *below, wide));
                let dense = *size >= SMALL && below.checked_mul(DENSE)? > nodes_here.checked_mul(*size as usize)?;
                let words = size.div_ceil(u32::BITS) as usize;
                rows.push(if dense { Some((take(nodes_here.checked_mul(4 * words))?, words)) } else { None });
            }
        }
        let items = take(entries.checked_mul(4))?;
        Some(Self { cuts, codes, rows, items, entries, len })
    }

    /// Every level's arrays, and the first word of the items.
    pub(super) fn arrays(&self) -> (Vec<Arrays>, usize) {
        let arrays = |(level, cuts): (usize, &Cuts)| Arrays {
            width: cuts.width as u32,
            nodes: cuts.nodes,
            bases: cuts.bases,
            distances: cuts.distances,
            codes: self.codes.get(level).map(|(at, _, wide)| (*at, *wide)),
        };
        (self.cuts.iter().enumerate().map(arrays).collect(), self.items)
    }

    /// Codes of the nodes of level `level + 1`.
    #[inline]
    pub(super) fn codes<'t>(&self, words: &'t [u32], level: usize, range: Range<u32>) -> Codes<'t> {
        let (at, len, wide) = self.codes[level];
        let range = range.start as usize..range.end as usize;
        if wide {
            Codes::Wide(&bytemuck::cast_slice::<u32, Code>(&words[at..])[..len][range])
        } else {
            Codes::Narrow(&bytemuck::cast_slice::<u32, u8>(&words[at..])[..len][range])
        }
    }

    /// One bit a code of the children of `node` of `level`: (codes / 32,), on dense levels.
    #[inline]
    pub(super) fn row<'t>(&self, words: &'t [u32], level: usize, node: NodeId) -> Option<&'t [u32]> {
        self.rows[level].map(|(at, len)| &words[at + node as usize * len..][..len])
    }

    #[inline]
    pub(super) fn items<'t>(&self, words: &'t [u32]) -> &'t [ItemIdx] {
        bytemuck::cast_slice(&words[self.items..][..self.entries])
    }

    /// Fills the arrays of a level: `cuts` (nodes + 1,) into `codes`; `None` behind the leaves.
    pub(super) fn fill(&self, words: &mut [u32], level: usize, cuts: &[u32], codes: Option<&[Code]>) {
        let at = self.cuts[level];
        if matches!(at.width, Width::U8 | Width::U16) {
            for (base, block) in words[at.bases..].iter_mut().zip(cuts.chunks(BLOCK)) {
                *base = block[0];
            }
        }
        let distances = cuts.chunks(BLOCK).flat_map(|block| block.iter().map(|cut| cut - block[0]));
        match at.width {
            Width::One => {}
            Width::Bits => {
                for (place, block) in words[at.bases..].iter_mut().zip(cuts.chunks(STRIDE)) {
                    *place = block[0];
                }
                for cut in cuts {
                    words[at.distances + *cut as usize / 32] |= 1 << (cut % 32);
                }
            }
            Width::U8 => {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words[at.distances..]);
                bytes.iter_mut().zip(distances).for_each(|(byte, distance)| *byte = distance as u8);
            }
            Width::U16 => {
                let shorts: &mut [u16] = bytemuck::cast_slice_mut(&mut words[at.distances..]);
                shorts.iter_mut().zip(distances).for_each(|(short, distance)| *short = distance as u16);
            }
            Width::U32 => words[at.distances..][..cuts.len()].copy_from_slice(cuts),
        }
        let Some(codes) = codes else {
            return;
        };
        let (at, _, wide) = self.codes[level];
        if wide {
            bytemuck::cast_slice_mut(&mut words[at..])[..codes.len()].copy_from_slice(codes);
        } else {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words[at..]);
            bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte = *code as u8);
        }
        let Some((at, len)) = self.rows[level] else {
            return;
        };
        for (row, ends) in words[at..].chunks_exact_mut(len).zip(cuts.windows(2)) {
            for code in &codes[ends[0] as usize..ends[1] as usize] {
                row[usize::from(*code) / 32] |= 1 << (code % 32);
            }
        }
    }

    pub(super) fn fill_items(&self, words: &mut [u32], items: &[ItemIdx]) {
        words[self.items..][..self.entries].copy_from_slice(bytemuck::cast_slice(items));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_found_in_both_widths() {
        for codes in [Codes::Narrow(&[3, 9, 255]), Codes::Wide(&[3, 9, 255])] {
            assert_eq!((codes.position(9), codes.position(4), codes.position(0x103)), (Some(1), None, None));
            assert_eq!((codes.len(), codes.at(2), codes.is_empty()), (3, 255, false));
            assert_eq!(codes.iter().collect::<Vec<_>>(), [3, 9, 255]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Cuts come back as they were, in the width that was chosen for them, and every child finds its node.
        #[test]
        fn cuts_survive(degrees in prop::collection::vec(prop_oneof![8 => 1u32..4, 2 => 1u32..40, 1 => 1u32..9000], 0..70)) {
            let mut cuts = vec![0];
            for degree in &degrees {
                cuts.push(cuts[cuts.len() - 1] + degree);
            }
            let width = Cuts::narrowest(&cuts);
            let layout = Layout::new(&[], &[degrees.len()], cuts[degrees.len()] as usize, &[width]).unwrap();
            let mut words = vec![0; layout.len];
            layout.fill(&mut words, 0, &cuts, None);
            for (node, cut) in cuts.iter().enumerate() {
                prop_assert_eq!(layout.cuts[0].get(&words, node), *cut);
            }
            prop_assert!(layout.cuts[0].is_readable(&words, cuts[degrees.len()] as usize));
            for (node, ends) in cuts.windows(2).enumerate() {
                prop_assert_eq!(layout.cuts[0].range(&words, node), ends[0]..ends[1]);
                for child in [ends[0], ends[1] - 1] {
                    prop_assert_eq!(layout.cuts[0].owner(&words, child), node as u32);
                }
            }
        }
    }
}
