//! Building: partition the packed IDs by their first bits, sort each part, then one walk that opens nodes where
//! neighbours part.

use super::Trie;
use crate::{Error, Result};
use rayon::prelude::*;
use rqvae::{Code, ItemIdx, SidSpec, SidTable};

/// Rows that a part of the partition has on average, so that its sort stays in a core's cache.
const PART: usize = 1 << 14;

/// Most bits to partition by.
const MAX_SPLIT: u32 = 12;

impl Trie {
    /// The trie of all IDs of `table`. Items that share an ID stay in the order of the table; a catalogue in which
    /// they do is better served by [`Trie::build_with_ties`].
    ///
    /// # Errors
    /// The table does not fit 32-bit numbers.
    pub fn build(table: &SidTable) -> Result<Self> {
        check(table)?;
        Ok(Self::from_rows(table, None, ItemIdx))
    }

    /// As [`Trie::build`]; items that share an ID are ordered by ascending `tie_hash` (items,).
    ///
    /// # Errors
    /// `tie_hash` does not belong to the table, or the table does not fit 32-bit numbers.
    pub fn build_with_ties(table: &SidTable, tie_hash: &[u64]) -> Result<Self> {
        if tie_hash.len() != table.items() {
            return Err(Error::shape("tie hashes", format!("{} items", table.items()), tie_hash.len()));
        }
        check(table)?;
        let mut order: Vec<u32> = (0..table.items() as u32).collect();
        order.sort_unstable_by_key(|item| (tie_hash[*item as usize], *item));
        Ok(Self::from_rows(table, Some(&order), ItemIdx))
    }

    /// A trie in which items have any number of IDs: row i of `table` is one of item `items[i]`: (rows,). Items that
    /// share an ID come by their numbers.
    ///
    /// # Errors
    /// `items` does not belong to the table, or the table does not fit 32-bit numbers.
    pub fn build_aliases(table: &SidTable, items: &[ItemIdx]) -> Result<Self> {
        if items.len() != table.items() || items.contains(&ItemIdx(u32::MAX)) {
            let expected = format!("one below {} for each of {} rows", u32::MAX, table.items());
            return Err(Error::shape("items of IDs", expected, items.len()));
        }
        check(table)?;
        let mut order: Vec<u32> = (0..table.items() as u32).collect();
        order.sort_unstable_by_key(|row| (items[*row as usize], *row));
        Ok(Self::from_rows(table, Some(&order), |row| items[row as usize]))
    }

    /// Rows in order of their IDs, equal ones by their place in `order` (rows,).
    fn from_rows(table: &SidTable, order: Option<&[u32]>, item: impl Fn(u32) -> ItemIdx) -> Self {
        let row_at = |place: u32| order.map_or(place, |order| order[place as usize]);
        let packing = Packing::of(table);
        let mut builder = Builder::new(table.spec().len());
        match packing.bits() - packing.split + packing.place_bits {
            0..=64 => packing.sorted::<u64>(table, row_at, |sorted| packing.walk(&sorted, &mut builder, row_at, item)),
            65..=128 => {
                packing.sorted::<u128>(table, row_at, |sorted| packing.walk(&sorted, &mut builder, row_at, item));
            }
            _ => {
                let mut places: Vec<u32> = (0..table.items() as u32).collect();
                let codes = |place: u32| table.codes(ItemIdx(row_at(place)));
                places.sort_unstable_by(|a, b| codes(*a).cmp(codes(*b)).then(a.cmp(b)));
                places.iter().for_each(|place| builder.push(codes(*place), item(row_at(*place))));
            }
        }
        builder.finish(table.spec().clone())
    }
}

fn check(table: &SidTable) -> Result<()> {
    if table.items() < u32::MAX as usize {
        return Ok(());
    }
    Err(Error::shape("SID table", format!("fewer than {} items", u32::MAX), table.items()))
}

