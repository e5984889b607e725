//! What searches with packed weights have in common with those on tensors, for tests of both.

use beam::Hypothesis;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sums of a few hundred products of numbers around 1, in another order, through some layers.
pub(crate) const TOLERANCE: f32 = 2e-4;

/// Searches that may find something else: where two paths are as good as each other inside of one, either may be kept.
pub(crate) struct Ties(AtomicUsize);

impl Ties {
    /// So many at most.
    pub(crate) const fn at_most(count: usize) -> Self {
        Self(AtomicUsize::new(count))
    }

    /// Whether both lists have the same scores at every rank, and the same items wherever neighbours in rank are further apart
    /// than the tolerance. Or, as long as there may be ties, whether what was found has the scores that it has among `all` items.
    pub(crate) fn agree(
        &self,
        found: &[Hypothesis],
        expected: &[Hypothesis],
        all: impl FnOnce() -> Vec<Hypothesis>,
    ) -> bool {
        if same(found, expected) {
            return true;
        }
        let all = all();
        let known = |one: &Hypothesis| all.iter().any(|other| other.item == one.item && close(one, other));
        found.len() == expected.len()
            && found.iter().all(known)
            && self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

fn close(one: &Hypothesis, other: &Hypothesis) -> bool {
    (one.log_prob - other.log_prob).abs() < TOLERANCE
}

fn same(found: &[Hypothesis], expected: &[Hypothesis]) -> bool {
    let apart = |other: Option<&Hypothesis>, one: &Hypothesis| other.is_none_or(|other| !close(other, one));
    let same = |(at, (a, b)): (usize, (&Hypothesis, &Hypothesis))| {
        // At the end of the list the next one is not known.
        let last = at + 1 == expected.len();
        let alone = !last && (at == 0 || apart(expected.get(at - 1), b)) && apart(expected.get(at + 1), b);
        close(a, b) && (!alone || a.item == b.item)
    };
    found.len() == expected.len() && found.iter().zip(expected).enumerate().all(same)
}
