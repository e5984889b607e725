//! New products: what is recommended of items that nobody had bought when the model was trained.
//!
//! Protocol `time`: a cut leaves the last tenth of the interactions for the test. Items first seen after it are new:
//! they are not in the fit of the quantiser, in training or in any count; the frozen quantiser gives them IDs and the
//! trie is extended by them. One question per user who came back after the cut: the last interaction.

use crate::catalogue::Catalogue;
use crate::jobs::build_sids::build;
use crate::jobs::train::{Recorder, features, fit};
use crate::models::{Model, RunConfig};
use crate::report::ColdStartRow;
use crate::table::{Interactions, Items};
use anyhow::{Result, ensure};
use beam::LiveMask;
use rqvae::{ItemIdx, QuantizerConfig, Vectors};
use seqmodel::baseline::{ContentKnn, Popular};
use seqmodel::data::{Case, Histories};
use seqmodel::hybrid::mixing::with_slots;
use seqmodel::train::EpochRecord;
use seqmodel::{Generative, LeaveOneOut, Query, Retriever, Scored};
use std::collections::HashSet;

/// Length of the lists.
const K: usize = 10;
/// Share of a list that is kept for new items, where a method keeps one.
const EPSILON: f64 = 0.1;

/// Interactions before and after a cut.
pub struct TimeSplit {
    /// Histories before the cut.
    pub before: Histories,
    /// Whether an item was first seen after the cut.
    pub new: Vec<bool>,
    /// Position, in each user's full history, of the question; `None` for users without one.
    pub question: Vec<Option<usize>>,
}

/// Cuts so that `share` of the interactions lie after it.
pub fn split_by_time(interactions: &Interactions, items: usize, share: f64) -> TimeSplit {
    let mut times: Vec<i64> = interactions.times.iter().flatten().copied().collect();
    times.sort_unstable();
    let at = ((times.len() as f64) * (1.0 - share)) as usize;
    let cut = times.get(at).copied().unwrap_or(i64::MAX);
    let mut new = vec![true; items];
    let (mut before, mut question) = (Vec::new(), Vec::new());
    for (user, (history, times)) in interactions.histories.iter().zip(&interactions.times).enumerate() {
        let early = times.iter().take_while(|t| **t < cut).count();
        history[..early].iter().for_each(|item| new[item.0 as usize] = false);
        before.push((interactions.histories.hash(user), history[..early].to_vec()));
        question.push((early > 0 && history.len() > early).then(|| history.len() - 1));
    }
    // An item that never occurs at all is no new product, it is just never sold.
    let seen: HashSet<ItemIdx> = interactions.histories.iter().flatten().copied().collect();
    for (item, new) in new.iter_mut().enumerate() {
        *new &= seen.contains(&ItemIdx(item as u32));
    }
    TimeSplit { before: Histories::of_users(before), new, question }
}

/// What the cold-start part of a report shows.
pub struct ColdStart {
    /// One row per method.
    pub rows: Vec<ColdStartRow>,
    /// New items.
    pub new_items: usize,
    /// Users asked.
    pub users: usize,
    /// Of them, users whose target is a new item.
    pub users_unseen: usize,
    /// How the model learned.
    pub records: Vec<EpochRecord>,
}

/// Fits tokenizer and model on what was before the cut and asks about what came after it.
#[expect(clippy::too_many_arguments, reason = "one call per run; each argument is a thing of its own")]
pub fn run(
    items: &Items,
    interactions: &Interactions,
    content: &Vectors,
    encoder: &str,
    quantizer: &QuantizerConfig,
    config: &RunConfig,
    beam: usize,
    interrupted: &dyn Fn() -> bool,
) -> Result<ColdStart> {
    let split = split_by_time(interactions, items.keys.len(), 0.1);
    let is_new = |item: ItemIdx| split.new[item.0 as usize];
    // The claim of this protocol, checked where it could break.
    ensure!(
        split.before.iter().flatten().all(|item| !is_new(*item)),
        "leak: a new item occurs in the training histories"
    );
    let built = build(items, content, encoder, quantizer, &|item| !is_new(item))?;
    let catalogue = &built.catalogue;
    let model = Model::new(&config.model, &features(catalogue)?, config.train.seed)?;
    let mut recorder = Recorder::new("train for cold start", &config.train, None);
    let leave_one_out = LeaveOneOut::new(&split.before);
    let outcome = fit(&model, config, catalogue, &leave_one_out, None, false, &mut recorder, interrupted)?;
    let (_, records) = recorder.done(&format!("best val recall@10 {:.4}", outcome.best));

    let cases: Vec<Case> = split
        .question
        .iter()
        .enumerate()
        .filter_map(|(user, at)| {
            let (history, at) = (interactions.histories.of(user), (*at)?);
            let hash = interactions.histories.hash(user);
            Some(Case { user, hash, history: &history[..at], target: history[at] })
        })
        .collect();
    let queries: Vec<Query> = cases.iter().map(|case| Query::of(case, true)).collect();
    let ties = catalogue.keys.tie_hash();
    let popular = Popular::fit(split.before.iter(), ties);
    let knn = ContentKnn::new(content, ContentKnn::DECAY, ties)?;
    let mut rows = Vec::new();
    let mut add = |method: &str, epsilon, lists: &[Vec<Scored>]| {
        rows.push(row(method, epsilon, &cases, lists, &is_new));
    };
    add("popular", None, &popular.retrieve(&queries, K)?);
    let knn_all = knn.retrieve(&queries, K)?;
    add("content-knn", None, &knn_all);
    if let Some(free) = model.generative(&catalogue.trie, beam)? {
        let warm = catalogue.trie.live(|item| !is_new(item));
        let cold = catalogue.trie.live(is_new);
        let ask = |live: &LiveMask, generative: Generative| generative.with_live(live.clone()).retrieve(&queries, K);
        let again = || model.generative(&catalogue.trie, beam);
        let name = config.model.name();
        let free = free.retrieve(&queries, K)?;
        add(name, None, &free);
        if let (Some(a), Some(b)) = (again()?, again()?) {
            let (warm_lists, cold_lists) = (ask(&warm, a)?, ask(&cold, b)?);
            add(&format!("{name}, quota"), Some(EPSILON), &with_quota(&warm_lists, &cold_lists));
            let near_new = only_new(&knn, &queries, items.keys.len(), &is_new)?;
            add(&format!("{name} + content-knn, quota"), Some(EPSILON), &with_quota(&warm_lists, &near_new));
        }
    }
    let users_unseen = cases.iter().filter(|c| is_new(c.target)).count();
    Ok(ColdStart {
        rows,
        new_items: split.new.iter().filter(|n| **n).count(),
        users: cases.len(),
        users_unseen,
        records,
    })
}

