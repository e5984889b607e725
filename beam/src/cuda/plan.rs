//! Device memory planned on the host: one block, cut into named regions.

/// Regions begin on multiples of so many bytes: whole lines of the cache, and more than any piece that kernels read.
const ALIGN: usize = 256;

/// Part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// From the beginning of the block.
    pub offset: usize,
    /// How much was asked for.
    pub bytes: usize,
}

/// A block that grows by what is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    regions: Vec<(&'static str, Region)>,
    bytes: usize,
}

impl Plan {
    /// Room for `count` values of `size` bytes each, behind everything before.
    pub fn take(&mut self, name: &'static str, count: usize, size: usize) -> Region {
        let region = Region { offset: self.bytes, bytes: count * size };
        self.bytes += region.bytes.next_multiple_of(ALIGN);
        self.regions.push((name, region));
        region
    }

    /// Of the whole block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All regions by name, in order.
    pub fn regions(&self) -> &[(&'static str, Region)] {
        &self.regions
    }
}

/// The size from a ladder for `n`: exact up to 4, then in steps of a quarter of the power of two below, so that at most a
/// fifth is wasted and few programs are enough for all sizes.
pub fn bucket(n: usize) -> usize {
    if n <= 4 {
        return n.max(1);
    }
    let step = (n.next_power_of_two() / 8).max(1);
    n.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn regions_lie_behind_each_other(sizes in prop::collection::vec((0usize..5000, 1usize..9), 0..40)) {
            let mut plan = Plan::default();
            for (count, size) in &sizes {
                plan.take("some", *count, *size);
            }
            let mut end = 0;
            for (_, region) in plan.regions() {
                prop_assert!(region.offset >= end && region.offset % ALIGN == 0);
                end = region.offset + region.bytes;
            }
            prop_assert!(end <= plan.bytes());
        }

        #[test]
        fn buckets_hold_and_waste_little(n in 1usize..100_000) {
            let size = bucket(n);
            prop_assert!(size >= n && (size - n) * 4 <= n);
            prop_assert_eq!(bucket(size), size);
            prop_assert!(bucket(n + 1) >= size);
        }
    }

    #[test]
    fn few_buckets_are_enough() {
        let sizes: std::collections::BTreeSet<_> = (1..=1024).map(bucket).collect();
        assert!(sizes.len() <= 40, "{sizes:?}");
    }
}
