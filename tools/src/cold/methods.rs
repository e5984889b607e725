//! The methods of the table: what each ranks among warm items, and what it puts into the slots of unseen ones.

use super::protocol::Held;
use super::slots::{fused, matched, with_slots};
use crate::catalogue::Catalogue;
use crate::models::Model;
use crate::progress::Stage;
use anyhow::Result;
use rand::seq::SliceRandom;
use rqvae::{ItemIdx, SeededRng, Vectors};
use seqmodel::baseline::{ContentKnn, ItemKnn, Popular};
use seqmodel::data::Case;
use seqmodel::{Query, Retriever, Scored};

/// Lists of one method, one per question.
pub(super) struct Method {
    pub(super) name: String,
    /// Over all items, or over warm ones where `unseen` fills the rest.
    all: Vec<Vec<Scored>>,
    /// For the slots, where the method has some.
    pub(super) unseen: Option<Vec<Vec<Scored>>>,
}

impl Method {
    /// Lists of `k` with a share `epsilon` for unseen items.
    pub(super) fn lists(&self, epsilon: f64, k: usize) -> Vec<Vec<Scored>> {
        match &self.unseen {
            None => self.all.iter().map(|list| list.iter().take(k).copied().collect()).collect(),
            Some(unseen) => {
                self.all.iter().zip(unseen).map(|(warm, unseen)| with_slots(warm, unseen, epsilon, k)).collect()
            }
        }
    }
}

/// Every method, lists of `k`.
#[expect(clippy::too_many_arguments, reason = "all that was fitted")]
pub(super) fn all(
    held: &Held,
    cases: &[Case],
    catalogue: &Catalogue,
    content: &Vectors,
    model: &Model,
    dense: &Model,
    beam: usize,
    k: usize,
) -> Result<Vec<Method>> {
    let stage = Stage::new("fill lists", 0);
    let ties = catalogue.keys.tie_hash();
    let items = catalogue.keys.len() as u32;
    let unseen = |item: ItemIdx| held.unseen[item.0 as usize];
    let (cold, warm): (Vec<ItemIdx>, Vec<ItemIdx>) = (0..items).map(ItemIdx).partition(|item| unseen(*item));
    let beam = beam.max(k);
    let known = held.known();
    let popular = Popular::fit(known.iter().copied(), ties);
    let item_knn = ItemKnn::fit(&known, ties);
    let knn = |decay| ContentKnn::new(content, decay, ties);
    let by_dense = dense.retriever(&catalogue.trie, beam, ties)?;

    // `without` besides what the user has seen.
    let ask = |retriever: &dyn Retriever, without: &[ItemIdx]| -> Result<Vec<Vec<Scored>>> {
        let mut lists = Vec::new();
        for some in cases.chunks(256) {
            let exclude: Vec<Vec<ItemIdx>> = some.iter().map(|case| [case.history, without].concat()).collect();
            let queries: Vec<Query> =
                some.iter().zip(&exclude).map(|(case, exclude)| Query { history: case.history, exclude }).collect();
            lists.extend(retriever.retrieve(&queries, k)?);
        }
        Ok(lists)
    };
    let mut methods = Vec::new();
    let mut add = |name: &str, all: Vec<Vec<Scored>>, unseen: Option<Vec<Vec<Scored>>>| {
        methods.push(Method { name: name.to_string(), all, unseen });
    };
    add("random", random(cases, items, k, 0), None);
    add("popular", ask(&popular, &[])?, None);
    add("itemknn", ask(&item_knn, &[])?, None);
    add("content-knn, last item", ask(&knn(0.0)?, &[])?, None);
    add("content-knn, mean", ask(&knn(1.0)?, &[])?, None);
    add("content-knn", ask(&knn(ContentKnn::DECAY)?, &[])?, None);
    let near = ask(&knn(ContentKnn::DECAY)?, &warm)?;
    add("content-knn, slots", ask(&knn(ContentKnn::DECAY)?, &cold)?, Some(near.clone()));
    add("content-knn last item, slots", ask(&knn(0.0)?, &cold)?, Some(ask(&knn(0.0)?, &warm)?));
    add(dense_name(dense), ask(by_dense.as_ref(), &[])?, None);
    add(&format!("{} + content-knn, slots", dense_name(dense)), ask(by_dense.as_ref(), &cold)?, Some(near.clone()));

    let name = model.config().name();
    let cold_mask = catalogue.trie.live(unseen);
    let warm_mask = catalogue.trie.live(|item| !unseen(item));
    let guided = model.config().guides();
    for (name, weight) in [(name.to_string(), None), (format!("{name}-codes"), Some(0.0))] {
        if weight.is_some() && !guided {
            continue;
        }
        let search = || -> Result<_> {
            let generative = model.generative(&catalogue.trie, beam)?;
            let generative =
                generative.ok_or_else(|| crate::error::bad_data(format!("model `{name}` generates no IDs")))?;
            Ok(match weight {
                Some(weight) => generative.with_guide(weight),
                None => generative,
            })
        };
        add(&name, ask(&search()?, &[])?, None);
        let queries: Vec<Query> =
            cases.iter().map(|case| Query { history: case.history, exclude: case.history }).collect();
        let generated = search()?.with_live(warm_mask.clone()).hypotheses(&queries, k)?;
        let scored =
            |list: &Vec<beam::Hypothesis>| list.iter().map(|h| Scored { item: h.item, score: h.log_prob }).collect();
        let warm_lists: Vec<Vec<Scored>> = generated.iter().map(scored).collect();
        let exact = ask(&search()?.with_live(cold_mask.clone()), &[])?;
        let levels = catalogue.sids.spec().levels();
        for codes in (1..=levels).rev() {
            let lists = generated.iter().map(|list| matched(list, codes, &catalogue.trie, &unseen, ties, k)).collect();
            add(&format!("{name}, {codes}-code match"), warm_lists.clone(), Some(lists));
        }
        let both = near.iter().zip(&exact).map(|(a, b)| fused(a, b, ties)).collect();
        add(&format!("{name}, unseen scored exactly"), warm_lists.clone(), Some(exact));
        add(&format!("{name} + content-knn, slots"), warm_lists.clone(), Some(near.clone()));
        add(&format!("{name} + both fused, slots"), warm_lists, Some(both));
    }
    stage.done(&format!("{} methods, {} users", methods.len(), cases.len()));
    Ok(methods)
}

fn dense_name(model: &Model) -> &'static str {
    model.config().name()
}

/// Any items but those of the history.
fn random(cases: &[Case], items: u32, k: usize, seed: u64) -> Vec<Vec<Scored>> {
    let mut rng = SeededRng::new(seed).stream("random lists");
    let mut all: Vec<ItemIdx> = (0..items).map(ItemIdx).collect();
    let list = |case: &Case| {
        let (drawn, _) = all.partial_shuffle(&mut rng, (k + case.history.len()).min(items as usize));
        let fresh = drawn.iter().filter(|item| !case.history.contains(item)).take(k);
        fresh.map(|item| Scored { item: *item, score: 0.0 }).collect()
    };
    cases.iter().map(list).collect()
}
