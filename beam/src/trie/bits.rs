//! A set of small numbers, one bit each.

/// Numbers below a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    /// None of the numbers below `len`.
    pub(crate) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// Those below `len` that `has` says yes to.
    pub(crate) fn of(len: usize, mut has: impl FnMut(usize) -> bool) -> Self {
        let word = |word: usize| {
            (word * 64..len.min(word * 64 + 64)).fold(0, |bits, at| bits | u64::from(has(at)) << (at % 64))
        };
        Self { words: (0..len.div_ceil(64)).map(word).collect(), len }
    }

    /// One bit a number, from the lowest bit on.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The bound.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether `at` is in the set; numbers beyond the bound are not.
    #[inline]
    pub(crate) fn has(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    #[inline]
    pub(crate) fn insert(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
    }

    /// Inserts; whether it was there before.
    pub(crate) fn replace(&mut self, at: usize) -> bool {
        let before = self.has(at);
        self.insert(at);
        before
    }

    /// How many of `range` are in the set, at a cost of its length over 64.
    pub(crate) fn count(&self, range: std::ops::Range<usize>) -> usize {
        if range.is_empty() {
            return 0;
        }
        let (first, last) = (range.start / 64, (range.end - 1) / 64);
        let upper = u64::MAX << (range.start % 64);
        let lower = u64::MAX >> (63 - (range.end - 1) % 64);
        if first == last {
            return (self.words[first] & upper & lower).count_ones() as usize;
        }
        let inner: u32 = self.words[first + 1..last].iter().map(|word| word.count_ones()).sum();
        let ends = (self.words[first] & upper).count_ones() + (self.words[last] & lower).count_ones();
        (inner + ends) as usize
    }

    /// The numbers in the set, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < 64).then_some(at * 64 + bit as usize)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_is_a_set(len in 1usize..300, picked in prop::collection::vec(any::<prop::sample::Index>(), 0..60), a in 0usize..300, b in 0usize..300) {
            let set: BTreeSet<usize> = picked.iter().map(|index| index.index(len)).collect();
            let bits = Bits::of(len, |at| set.contains(&at));
            let mut grown = Bits::new(len);
            for at in &set {
                prop_assert!(!grown.replace(*at) && grown.has(*at));
            }
            prop_assert_eq!(&grown, &bits);
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            let (a, b) = (a.min(b).min(len), a.max(b).min(len));
            prop_assert_eq!(bits.count(a..b), set.range(a..b).count());
            prop_assert!(!bits.has(len + 700));
        }
    }
}
