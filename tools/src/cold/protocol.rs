//! Who is held out, who is asked, and what training may see.
//!
//! `tiger` (Rajput et al. 2023, section 4.3): a drawn share of the test targets, whose other interactions are deleted.
//! `liger` (Yang et al. 2024, section 4.1): the items that occur only as targets of validation or test, by nature.
//! `time`: items first seen after a cut that leaves a share of the interactions behind it.
//! `ramp`: nothing is taken away; what counts is how often training has seen a target, from never on.

use crate::jobs::cold::split_by_time;
use crate::table::Interactions;
use anyhow::{Result, ensure};
use rand::seq::index::sample;
use rqvae::{ItemIdx, SeededRng};
use seqmodel::LeaveOneOut;
use seqmodel::data::{Case, Histories, UserHash};
use serde::Serialize;
use std::collections::BTreeSet;

/// A protocol with its free choices.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Protocol {
    /// Drawn test targets.
    Tiger {
        /// Share of the distinct test targets that is held out.
        share: f64,
    },
    /// Items that are targets only.
    Liger {
        /// Newest interactions of a user that count.
        newest: usize,
    },
    /// Items that came after a cut.
    Time {
        /// Share of the interactions after the cut.
        share: f64,
    },
    /// All of the data as it is.
    #[default]
    Ramp,
}

/// Of a user: the row, who that is, the history and the target.
type Question = (usize, Option<UserHash>, Vec<ItemIdx>, ItemIdx);

/// A data set after a protocol.
pub struct Held {
    /// What training may see: all but the last two of each user are trained on, the last but one validates.
    pub training: Histories,
    /// Whether an item is held out, (items,).
    pub unseen: Vec<bool>,
    questions: Vec<Question>,
    /// Interactions that were deleted.
    pub removed_interactions: usize,
}

impl Protocol {
    /// Name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tiger { .. } => "tiger",
            Self::Liger { .. } => "liger",
            Self::Time { .. } => "time",
            Self::Ramp => "ramp",
        }
    }

    /// Applies it to a catalogue of `items`.
    pub fn hold(&self, interactions: &Interactions, items: usize, seed: u64) -> Held {
        match *self {
            Self::Tiger { share } => tiger(&interactions.histories, items, share, seed),
            Self::Liger { newest } => liger(&interactions.histories, items, newest),
            Self::Time { share } => time(interactions, items, share),
            Self::Ramp => liger(&interactions.histories, items, usize::MAX),
        }
    }
}

fn tiger(histories: &Histories, items: usize, share: f64, seed: u64) -> Held {
    let targets: BTreeSet<ItemIdx> =
        histories.iter().filter(|h| h.len() >= 3).filter_map(|h| h.last()).copied().collect();
    let targets: Vec<ItemIdx> = targets.into_iter().collect();
    let count = (share * targets.len() as f64).round() as usize;
    let mut rng = SeededRng::new(seed).stream("held-out items");
    let mut unseen = vec![false; items];
    sample(&mut rng, targets.len(), count).into_iter().for_each(|at| unseen[targets[at].0 as usize] = true);
    let (mut training, mut questions, mut removed) = (Vec::new(), Vec::new(), 0);
    for (user, history) in histories.iter().enumerate() {
        let Some((&target, before)) = history.split_last() else { continue };
        let kept: Vec<ItemIdx> = before.iter().copied().filter(|item| !unseen[item.0 as usize]).collect();
        removed += before.len() - kept.len();
        // The target stands at the end, where training does not look; in a history too short to be split, it would.
        let mut seen = kept.clone();
        if seen.len() >= 2 {
            seen.push(target);
        }
        training.push((histories.hash(user), seen));
        if history.len() >= 3 && !kept.is_empty() {
            questions.push((user, histories.hash(user), kept, target));
        }
    }
    Held { training: Histories::of_users(training), unseen, questions, removed_interactions: removed }
}

fn liger(histories: &Histories, items: usize, newest: usize) -> Held {
    let cut = |(user, h): (usize, &[ItemIdx])| (histories.hash(user), h[h.len().saturating_sub(newest)..].to_vec());
    let training = Histories::of_users(histories.iter().enumerate().map(cut));
    let split = LeaveOneOut::new(&training);
    let mut unseen = vec![false; items];
    training.iter().flatten().for_each(|item| unseen[item.0 as usize] = true);
    (0..split.users()).flat_map(|user| split.train(user)).for_each(|item| unseen[item.0 as usize] = false);
    let question = |(user, history): (usize, &[ItemIdx])| {
        let (target, before) = history.split_last()?;
        (history.len() >= 3).then(|| (user, histories.hash(user), before.to_vec(), *target))
    };
    let questions = training.iter().enumerate().filter_map(question).collect();
    Held { unseen, questions, removed_interactions: 0, training }
}

