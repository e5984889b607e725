//! Several items, one ID: what to do.
//!
//! Paper: Rajput et al. 2023 (TIGER), sec. 3.1, appends a code that counts the holders of the same codes.
//! Deviations: the count goes by a hash of the item id, so neither the order nor the names of items matter.

use super::sid::{Code, MAX_CODES, SemanticId, SidSpec};
use super::table::{CodeMatrix, SidTable};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

const SHOWN_GROUPS: usize = 5;

/// What happens to items with equal codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CollisionPolicy {
    /// A further code numbers the holders of the same codes; more than `max` of them is an error.
    Suffix {
        /// Most items that may share their codes.
        max: u32,
    },
    /// They share one ID.
    Share,
}

/// Turns codes into the IDs of a catalogue: (items, levels) -> (items, levels or levels + 1).
///
/// Inside a group of equal codes the suffix goes by ascending `tie_hash` (items,); its size is one more than that of
/// the largest group, up to the next power of two and `max`, so that items which come later find a place.
///
/// # Errors
/// [`Error::Collisions`] when a group is larger than the policy allows; [`Error::ShapeMismatch`] when the arguments
/// do not belong together.
pub fn resolve(codes: &CodeMatrix, sizes: &[u32], policy: &CollisionPolicy, tie_hash: &[u64]) -> Result<SidTable> {
    if codes.levels() != sizes.len() {
        return Err(Error::shape("codebook sizes", format!("{} levels", codes.levels()), sizes.len()));
    }
    if codes.rows() != tie_hash.len() {
        return Err(Error::shape("tie hashes", format!("{} items", codes.rows()), tie_hash.len()));
    }
    let max = match *policy {
        CollisionPolicy::Share => {
            let spec = SidSpec { codebook_sizes: sizes.to_vec(), suffix_size: None };
            return SidTable::new(spec, codes.flat().to_vec());
        }
        CollisionPolicy::Suffix { max } => max,
    };
    if !(1..=u32::from(Code::MAX) + 1).contains(&max) {
        return Err(Error::config("suffix max", max, "1 to 65536"));
    }
    if sizes.len() >= MAX_CODES {
        return Err(Error::config("levels", sizes.len(), format!("at most {} with a suffix", MAX_CODES - 1)));
    }

    let groups = groups(codes, tie_hash);
    let mut too_large: Vec<&[u32]> =
        groups.chunk_by(|a, b| same(codes, *a, *b)).filter(|g| g.len() > max as usize).collect();
    if !too_large.is_empty() {
        too_large.sort_by_key(|group| std::cmp::Reverse(group.len()));
        let mut largest = String::new();
        for group in too_large.iter().take(SHOWN_GROUPS) {
            let sid = SemanticId::truncated(codes.row(group[0] as usize));
            let separator = if largest.is_empty() { "" } else { "; " };
            let _ = write!(largest, "{separator}{sid} with {} items", group.len());
        }
        return Err(Error::Collisions { max, groups: too_large.len(), largest });
    }

    let len = sizes.len() + 1;
    let mut flat = vec![0; codes.rows() * len];
    let mut suffix_size = 1;
    for group in groups.chunk_by(|a, b| same(codes, *a, *b)) {
        suffix_size = suffix_size.max(group.len() as u32);
        for (rank, &item) in group.iter().enumerate() {
            let row = &mut flat[item as usize * len..][..len];
            row[..len - 1].copy_from_slice(codes.row(item as usize));
            row[len - 1] = rank as Code;
        }
    }
    SidTable::new(SidSpec { codebook_sizes: sizes.to_vec(), suffix_size: Some(suffix_room(suffix_size, max)) }, flat)
}

/// Values of a suffix when the largest group has `largest` items: one more, up to the next power of two and `max`.
/// Models keep their shape while the catalogue grows.
pub fn suffix_room(largest: u32, max: u32) -> u32 {
    (largest + 1).next_power_of_two().min(max).max(largest)
}