/// The nearest new items by content.
fn only_new(
    knn: &ContentKnn,
    queries: &[Query],
    items: usize,
    is_new: &dyn Fn(ItemIdx) -> bool,
) -> Result<Vec<Vec<Scored>>> {
    let warm: Vec<ItemIdx> = (0..items as u32).map(ItemIdx).filter(|item| !is_new(*item)).collect();
    let queries: Vec<Query> = queries.iter().map(|q| Query { exclude: &warm, ..*q }).collect();
    Ok(knn.retrieve(&queries, K)?)
}

/// Lists with places at the end for new items.
fn with_quota(warm: &[Vec<Scored>], new: &[Vec<Scored>]) -> Vec<Vec<Scored>> {
    warm.iter().zip(new).map(|(warm, new)| with_slots(warm, new, EPSILON, K)).collect()
}

fn row(
    method: &str,
    epsilon: Option<f64>,
    cases: &[Case],
    lists: &[Vec<Scored>],
    is_new: &dyn Fn(ItemIdx) -> bool,
) -> ColdStartRow {
    let (mut unseen, mut warm) = ((0usize, 0.0, 0.0), (0usize, 0.0, 0.0));
    let (mut shown, mut shown_new) = (0usize, 0usize);
    for (case, list) in cases.iter().zip(lists) {
        shown += list.len();
        shown_new += list.iter().filter(|s| is_new(s.item)).count();
        let rank = list.iter().position(|s| s.item == case.target);
        let side = if is_new(case.target) { &mut unseen } else { &mut warm };
        side.0 += 1;
        if let Some(at) = rank {
            side.1 += 1.0;
            side.2 += 1.0 / ((at + 2) as f64).log2();
        }
    }
    let share = |hits: f64, users: usize| hits / users.max(1) as f64;
    let users = unseen.0 + warm.0;
    ColdStartRow {
        method: method.to_string(),
        epsilon,
        k: K,
        recall_unseen: share(unseen.1, unseen.0),
        ndcg_unseen: share(unseen.2, unseen.0),
        recall_all: share(unseen.1 + warm.1, users),
        ndcg_all: share(unseen.2 + warm.2, users),
        recall_warm: share(warm.1, warm.0),
        unseen_share: shown_new as f64 / shown.max(1) as f64,
    }
}

/// The catalogue a cold-start model was trained on differs from the main one; this says what is new in it.
pub fn describe(cold: &ColdStart, catalogue: &Catalogue) -> String {
    format!(
        "Cold start, protocol time: the last tenth of the interactions is the test; {} of {} items were first seen in it, \
         {} users asked, {} of them for a new item. Tokenizer, model and counts saw none of the new items.",
        cold.new_items,
        catalogue.keys.len(),
        cold.users,
        cold.users_unseen
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_hides_new_items_and_later_events() {
        let item = |ids: &[u32]| ids.iter().map(|i| ItemIdx(*i)).collect::<Vec<_>>();
        let interactions = Interactions {
            users: vec!["a".into(), "b".into()],
            histories: Histories::new(vec![item(&[0, 1, 3]), item(&[1, 2, 0, 1, 0, 2, 1])]),
            times: vec![vec![1, 2, 50], vec![3, 4, 5, 6, 7, 8, 9]],
            has_time: true,
            unknown_items: 0,
            rejected: 0,
            count: 10,
        };
        let split = split_by_time(&interactions, 5, 0.1);
        assert_eq!(split.new, [false, false, false, true, false]);
        assert_eq!(split.question, [Some(2), None]);
        assert_eq!(split.before.of(0), item(&[0, 1]));
    }

    #[test]
    fn quota_takes_the_last_places_and_counts() {
        let list = |ids: std::ops::Range<u32>| ids.map(|i| Scored { item: ItemIdx(i), score: 0.0 }).collect::<Vec<_>>();
        let merged = with_quota(&[list(0..10)], &[list(50..60)]);
        assert_eq!((merged[0].len(), merged[0][9].item), (10, ItemIdx(50)));
        let cases = [Case { user: 0, hash: None, history: &[], target: ItemIdx(50) }];
        let row = row("m", None, &cases, &merged, &|item| item.0 >= 50);
        assert!((row.recall_unseen - 1.0).abs() < 1e-12 && (row.unseen_share - 0.1).abs() < 1e-12);
    }
}
