//! The one total order on candidates: higher score, then smaller parent rank, then smaller code.
//!
//! Every kernel and the oracle use it, so that ties never depend on threads or devices.

use crate::math::{LANES, exp, fold, ln};
use rqvae::Code;

/// A candidate of one request as one number; the greater one is the better one.
///
/// High half: the bits of the score, changed so that their order is that of the numbers. Low half: the complement of
/// `parent rank * codes of the level + code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CandidateKey(u64);

impl CandidateKey {
    /// The key of a finite score; `None` for NaN and infinities, which mean "impossible".
    #[inline]
    pub fn new(score: f32, index: u32) -> Option<Self> {
        // Adding zero turns -0.0 into 0.0: they are equal, so the index has to decide.
        let bits = (score + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        score.is_finite().then_some(Self(u64::from(ordered) << 32 | u64::from(!index)))
    }

    /// The score it was made of.
    pub fn score(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    /// The index it was made of.
    pub fn index(self) -> u32 {
        !(self.0 as u32)
    }
}

/// Log of the summed probabilities of `codes`: what [`crate::ScoreMode::ValidOnly`] divides by.
///
/// Impossible codes add nothing; negative infinity when all are.
///
/// The codes are summed in the lanes of [`crate::math`], by their places.
pub(crate) fn log_sum(log_probs: &[f32], codes: &(impl Iterator<Item = Code> + Clone)) -> f32 {
    let values = || codes.clone().map(|code| log_probs[usize::from(code)]);
    let max = values().filter(|x| x.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return max;
    }
    let mut lanes = [0.0; LANES];
    for (place, x) in values().enumerate() {
        lanes[place % LANES] += if x.is_finite() { exp(x - max) } else { 0.0 };
    }
    max + ln(fold(lanes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    #[test]
    fn impossible_scores_have_no_key_and_zeros_are_equal() {
        for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(CandidateKey::new(score, 0), None);
        }
        assert_eq!(CandidateKey::new(-0.0, 7), CandidateKey::new(0.0, 7));
        assert!(CandidateKey::new(f32::MIN, u32::MAX).unwrap() < CandidateKey::new(f32::MIN, 0).unwrap());
    }

    #[test]
    fn log_sum_by_hand() {
        let log_probs = [0.5f32.ln(), 0.25f32.ln(), f32::NEG_INFINITY, 0.25f32.ln()];
        assert!((log_sum(&log_probs, &[0, 1, 2].into_iter()) - 0.75f32.ln()).abs() < 1e-6);
        assert!(log_sum(&log_probs, &[2].into_iter()).is_infinite());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn keys_order_as_scores_then_indices(a in prop::num::f32::NORMAL, b in prop::num::f32::NORMAL, i: u32, j: u32) {
            let (x, y) = (CandidateKey::new(a, i).unwrap(), CandidateKey::new(b, j).unwrap());
            prop_assert_eq!((x.score(), x.index()), (a, i));
            let expected = a.partial_cmp(&b).unwrap_or(Ordering::Equal).then(j.cmp(&i));
            prop_assert_eq!(x.cmp(&y), expected);
            prop_assert_eq!(CandidateKey::new(a, i).cmp(&CandidateKey::new(a, j)), j.cmp(&i));
        }
    }
}