/// Items sorted so that equal codes are neighbours, by `tie_hash` among them.
fn groups(codes: &CodeMatrix, tie_hash: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..codes.rows() as u32).collect();
    order.sort_unstable_by_key(|&i| (codes.row(i as usize), tie_hash[i as usize], i));
    order
}

fn same(codes: &CodeMatrix, a: u32, b: u32) -> bool {
    codes.row(a as usize) == codes.row(b as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemIdx;
    use proptest::prelude::*;

    #[test]
    fn suffix_goes_by_hash() {
        let codes = CodeMatrix::new(2, vec![1, 1, 0, 2, 1, 1, 1, 1]).unwrap();
        let table = resolve(&codes, &[2, 3], &CollisionPolicy::Suffix { max: 3 }, &[30, 5, 10, 20]).unwrap();
        assert_eq!(table.flat(), [1, 1, 2, 0, 2, 0, 1, 1, 0, 1, 1, 1]);
        assert_eq!(table.spec().suffix_size, Some(3));
        let shared = resolve(&codes, &[2, 3], &CollisionPolicy::Share, &[30, 5, 10, 20]).unwrap();
        assert_eq!((shared.flat(), shared.spec().suffix_size), (codes.flat(), None));
    }

    #[test]
    fn room_is_a_power_of_two_within_the_limit() {
        assert_eq!([1, 2, 3, 4, 7, 8].map(|largest| suffix_room(largest, 256)), [2, 4, 4, 8, 8, 16]);
        assert_eq!((suffix_room(9, 9), suffix_room(255, 256), suffix_room(200, 201)), (9, 256, 201));
    }

    #[test]
    fn too_large_a_group_is_named() {
        let codes = CodeMatrix::new(1, vec![4, 4, 4, 1]).unwrap();
        let error = resolve(&codes, &[5], &CollisionPolicy::Suffix { max: 2 }, &[1, 2, 3, 4]).unwrap_err();
        assert!(error.to_string().contains("largest: 4 with 3 items; more levels"), "{error}");
    }

    #[test]
    fn no_items_is_an_empty_table() {
        let codes = CodeMatrix::new(2, vec![]).unwrap();
        let table = resolve(&codes, &[2, 2], &CollisionPolicy::Suffix { max: 8 }, &[]).unwrap();
        assert_eq!((table.items(), table.spec().suffix_size), (0, Some(2)));
    }

    proptest! {
        /// Invariant 6: unique after the suffix, and the first codes are unchanged. Order of items does not matter.
        #[test]
        fn ids_are_unique_and_prefixes_unchanged(
            rows in prop::collection::vec((0u16..4, 0u16..3, any::<u64>()), 0..60), turn in 0usize..60,
        ) {
            let build = |rows: &[(u16, u16, u64)]| {
                let codes = CodeMatrix::new(2, rows.iter().flat_map(|r| [r.0, r.1]).collect()).unwrap();
                let hashes: Vec<u64> = rows.iter().map(|r| r.2).collect();
                resolve(&codes, &[4, 3], &CollisionPolicy::Suffix { max: 64 }, &hashes).unwrap()
            };
            let table = build(&rows);
            let mut sids: Vec<_> = (0..rows.len()).map(|i| table.sid(ItemIdx(i as u32))).collect();
            for (row, sid) in rows.iter().zip(&sids) {
                prop_assert_eq!(&sid.codes()[..2], [row.0, row.1]);
            }
            let mut turned = rows.clone();
            let turn = turn % rows.len().max(1);
            turned.rotate_left(turn);
            let again = build(&turned);
            for i in 0..rows.len() {
                let moved = ItemIdx(((i + rows.len() - turn) % rows.len()) as u32);
                prop_assert_eq!(sids[i], again.sid(moved));
            }
            sids.sort_unstable();
            prop_assert!(sids.windows(2).all(|w| w[0] != w[1]));
        }
    }
}