/// How IDs become numbers: the codes, most significant first, then the place among the rows.
struct Packing {
    /// Of the codes: (levels,).
    widths: Vec<u32>,
    place_bits: u32,
    /// Leading bits that the partition takes.
    split: u32,
    rows: usize,
}

/// A packed ID without its leading bits, with its row's place behind it.
trait Packed: Copy + Ord + Send {
    fn narrow(wide: u128) -> Self;
    fn widen(self) -> u128;
}

impl Packed for u64 {
    #[inline]
    fn narrow(wide: u128) -> Self {
        wide as u64
    }
    #[inline]
    fn widen(self) -> u128 {
        u128::from(self)
    }
}

impl Packed for u128 {
    #[inline]
    fn narrow(wide: u128) -> Self {
        wide
    }
    #[inline]
    fn widen(self) -> u128 {
        self
    }
}

/// Packed rows in order; part p, `ends[p - 1]..ends[p]`, has the leading bits p.
struct Sorted<T> {
    packed: Vec<T>,
    ends: Vec<usize>,
}

impl Packing {
    fn of(table: &SidTable) -> Self {
        let bits = |count: u32| u32::BITS - count.saturating_sub(1).leading_zeros();
        let widths: Vec<u32> = (0..table.spec().len()).map(|level| bits(table.spec().codes_at(level))).collect();
        let rows = table.items();
        let split = (rows / PART).max(1).ilog2().min(MAX_SPLIT).min(widths.iter().sum());
        Self { widths, place_bits: bits(rows as u32), split, rows }
    }

    fn bits(&self) -> u32 {
        self.widths.iter().sum()
    }

    /// Calls `then` with the rows in order, unless they are too wide, which the caller has excluded.
    fn sorted<T: Packed>(&self, table: &SidTable, row_at: impl Fn(u32) -> u32, then: impl FnOnce(Sorted<T>)) {
        let rest = self.bits() - self.split;
        let key = |place: u32| {
            let codes = table.codes(ItemIdx(row_at(place)));
            codes.iter().zip(&self.widths).fold(0u128, |key, (code, width)| key << width | u128::from(*code))
        };
        // The partition looks at the first codes only.
        let mut ends = vec![0usize; (1 << self.split) + 1];
        for place in 0..self.rows as u32 {
            ends[(key(place) >> rest) as usize + 1] += 1;
        }
        for part in 1..ends.len() {
            ends[part] += ends[part - 1];
        }
        let mut packed = vec![T::narrow(0); self.rows];
        for place in 0..self.rows as u32 {
            let key = key(place);
            let next = &mut ends[(key >> rest) as usize];
            packed[*next] = T::narrow((key & ((1 << rest) - 1)) << self.place_bits | u128::from(place));
            *next += 1;
        }
        // Every end has moved to the one behind it.
        ends.pop();
        let mut parts = Vec::with_capacity(ends.len());
        let (mut tail, mut start) = (packed.as_mut_slice(), 0);
        for end in &ends {
            let (part, after) = tail.split_at_mut(end - start);
            parts.push(part);
            (tail, start) = (after, *end);
        }
        parts.into_par_iter().for_each(<[T]>::sort_unstable);
        then(Sorted { packed, ends });
    }

