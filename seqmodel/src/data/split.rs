//! Leave-one-out: last interaction for test, the one before for validation, the rest for training.

use super::{Histories, UserHash};
use rqvae::ItemIdx;

/// Which target is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The last but one interaction; the history is what came before it.
    Val,
    /// The last interaction; the history includes the validation item.
    Test,
}

/// One question of an evaluation: which item follows this history?
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Row of the user.
    pub user: usize,
    /// Who that is, where it is known.
    pub hash: Option<UserHash>,
    /// Oldest first, uncapped.
    pub history: &'a [ItemIdx],
    /// What followed.
    pub target: ItemIdx,
}

/// The leave-one-out view of histories. Users with fewer than three interactions only train.
#[derive(Debug, Clone, Copy)]
pub struct LeaveOneOut<'a> {
    histories: &'a Histories,
}

impl<'a> LeaveOneOut<'a> {
    /// Over `histories`.
    pub fn new(histories: &'a Histories) -> Self {
        Self { histories }
    }

    /// Number of users.
    pub fn users(&self) -> usize {
        self.histories.users()
    }

    /// Who `user` is, where that is known.
    pub fn hash(&self, user: usize) -> Option<UserHash> {
        self.histories.hash(user)
    }

    /// What a model may train on.
    pub fn train(&self, user: usize) -> &'a [ItemIdx] {
        let all = self.histories.of(user);
        if all.len() < 3 { all } else { &all[..all.len() - 2] }
    }

    /// What may be known of every user when the questions of `split` are asked; of those without a question, everything.
    pub fn known(&self, split: Split) -> Vec<&'a [ItemIdx]> {
        let of = |user| self.case(user, split).map_or_else(|| self.histories.of(user), |case| case.history);
        (0..self.users()).map(of).collect()
    }

    /// The question about `user`, if it has enough interactions.
    pub fn case(&self, user: usize, split: Split) -> Option<Case<'a>> {
        let all = self.histories.of(user);
        if all.len() < 3 {
            return None;
        }
        let at = all.len() - if split == Split::Test { 1 } else { 2 };
        Some(Case { user, hash: self.hash(user), history: &all[..at], target: all[at] })
    }

    /// All questions in user order.
    pub fn cases(&self, split: Split) -> Vec<Case<'a>> {
        (0..self.users()).filter_map(|user| self.case(user, split)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_the_last_two_off() {
        let items = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let histories = Histories::new(vec![items(&[1, 2, 3, 4]), items(&[5, 6])]);
        let split = LeaveOneOut::new(&histories);
        assert_eq!(split.train(0), items(&[1, 2]));
        assert_eq!(split.train(1), items(&[5, 6]));
        let test = split.cases(Split::Test);
        assert_eq!((test.len(), test[0].history, test[0].target), (1, &items(&[1, 2, 3])[..], ItemIdx(4)));
        assert_eq!(split.cases(Split::Val)[0].target, ItemIdx(3));
        assert_eq!(split.known(Split::Test), [items(&[1, 2, 3]), items(&[5, 6])]);
        assert_eq!(split.known(Split::Val), [items(&[1, 2]), items(&[5, 6])]);
    }
}
