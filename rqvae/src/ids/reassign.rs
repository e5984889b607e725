//! Items that collide move to other codes of the last level: to the nearest free one, or all at the least total cost.
//!
//! Only items with equal prefixes compete, so every prefix is settled on its own, by content and by hashes of item ids,
//! never by the order of items. Where a prefix has more items than the last level has codes, some still collide.
//!
//! Shapes: codes (items, levels), what the last level quantises (items, dim), its codewords (size, dim).
//! Paper: Zheng et al. 2024 (LC-Rec), sec. 3.1, gives the last level to items evenly by optimal transport.
//! Deviations: the transport is the exact assignment (Kuhn 1955, Munkres 1957), and only where items collide.

use super::sid::Code;
use super::table::CodeMatrix;
use crate::cluster::squared_distance;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Prefixes with more items than this are settled one item after the other: the exact assignment takes cubic time.
const EXACT: usize = 1024;

/// What the last level of a quantiser chooses from.
#[derive(Debug, Clone, PartialEq)]
pub struct LastLevel {
    /// Width of a residual.
    pub dim: usize,
    /// What the levels before left over: (items, dim).
    pub residuals: Vec<f32>,
    /// Codewords of the last level: (size, dim).
    pub codewords: Vec<f32>,
}

/// How colliding items find other codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reassignment {
    /// The item nearest to the code keeps it; the others, nearest first, take their nearest free one.
    NearestFree,
    /// The items of a prefix get distinct codes with the least sum of squared distances.
    MinCost,
}

/// New codes (items, levels) in which only the last level differs; `tie_hash` (items,) settles equal distances.
///
/// # Errors
/// [`Error::ShapeMismatch`] when the arguments do not belong together.
pub fn reassign(codes: &CodeMatrix, last: &LastLevel, how: Reassignment, tie_hash: &[u64]) -> Result<CodeMatrix> {
    let (items, levels, dim) = (codes.rows(), codes.levels(), last.dim);
    if dim == 0 || last.residuals.len() != items * dim || !last.codewords.len().is_multiple_of(dim) {
        let got = format!("{} numbers of width {dim}", last.residuals.len());
        return Err(Error::shape("residuals of the last level", format!("{items} rows"), got));
    }
    if tie_hash.len() != items {
        return Err(Error::shape("tie hashes", format!("{items} items"), tie_hash.len()));
    }
    let size = last.codewords.len() / dim;
    if let Some(code) = (0..items).map(|i| codes.row(i)[levels - 1]).find(|&code| usize::from(code) >= size) {
        return Err(Error::shape("code of the last level", format!("below {size}"), code));
    }
    let mut order: Vec<u32> = (0..items as u32).collect();
    order.sort_unstable_by_key(|&i| (codes.row(i as usize), tie_hash[i as usize], i));
    let prefix = |i: u32| &codes.row(i as usize)[..levels - 1];
    let crowded = |group: &&[u32]| group.windows(2).any(|w| codes.row(w[0] as usize) == codes.row(w[1] as usize));
    let groups: Vec<&[u32]> = order.chunk_by(|a, b| prefix(*a) == prefix(*b)).filter(crowded).collect();
    let settled: Vec<Vec<Code>> = groups
        .par_iter()
        .map(|group| {
            let cost = |row: usize, code: usize| {
                let residual = &last.residuals[group[row] as usize * dim..][..dim];
                squared_distance(residual, &last.codewords[code * dim..][..dim])
            };
            let own: Vec<Code> = group.iter().map(|&i| codes.row(i as usize)[levels - 1]).collect();
            match how {
                Reassignment::MinCost if group.len() <= EXACT.min(size) => assign(group.len(), size, cost),
                _ => nearest_free(&own, size, cost),
            }
        })
        .collect();
    let mut flat = codes.flat().to_vec();
    for (group, codes) in groups.iter().zip(settled) {
        for (&item, code) in group.iter().zip(codes) {
            flat[item as usize * levels + levels - 1] = code;
        }
    }
    CodeMatrix::new(levels, flat)
}

/// Codes of a group: of the holders of a code the nearest keeps it, the others move in order of their distance.
fn nearest_free(own: &[Code], size: usize, cost: impl Fn(usize, usize) -> f32) -> Vec<Code> {
    let mut order: Vec<usize> = (0..own.len()).collect();
    // A stable sort: equal distances stay in the order of the hashes.
    order.sort_by(|&a, &b| cost(a, usize::from(own[a])).total_cmp(&cost(b, usize::from(own[b]))));
    let mut taken = vec![false; size];
    let mut codes = own.to_vec();
    let (first, rest): (Vec<usize>, Vec<usize>) =
        order.into_iter().partition(|&row| !std::mem::replace(&mut taken[usize::from(own[row])], true));
    debug_assert!(first.len() <= size);
    for row in rest {
        let free = (0..size).filter(|&code| !taken[code]);
        if let Some(code) = free.min_by(|&a, &b| cost(row, a).total_cmp(&cost(row, b))) {
            taken[code] = true;
            codes[row] = code as Code;
        }
    }
    codes
}