    fn walk<T: Packed>(
        &self,
        sorted: &Sorted<T>,
        builder: &mut Builder,
        row_at: impl Fn(u32) -> u32,
        item: impl Fn(u32) -> ItemIdx,
    ) {
        let rest = self.bits() - self.split;
        let mut shifts = vec![0; self.widths.len()];
        for level in (1..shifts.len()).rev() {
            shifts[level - 1] = shifts[level] + self.widths[level];
        }
        // Level that each bit of a key belongs to.
        let mut levels = Vec::with_capacity(self.bits() as usize);
        for (level, width) in self.widths.iter().enumerate().rev() {
            levels.extend((0..*width).map(|_| level));
        }
        let keys = || {
            let parts = sorted.ends.iter().enumerate().scan(0, |start, (part, end)| {
                let range = std::mem::replace(start, *end)..*end;
                Some((part as u128, range))
            });
            parts.flat_map(|(part, range)| {
                sorted.packed[range].iter().map(move |packed| {
                    let packed = packed.widen();
                    let place = packed & ((1 << self.place_bits) - 1);
                    (part << rest | packed >> self.place_bits, place as u32)
                })
            })
        };
        // The first code that differs from the neighbour before opens a node on its level and on all below.
        let shared = |last: Option<u128>, key: u128| match last.map(|last| last ^ key) {
            None => 0,
            Some(0) => self.widths.len(),
            Some(change) => levels[(u128::BITS - 1 - change.leading_zeros()) as usize],
        };
        let mut opened = vec![0usize; self.widths.len() + 1];
        let mut last = None;
        for (key, _) in keys() {
            opened[shared(last.replace(key), key)] += 1;
        }
        builder.reserve(&opened);
        let masks: Vec<u128> = self.widths.iter().map(|width| (1 << width) - 1).collect();
        let mut last = None;
        for (key, place) in keys() {
            let shared = shared(last.replace(key), key);
            builder.open(shared, |level| (key >> shifts[level] & masks[level]) as Code, item(row_at(place)));
        }
    }
}

/// Takes IDs in order and makes the arrays of a trie.
pub(super) struct Builder {
    codes: Vec<Vec<Code>>,
    cuts: Vec<Vec<u32>>,
    items: Vec<ItemIdx>,
    last: Option<Vec<Code>>,
}

impl Builder {
    pub(super) fn new(levels: usize) -> Self {
        let (codes, cuts) = (vec![Vec::new(); levels], vec![Vec::new(); levels + 1]);
        Self { codes, cuts, items: Vec::new(), last: None }
    }

    /// Makes room; `opened[l]` rows share their first l codes, and no more, with the row before.
    fn reserve(&mut self, opened: &[usize]) {
        let mut nodes = 0;
        for (level, opened) in opened[..self.codes.len()].iter().enumerate() {
            nodes += opened;
            self.codes[level].reserve_exact(nodes);
            self.cuts[level + 1].reserve_exact(nodes + 1);
        }
        self.items.reserve_exact(nodes + opened[self.codes.len()]);
    }

    /// The next ID, not before the last one, and an item behind it.
    pub(super) fn push(&mut self, row: &[Code], item: ItemIdx) {
        let shared = match &self.last {
            Some(last) => row.iter().zip(last).take_while(|(a, b)| a == b).count(),
            None => 0,
        };
        self.open(shared, |level| row[level], item);
        self.last = Some(row.to_vec());
    }

    /// The next ID, which shares `shared` codes with the last one.
    #[inline]
    fn open(&mut self, shared: usize, code: impl Fn(usize) -> Code, item: ItemIdx) {
        let levels = self.codes.len();
        if shared == levels && self.items.last() == Some(&item) {
            return;
        }
        for level in shared..levels {
            self.codes[level].push(code(level));
            let below = if level + 1 < levels { self.codes[level + 1].len() } else { self.items.len() };
            self.cuts[level + 1].push(below as u32);
        }
        self.items.push(item);
    }