fn time(interactions: &Interactions, items: usize, share: f64) -> Held {
    let split = split_by_time(interactions, items, share);
    let question = |(user, at): (usize, &Option<usize>)| {
        let (history, at) = (interactions.histories.of(user), (*at)?);
        Some((user, interactions.histories.hash(user), history[..at].to_vec(), history[at]))
    };
    let questions = split.question.iter().enumerate().filter_map(question).collect();
    Held { training: split.before, unseen: split.new, questions, removed_interactions: 0 }
}

impl Held {
    /// Items that are held out.
    pub fn items(&self) -> usize {
        self.unseen.iter().filter(|unseen| **unseen).count()
    }

    /// The questions.
    pub fn cases(&self) -> Vec<Case<'_>> {
        let questions = self.questions.iter();
        questions
            .map(|(user, hash, history, target)| Case { user: *user, hash: *hash, history, target: *target })
            .collect()
    }

    /// What counts and neighbours may be made of: what is trained on.
    pub fn known(&self) -> Vec<&[ItemIdx]> {
        let split = LeaveOneOut::new(&self.training);
        (0..split.users()).map(|user| split.train(user)).collect()
    }

    /// Occurrences of each item in training, (items,).
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.unseen.len()];
        self.known().into_iter().flatten().for_each(|item| counts[item.0 as usize] += 1);
        counts
    }

    /// The claim of every protocol, checked on the data that is about to be used.
    ///
    /// # Errors
    /// A held-out item occurs in what is trained on.
    pub fn check(&self) -> Result<()> {
        for (user, history) in self.known().into_iter().enumerate() {
            let leak = history.iter().find(|item| self.unseen[item.0 as usize]);
            ensure!(leak.is_none(), "leak: held-out item {leak:?} occurs in the training history of user {user}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn interactions(histories: Vec<Vec<u32>>) -> Interactions {
        let mut time = 0;
        let times = histories.iter().map(|h| {
            h.iter()
                .map(|_| {
                    time += 7;
                    i64::from(time % 101)
                })
                .collect::<Vec<_>>()
        });
        let times = times
            .map(|mut t| {
                t.sort_unstable();
                t
            })
            .collect();
        let items = |h: Vec<u32>| h.into_iter().map(ItemIdx).collect();
        Interactions {
            users: (0..histories.len()).map(|user| user.to_string()).collect(),
            count: histories.iter().map(Vec::len).sum(),
            histories: Histories::new(histories.into_iter().map(items).collect()),
            times,
            has_time: true,
            unknown_items: 0,
            rejected: 0,
        }
    }

    #[test]
    fn a_planted_leak_is_found() {
        let data = interactions(vec![vec![0, 1, 2, 3], vec![2, 1, 0, 4], vec![1, 0, 2, 5]]);
        let mut held = Protocol::Tiger { share: 0.4 }.hold(&data, 6, 1);
        held.check().unwrap();
        let hidden = held.unseen.iter().position(|unseen| *unseen).unwrap() as u32;
        let mut histories: Vec<Vec<ItemIdx>> = held.training.iter().map(<[ItemIdx]>::to_vec).collect();
        histories[1].insert(0, ItemIdx(hidden));
        held.training = Histories::new(histories);
        assert!(held.check().unwrap_err().to_string().contains("leak"));
    }

    #[test]
    fn liger_holds_out_what_is_a_target_only() {
        let data = interactions(vec![vec![0, 1, 2, 3], vec![1, 2, 4, 0], vec![0, 2, 1, 5]]);
        let held = Protocol::Liger { newest: 20 }.hold(&data, 7, 0);
        // 3 and 5 are test targets only, 4 a validation target only; 6 never occurs.
        assert_eq!(held.unseen, [false, false, false, true, true, true, false]);
        assert_eq!(held.cases().iter().filter(|case| held.unseen[case.target.0 as usize]).count(), 2);
    }

    proptest! {
        /// However histories look, no protocol trains on what it holds out, and every held-out target is a question.
        #[test]
        fn nothing_leaks(histories in prop::collection::vec(prop::collection::vec(0u32..40, 0..12), 1..30), seed: u64, share in 0.05f64..0.6) {
            let data = interactions(histories);
            for protocol in [Protocol::Tiger { share }, Protocol::Liger { newest: 6 }, Protocol::Time { share }, Protocol::Ramp] {
                let held = protocol.hold(&data, 40, seed);
                prop_assert!(held.check().is_ok());
                let counts = held.counts();
                for (item, unseen) in held.unseen.iter().enumerate() {
                    prop_assert!(!unseen || counts[item] == 0);
                }
                for case in held.cases() {
                    prop_assert!(!case.history.is_empty());
                    if let Protocol::Tiger { .. } = protocol {
                        prop_assert!(case.history.iter().all(|item| !held.unseen[item.0 as usize]));
                    }
                }
            }
        }
    }
}