/// Distinct codes for `rows` items, at most `size` of them, with the least sum of costs: shortest augmenting paths over
/// dual prices.
fn assign(rows: usize, size: usize, cost: impl Fn(usize, usize) -> f32) -> Vec<Code> {
    // Row and column 0 stand for "none"; holder[c] is the row that column c belongs to.
    let (mut row_price, mut column_price) = (vec![0f64; rows + 1], vec![0f64; size + 1]);
    let mut holder = vec![0; size + 1];
    for row in 1..=rows {
        holder[0] = row;
        let mut column = 0;
        let (mut least, mut from) = (vec![f64::INFINITY; size + 1], vec![0; size + 1]);
        let mut done = vec![false; size + 1];
        while holder[column] != 0 {
            done[column] = true;
            let at = holder[column];
            let (mut delta, mut next) = (f64::INFINITY, 0);
            for c in (1..=size).filter(|&c| !done[c]) {
                let reduced = f64::from(cost(at - 1, c - 1)) - row_price[at] - column_price[c];
                if reduced < least[c] {
                    (least[c], from[c]) = (reduced, column);
                }
                if least[c] < delta {
                    (delta, next) = (least[c], c);
                }
            }
            for c in 0..=size {
                if done[c] {
                    row_price[holder[c]] += delta;
                    column_price[c] -= delta;
                } else {
                    least[c] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            holder[column] = holder[from[column]];
            column = from[column];
        }
    }
    let mut codes = vec![0; rows];
    for (column, &row) in holder.iter().enumerate().skip(1).filter(|(_, row)| **row != 0) {
        codes[row - 1] = (column - 1) as Code;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SidStats;
    use proptest::prelude::*;

    fn line(codes: &[Code], residuals: &[f32], how: Reassignment) -> Vec<Code> {
        let last = LastLevel { dim: 1, residuals: residuals.to_vec(), codewords: vec![0.0, 1.0, 2.0, 3.0] };
        let codes = CodeMatrix::new(1, codes.to_vec()).unwrap();
        let hashes: Vec<u64> = (0..codes.rows() as u64).collect();
        reassign(&codes, &last, how, &hashes).unwrap().flat().to_vec()
    }

    #[test]
    fn greedy_and_least_cost_differ_on_paper() {
        // Greedy: 1.1 keeps 1, 1.9 keeps 2, 1.4 goes to 0: .01 + 1.96 + .01.
        let (codes, residuals) = ([1, 1, 2], [1.1, 1.4, 1.9]);
        assert_eq!(line(&codes, &residuals, Reassignment::NearestFree), [1, 0, 2]);
        // At least cost 1.1 gives way: 1.21 + .16 + .01.
        assert_eq!(line(&codes, &residuals, Reassignment::MinCost), [0, 1, 2]);
    }

    #[test]
    fn too_many_items_leave_collisions_and_wrong_shapes_are_refused() {
        let codes = line(&[0; 6], &[0.0; 6], Reassignment::MinCost);
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted, [0, 1, 2, 3]);
        let last = LastLevel { dim: 1, residuals: vec![0.0], codewords: vec![0.0] };
        let two = CodeMatrix::new(1, vec![0, 0]).unwrap();
        assert!(reassign(&two, &last, Reassignment::MinCost, &[1, 2]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Prefixes stay, collisions never grow, none are left where there is room, and the exact way costs least.
        #[test]
        fn collisions_go_and_prefixes_stay(rows in prop::collection::vec((0u16..3, 0u16..6, -2f32..8.0), 1..24)) {
            let codes = CodeMatrix::new(2, rows.iter().flat_map(|r| [r.0, r.1]).collect()).unwrap();
            let residuals: Vec<f32> = rows.iter().map(|r| r.2).collect();
            let codewords: Vec<f32> = (0..6u8).map(f32::from).collect();
            let last = LastLevel { dim: 1, residuals: residuals.clone(), codewords };
            let hashes: Vec<u64> = (0..rows.len() as u64).map(|i| i * 7 % 31).collect();
            let unique = |codes: &CodeMatrix| SidStats::of(codes, &[]).unique_prefixes;
            let cost = |codes: &CodeMatrix| -> f32 {
                (0..rows.len()).map(|i| (residuals[i] - f32::from(codes.row(i)[1])).powi(2)).sum()
            };
            let greedy = reassign(&codes, &last, Reassignment::NearestFree, &hashes).unwrap();
            let exact = reassign(&codes, &last, Reassignment::MinCost, &hashes).unwrap();
            for new in [&greedy, &exact] {
                prop_assert!((0..rows.len()).all(|i| new.row(i)[0] == rows[i].0));
                prop_assert!(unique(new) >= unique(&codes));
            }
            if (0..3).all(|prefix| rows.iter().filter(|r| r.0 == prefix).count() <= 6) {
                prop_assert_eq!(unique(&greedy), rows.len());
                prop_assert_eq!(unique(&exact), rows.len());
                prop_assert!(cost(&exact) <= cost(&greedy) + 1e-3);
            }
        }
    }
}