    pub(super) fn finish(mut self, spec: SidSpec) -> Trie {
        // Every array of cuts ends with the length of what it cuts; the root is there without items too.
        self.cuts[0].push(0);
        for (level, codes) in self.codes.iter().enumerate() {
            self.cuts[level].push(codes.len() as u32);
        }
        self.cuts[self.codes.len()].push(self.items.len() as u32);
        Trie::pack(spec, self.codes, self.cuts, self.items)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Codes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Small tables full of collisions and chains; `raw` codes are taken modulo their level's size.
    pub(crate) fn table() -> impl Strategy<Value = SidTable> {
        let sizes = prop::collection::vec(1u32..6, 1..5);
        (sizes, any::<bool>(), prop::collection::vec(any::<u16>(), 0..160)).prop_map(|(sizes, suffix, raw)| {
            let suffix_size = suffix.then_some(3);
            let spec = SidSpec { codebook_sizes: sizes, suffix_size };
            let len = spec.len();
            let whole = raw.len() / len * len;
            let fit = |(at, code): (usize, &u16)| (u32::from(*code) % spec.codes_at(at % len)) as Code;
            let codes = raw[..whole].iter().enumerate().map(fit).collect();
            SidTable::new(spec.clone(), codes).unwrap()
        })
    }

    /// Two levels whose nodes have many children, and one where they have few.
    pub(crate) fn dense_table() -> impl Strategy<Value = SidTable> {
        prop::collection::vec((0u16..3, 0u16..70, 0u16..300), 100..400).prop_map(|rows| {
            let spec = SidSpec { codebook_sizes: vec![3, 70, 300], suffix_size: None };
            SidTable::new(spec, rows.into_iter().flat_map(|(a, b, c)| [a, b, c]).collect()).unwrap()
        })
    }

    fn walk(trie: &Trie, level: usize, node: u32, path: &mut Vec<Code>, found: &mut BTreeMap<Vec<Code>, Vec<ItemIdx>>) {
        if level == trie.levels() {
            assert!(found.insert(path.clone(), trie.items(node).to_vec()).is_none());
            return;
        }
        let (codes, children) = trie.children(level, node);
        assert!(codes.iter().zip(codes.iter().skip(1)).all(|(a, b)| a < b));
        for (code, child) in codes.iter().zip(children) {
            assert_eq!(trie.parent(level + 1, child), node);
            assert_eq!(codes.position(code), Some((child - trie.children(level, node).1.start) as usize));
            if let Some(row) = trie.row(level, node) {
                assert_eq!(row[usize::from(code) / 32] >> (code % 32) & 1, 1);
                assert_eq!(row.iter().map(|word| word.count_ones() as usize).sum::<usize>(), codes.len());
            }
            path.push(code);
            walk(trie, level + 1, child, path, found);
            path.pop();
        }
    }

    #[test]
    fn arrays_by_hand() {
        let spec = SidSpec { codebook_sizes: vec![3, 9], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![2, 0, 0, 7, 2, 0, 0, 5]).unwrap()).unwrap();
        assert_eq!((trie.nodes(0), trie.nodes(1), trie.nodes(2), trie.items_total()), (1, 2, 3, 4));
        assert_eq!(trie.children(0, 0), (Codes::Narrow(&[0, 2]), 0..2));
        assert_eq!(trie.children(1, 0), (Codes::Narrow(&[5, 7]), 0..2));
        assert_eq!(trie.children(1, 1), (Codes::Narrow(&[0]), 2..3));
        assert_eq!(trie.items(2), [ItemIdx(0), ItemIdx(2)]);
        assert_eq!(trie.items_below(1, 0), [ItemIdx(3), ItemIdx(1)]);
        assert_eq!(trie.find(&[2]), Some(1));
        assert_eq!((trie.find(&[1]), trie.find(&[0, 6]), trie.find(&[0, 5, 0])), (None, None, None));
        assert_eq!((trie.leaf(ItemIdx(1)), trie.leaf(ItemIdx(4))), (Some(1), None));
    }

    #[test]
    fn shared_ids_go_by_hash() {
        let spec = SidSpec { codebook_sizes: vec![2], suffix_size: None };
        let table = SidTable::new(spec, vec![1, 1, 0, 1]).unwrap();
        let trie = Trie::build_with_ties(&table, &[7, 3, 0, 5]).unwrap();
        assert_eq!(trie.items(1), [ItemIdx(1), ItemIdx(3), ItemIdx(0)]);
        assert!(Trie::build_with_ties(&table, &[7]).is_err());
    }

