//! Counting: recall and gain for unseen and for warm targets, and by how often training has seen a target.

use crate::report::ColdStartRow;
use rqvae::ItemIdx;
use seqmodel::data::Case;
use seqmodel::{Ranks, Scored};
use serde::Serialize;

/// Recall at ten of targets that training has seen so often.
#[derive(Debug, Clone, Serialize)]
pub struct RampRow {
    /// Name of the method.
    pub method: String,
    /// Share of the list for unseen items, where the method has one.
    pub epsilon: Option<f64>,
    /// Occurrences in training, such as `3-5`.
    pub seen: String,
    /// Users with such a target.
    pub users: usize,
    /// Recall over them.
    pub recall: f64,
    /// Half-width of its 95 % interval.
    pub ci95: f64,
}

/// A method against another one on the same users, lists of ten.
#[derive(Debug, Clone, Serialize)]
pub struct Paired {
    /// Name of the method.
    pub method: String,
    /// Share of the list for unseen items, where the method has one.
    pub epsilon: Option<f64>,
    /// The other method.
    pub against: String,
    /// Recall over unseen targets, minus that of the other method.
    pub unseen: f64,
    /// Half-width of the 95 % interval of this difference.
    pub unseen_ci95: f64,
    /// Two-sided p-value of McNemar's test of it.
    pub unseen_p: f64,
    /// The same over all users.
    pub all: f64,
    /// Half-width of the 95 % interval of this difference.
    pub all_ci95: f64,
}

/// Lowest counts of the steps of the ramp.
const STEPS: [u32; 7] = [0, 1, 3, 6, 11, 21, 51];

fn ranks<'a>(cases: &'a [Case], lists: &'a [Vec<Scored>], keep: impl Fn(&Case) -> bool + 'a) -> Ranks {
    let rank = |(case, list): (&Case, &Vec<Scored>)| {
        list.iter().position(|scored| scored.item == case.target).map(|at| at as u32 + 1)
    };
    Ranks(cases.iter().zip(lists).filter(|(case, _)| keep(case)).map(rank).collect())
}

/// The row of a method, and the half-width of its recall over unseen targets.
pub(super) fn row(
    method: &str,
    epsilon: Option<f64>,
    k: usize,
    cases: &[Case],
    lists: &[Vec<Scored>],
    unseen: &dyn Fn(ItemIdx) -> bool,
) -> (ColdStartRow, f64) {
    let cold = ranks(cases, lists, |case| unseen(case.target));
    let warm = ranks(cases, lists, |case| !unseen(case.target));
    let all = ranks(cases, lists, |_| true);
    let shown = lists.iter().flatten().count();
    let shown_unseen = lists.iter().flatten().filter(|scored| unseen(scored.item)).count();
    let k32 = k as u32;
    let row = ColdStartRow {
        method: method.to_string(),
        epsilon,
        k,
        recall_unseen: cold.recall_at(k32),
        ndcg_unseen: cold.ndcg_at(k32),
        recall_all: all.recall_at(k32),
        ndcg_all: all.ndcg_at(k32),
        recall_warm: warm.recall_at(k32),
        unseen_share: shown_unseen as f64 / shown.max(1) as f64,
    };
    let width = half_width(row.recall_unseen, cold.0.len());
    (row, width)
}

/// The half-width of the 95 % interval of a share over `users`: what the bootstrap over users converges to.
fn half_width(share: f64, users: usize) -> f64 {
    1.96 * (share * (1.0 - share) / users.max(1) as f64).sqrt()
}

/// `lists` of a method against those of `other`, its name first; both of ten.
pub(super) fn paired(
    (method, epsilon, lists): (&str, Option<f64>, &[Vec<Scored>]),
    (against, other): (&str, &[Vec<Scored>]),
    cases: &[Case],
    unseen: &dyn Fn(ItemIdx) -> bool,
) -> Paired {
    let hit = |list: &[Scored], case: &Case| list.iter().take(10).any(|scored| scored.item == case.target);
    let (mut cold, mut all) = ((0usize, 0usize, 0usize), (0usize, 0usize, 0usize));
    for ((case, list), other) in cases.iter().zip(lists).zip(other) {
        let (ours, theirs) = (hit(list, case), hit(other, case));
        let add = |side: &mut (usize, usize, usize)| {
            side.0 += 1;
            side.1 += usize::from(ours && !theirs);
            side.2 += usize::from(theirs && !ours);
        };
        add(&mut all);
        if unseen(case.target) {
            add(&mut cold);
        }
    }
    let difference = |(users, ours, theirs): (usize, usize, usize)| {
        let (n, b, c) = (users.max(1) as f64, ours as f64, theirs as f64);
        let mean = (b - c) / n;
        (mean, 1.96 * (((b + c) / n - mean * mean).max(0.0) / n).sqrt())
    };
    let ((unseen, unseen_ci95), (all, all_ci95)) = (difference(cold), difference(all));
    Paired {
        method: method.to_string(),
        epsilon,
        against: against.to_string(),
        unseen,
        unseen_ci95,
        unseen_p: mcnemar(cold.1, cold.2),
        all,
        all_ci95,
    }
}

