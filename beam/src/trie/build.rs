//! Building: sort the IDs by one counting pass per level, then one walk that opens nodes where neighbours part.

use super::Trie;
use crate::{Error, Result};
use rqvae::{ItemIdx, SidTable};

impl Trie {
    /// The trie of all IDs of `table`. Items that share an ID stay in the order of the table; a catalogue in which
    /// they do is better served by [`Trie::build_with_ties`].
    ///
    /// # Errors
    /// The table does not fit 32-bit numbers.
    pub fn build(table: &SidTable) -> Result<Self> {
        let items = u32::try_from(table.items()).map_err(|_| too_many(table))?;
        Ok(Self::from_order(table, (0..items).collect()))
    }

    /// As [`Trie::build`]; items that share an ID are ordered by ascending `tie_hash` (items,).
    ///
    /// # Errors
    /// `tie_hash` does not belong to the table, or the table does not fit 32-bit numbers.
    pub fn build_with_ties(table: &SidTable, tie_hash: &[u64]) -> Result<Self> {
        if tie_hash.len() != table.items() {
            return Err(Error::shape("tie hashes", format!("{} items", table.items()), tie_hash.len()));
        }
        let items = u32::try_from(table.items()).map_err(|_| too_many(table))?;
        let mut order: Vec<u32> = (0..items).collect();
        order.sort_unstable_by_key(|item| (tie_hash[*item as usize], *item));
        Ok(Self::from_order(table, order))
    }

    fn from_order(table: &SidTable, mut order: Vec<u32>) -> Self {
        let levels = table.spec().len();
        let flat = table.flat();
        let mut scratch = vec![0; order.len()];
        for level in (0..levels).rev() {
            let code = |item: u32| usize::from(flat[item as usize * levels + level]);
            counting_sort(&order, &mut scratch, table.spec().codes_at(level) as usize, code);
            std::mem::swap(&mut order, &mut scratch);
        }
        drop(scratch);

        let mut codes = vec![Vec::new(); levels];
        let mut starts = vec![Vec::new(); levels + 1];
        if !order.is_empty() {
            starts[0].push(0);
        }
        let mut last: Option<&[u16]> = None;
        for (at, item) in order.iter().enumerate() {
            let row = table.codes(ItemIdx(*item));
            // The first code that differs from the neighbour before opens a node on its level and on all below.
            let shared = match last {
                Some(last) => row.iter().zip(last).take_while(|(a, b)| a == b).count(),
                None => 0,
            };
            for level in shared..levels {
                codes[level].push(row[level]);
                let below = if level + 1 < levels { codes[level + 1].len() } else { at };
                starts[level + 1].push(below as u32);
            }
            last = Some(row);
        }
        // Every array of starts ends with the length of what it points into; the root is there without items too.
        if order.is_empty() {
            starts[0].push(0);
        }
        for level in 0..levels {
            let below = codes[level].len() as u32;
            starts[level].push(below);
        }
        starts[levels].push(order.len() as u32);
        Self::new(table.spec().clone(), codes, starts, order.into_iter().map(ItemIdx).collect())
    }
}

fn too_many(table: &SidTable) -> Error {
    Error::shape("SID table", format!("at most {} items", u32::MAX), table.items())
}

/// Writes `order` to `sorted` by ascending `digit`, equal ones in the order they had.
fn counting_sort(order: &[u32], sorted: &mut [u32], digits: usize, digit: impl Fn(u32) -> usize) {
    let mut places = vec![0u32; digits + 1];
    for item in order {
        places[digit(*item) + 1] += 1;
    }
    for at in 1..places.len() {
        places[at] += places[at - 1];
    }
    for item in order {
        let place = &mut places[digit(*item)];
        sorted[*place as usize] = *item;
        *place += 1;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rqvae::{Code, SidSpec};
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

    fn walk(trie: &Trie, level: usize, node: u32, path: &mut Vec<Code>, found: &mut BTreeMap<Vec<Code>, Vec<ItemIdx>>) {
        if level == trie.levels() {
            assert!(found.insert(path.clone(), trie.items(node).to_vec()).is_none());
            return;
        }
        let (codes, children) = trie.children(level, node);
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
        for (code, child) in codes.iter().zip(children) {
            assert_eq!(trie.parent(level + 1, child), node);
            path.push(*code);
            walk(trie, level + 1, child, path, found);
            path.pop();
        }
    }

    #[test]
    fn arrays_by_hand() {
        let spec = SidSpec { codebook_sizes: vec![3, 9], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![2, 0, 0, 7, 2, 0, 0, 5]).unwrap()).unwrap();
        assert_eq!((trie.nodes(0), trie.nodes(1), trie.nodes(2), trie.items_total()), (1, 2, 3, 4));
        assert_eq!(trie.children(0, 0), (&[0, 2][..], 0..2));
        assert_eq!(trie.children(1, 0), (&[5, 7][..], 0..2));
        assert_eq!(trie.children(1, 1), (&[0][..], 2..3));
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
        assert_eq!(trie.children(0, 0), (&[][..], 0..0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        /// Invariant 1: every ID of the table is a path of the trie and every path is in the table.
        #[test]
        fn paths_are_the_ids(table in table()) {
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
    }
}