    #[test]
    fn no_items_leave_the_root() {
        let spec = SidSpec { codebook_sizes: vec![2, 2], suffix_size: Some(1) };
        let trie = Trie::build(&SidTable::new(spec, vec![]).unwrap()).unwrap();
        assert_eq!(trie.items_total(), 0);
        assert_eq!((trie.nodes(0), trie.nodes(3)), (1, 0));
        assert!(trie.children(0, 0).0.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        /// Invariant 1: every ID of the table is a path of the trie and every path is in the table.
        #[test]
        fn paths_are_the_ids(table in prop_oneof![8 => table(), 1 => dense_table()]) {
            let trie = Trie::build(&table).unwrap();
            let mut found = BTreeMap::new();
            walk(&trie, 0, 0, &mut Vec::new(), &mut found);
            let mut expected: BTreeMap<Vec<Code>, Vec<ItemIdx>> = BTreeMap::new();
            for item in (0..table.items() as u32).map(ItemIdx) {
                expected.entry(table.codes(item).to_vec()).or_default().push(item);
                prop_assert_eq!(trie.find(table.codes(item)), trie.leaf(item));
            }
            prop_assert_eq!(found, expected);
        }

        /// Packed in one word, in two, or compared row by row: the same trie. Wide levels and many rows included.
        #[test]
        fn every_way_of_sorting_gives_the_same_trie(
            sizes in prop::collection::vec(prop_oneof![Just(1u32), Just(3), Just(70), Just(300), Just(65_536)], 1..9),
            raw in prop::collection::vec(any::<u16>(), 0..900),
            split in 0u32..7,
        ) {
            let spec = SidSpec { codebook_sizes: sizes, suffix_size: None };
            let len = spec.len();
            let fit = |(at, code): (usize, &u16)| (u32::from(*code) % spec.codes_at(at % len).min(9)) as Code;
            let codes = raw[..raw.len() / len * len].iter().enumerate().map(fit).collect();
            let table = SidTable::new(spec.clone(), codes).unwrap();
            let mut plain = Builder::new(len);
            let mut items: Vec<ItemIdx> = (0..table.items() as u32).map(ItemIdx).collect();
            items.sort_by(|a, b| table.codes(*a).cmp(table.codes(*b)).then(a.cmp(b)));
            items.iter().for_each(|item| plain.push(table.codes(*item), *item));
            let plain = plain.finish(spec.clone());
            prop_assert_eq!(&Trie::build(&table).unwrap(), &plain);

            let mut packing = Packing::of(&table);
            packing.split = split.min(packing.bits());
            let width = packing.bits() - packing.split + packing.place_bits;
            let mut builder = Builder::new(len);
            if width <= 64 {
                packing.sorted::<u64>(&table, |row| row, |s| packing.walk(&s, &mut builder, |row| row, ItemIdx));
            } else if width <= 128 {
                packing.sorted::<u128>(&table, |row| row, |s| packing.walk(&s, &mut builder, |row| row, ItemIdx));
            } else {
                return Ok(());
            }
            prop_assert_eq!(&builder.finish(spec), &plain);
        }

        /// Items with several IDs stand at each of them once.
        #[test]
        fn items_may_have_several_ids(table in table(), owners in prop::collection::vec(0u32..9, 160)) {
            let owners: Vec<ItemIdx> = owners[..table.items()].iter().map(|owner| ItemIdx(*owner)).collect();
            let trie = Trie::build_aliases(&table, &owners).unwrap();
            let mut expected: BTreeMap<Vec<Code>, Vec<ItemIdx>> = BTreeMap::new();
            for (row, owner) in owners.iter().enumerate() {
                expected.entry(table.codes(ItemIdx(row as u32)).to_vec()).or_default().push(*owner);
            }
            for items in expected.values_mut() {
                items.sort_unstable();
                items.dedup();
            }
            let mut found = BTreeMap::new();
            walk(&trie, 0, 0, &mut Vec::new(), &mut found);
            prop_assert_eq!(&found, &expected);
            for owner in (0..10).map(ItemIdx) {
                let leaves: Vec<_> = trie.leaves(owner).map(|leaf| trie.items(leaf).to_vec()).collect();
                let holders: Vec<_> = expected.values().filter(|items| items.contains(&owner)).cloned().collect();
                prop_assert_eq!(leaves, holders);
            }
        }
    }
}