/// Two-sided p-value of `ours` and `theirs` hits that only one of two methods has, exact: each is a fair coin.
fn mcnemar(ours: usize, theirs: usize) -> f64 {
    let (n, least) = (ours + theirs, ours.min(theirs));
    // log of the binomial terms, one from the other.
    let (mut log_term, mut sum) = (-(n as f64) * std::f64::consts::LN_2, 0.0);
    for k in 0..=least {
        sum += log_term.exp();
        log_term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// Recall at ten by how often training has seen the target.
pub(super) fn ramp(
    method: &str,
    epsilon: Option<f64>,
    cases: &[Case],
    lists: &[Vec<Scored>],
    counts: &[u32],
) -> Vec<RampRow> {
    let step = |at: usize| {
        let (low, high) = (STEPS[at], STEPS.get(at + 1).map(|next| next - 1));
        let within = |case: &Case| {
            let count = counts[case.target.0 as usize];
            count >= low && high.is_none_or(|high| count <= high)
        };
        let ranks = ranks(cases, lists, within);
        let seen = match high {
            Some(high) if high == low => low.to_string(),
            Some(high) => format!("{low}-{high}"),
            None => format!("{low}+"),
        };
        let (users, recall) = (ranks.0.len(), ranks.recall_at(10));
        RampRow { method: method.to_string(), epsilon, seen, users, recall, ci95: half_width(recall, users) }
    };
    (0..STEPS.len()).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_ramps_by_hand() {
        let list = |items: &[u32]| items.iter().map(|i| Scored { item: ItemIdx(*i), score: 0.0 }).collect::<Vec<_>>();
        let case = |target| Case { user: 0, hash: None, history: &[], target: ItemIdx(target) };
        let cases = [case(5), case(6), case(0), case(1)];
        let lists = [list(&[5, 0]), list(&[0, 1]), list(&[1, 0]), list(&[2, 3])];
        let unseen = |item: ItemIdx| item.0 >= 5;
        let (row, width) = row("m", None, 2, &cases, &lists, &unseen);
        assert!((row.recall_unseen - 0.5).abs() < 1e-12 && (row.recall_warm - 0.5).abs() < 1e-12);
        assert!((row.recall_all - 0.5).abs() < 1e-12 && (row.unseen_share - 0.125).abs() < 1e-12);
        assert!((width - 1.96 * 0.125f64.sqrt()).abs() < 1e-12);
        let ramp = ramp("m", None, &cases, &lists, &[1, 60, 0, 0, 0, 0, 0]);
        assert!((mcnemar(1, 9) - 22.0 / 1024.0).abs() < 1e-12 && (mcnemar(3, 3) - 1.0).abs() < 1e-12);
        assert!((mcnemar(0, 0) - 1.0).abs() < 1e-12 && mcnemar(400, 900) < 1e-30);
        let other = [list(&[0]), list(&[6]), list(&[0]), list(&[2])];
        let found = paired(("m", None, &lists[..]), ("o", &other[..]), &cases, &unseen);
        // On unseen targets each has one that the other has not; over all, the warm target 0 is found by both.
        assert!(found.unseen.abs() < 1e-12 && found.all.abs() < 1e-12 && found.unseen_ci95 > 0.5);
        assert_eq!((ramp[0].users, ramp[1].users, ramp[6].users), (2, 1, 1));
        assert_eq!((ramp[1].seen.as_str(), ramp[6].seen.as_str()), ("1-2", "51+"));
        assert!((ramp[1].recall - 1.0).abs() < 1e-12);
    }
}
