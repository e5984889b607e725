//! The one total order on candidates: higher score, then smaller parent rank, then smaller code.

use crate::NodeId;
use rqvae::Code;
use std::cmp::Ordering;

/// A child that a beam may step to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) score: f32,
    /// Row of the parent in the last step's beams.
    pub(crate) parent: u32,
    pub(crate) code: Code,
    pub(crate) node: NodeId,
}

/// Best first.
pub(crate) fn compare(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.parent.cmp(&b.parent)).then(a.code.cmp(&b.code))
}

/// Keeps the best `width`, sorted.
pub(crate) fn keep_best(candidates: &mut Vec<Candidate>, width: usize) {
    if candidates.len() > width {
        candidates.select_nth_unstable_by(width, compare);
        candidates.truncate(width);
    }
    candidates.sort_unstable_by(compare);
}
