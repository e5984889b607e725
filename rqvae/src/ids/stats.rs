//! How well codes are used and how often they collide.

use super::table::{CodeMatrix, SidTable};
use serde::{Deserialize, Serialize};

/// Statistics of the codes of a catalogue, suffix left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SidStats {
    /// Number of items.
    pub items: usize,
    /// Levels, suffix left out.
    pub levels: usize,
    /// Codes per level.
    pub codebook_sizes: Vec<u32>,
    /// Fraction of codes used, per level.
    pub usage: Vec<f64>,
    /// Exponential of the entropy of the codes, per level: how many codes equally used ones would be.
    pub perplexity: Vec<f64>,
    /// Distinct code tuples.
    pub unique_prefixes: usize,
    /// Distinct code tuples per item.
    pub unique_fraction: f64,
    /// Most items with the same codes.
    pub max_group: usize,
    /// Values of the suffix, 0 without.
    pub suffix_size: u32,
}

impl SidStats {
    /// Statistics of codes (items, levels) with `sizes` (levels,).
    pub fn of(codes: &CodeMatrix, sizes: &[u32]) -> Self {
        let (items, levels) = (codes.rows(), codes.levels());
        let (mut usage, mut perplexity) = (Vec::new(), Vec::new());
        for (level, &size) in sizes.iter().enumerate() {
            let mut counts = vec![0u64; size as usize];
            for i in 0..items {
                if let Some(count) = codes.row(i).get(level).and_then(|&c| counts.get_mut(usize::from(c))) {
                    *count += 1;
                }
            }
            let used = counts.iter().filter(|&&c| c > 0).count();
            let entropy: f64 =
                counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / items as f64).map(|p| -p * p.ln()).sum();
            usage.push(used as f64 / f64::from(size.max(1)));
            perplexity.push(if items == 0 { 0.0 } else { entropy.exp() });
        }
        let mut order: Vec<u32> = (0..items as u32).collect();
        order.sort_unstable_by_key(|&i| codes.row(i as usize));
        let (mut unique_prefixes, mut max_group) = (0, 0);
        for group in order.chunk_by(|&a, &b| codes.row(a as usize) == codes.row(b as usize)) {
            unique_prefixes += 1;
            max_group = max_group.max(group.len());
        }
        let unique_fraction = if items == 0 { 1.0 } else { unique_prefixes as f64 / items as f64 };
        Self {
            items,
            levels,
            codebook_sizes: sizes.to_vec(),
            usage,
            perplexity,
            unique_prefixes,
            unique_fraction,
            max_group,
            suffix_size: 0,
        }
    }

    /// Statistics of a table.
    pub fn of_table(table: &SidTable) -> Self {
        let (levels, len) = (table.spec().levels(), table.spec().len());
        let data = table.flat().chunks_exact(len).flat_map(|row| &row[..levels]).copied().collect();
        let codes = CodeMatrix::new(levels, data).expect("a whole number of rows was taken");
        let suffix_size = table.spec().suffix_size.unwrap_or(0);
        Self { suffix_size, ..Self::of(&codes, &table.spec().codebook_sizes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CollisionPolicy, resolve};

    #[test]
    fn counts_on_paper() {
        let codes = CodeMatrix::new(2, vec![0, 0, 0, 0, 1, 0, 1, 1]).unwrap();
        let stats = SidStats::of(&codes, &[4, 2]);
        assert_eq!((stats.unique_prefixes, stats.max_group), (3, 2));
        assert_eq!(stats.usage, [0.5, 1.0]);
        assert!((stats.perplexity[0] - 2.0).abs() < 1e-12);
        assert!((stats.unique_fraction - 0.75).abs() < 1e-12);
        let table = resolve(&codes, &[4, 2], &CollisionPolicy::Suffix { max: 9 }, &[1, 2, 3, 4]).unwrap();
        assert_eq!(SidStats::of_table(&table), SidStats { suffix_size: 4, ..stats });
    }

    #[test]
    fn nothing_is_finite() {
        let stats = SidStats::of(&CodeMatrix::new(1, vec![]).unwrap(), &[4]);
        assert_eq!((stats.perplexity[0], stats.unique_fraction, stats.max_group), (0.0, 1.0, 0));
    }
}
