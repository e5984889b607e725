//! The methods of the table: what each ranks among warm items, and what it puts into the places of unseen ones.

use super::Setting;
use super::matching::{matched, verified};
use crate::jobs::baselines;
use crate::models::Model;
use anyhow::Result;
use rand::seq::SliceRandom;
use rqvae::{ItemIdx, SeededRng};
use seqmodel::baseline::{ContentKernel, ContentKnn};
use seqmodel::hybrid::mixing::{bias_for, most_places, placed, reciprocal_ranks, with_slots};
use seqmodel::hybrid::{HybridConfig, Memory, Ranked};
use seqmodel::{Query, Retriever, Scored};
use std::sync::Arc;

/// How unseen items get places among warm ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Places {
    /// They do not: the list is over all items.
    None,
    /// `ceil(epsilon * k)` at the end of every list.
    Slots,
    /// A share of epsilon of all places, in the lists where they promise most.
    Shares,
}

/// Lists of one method, one per question.
pub(super) struct Method {
    pub(super) name: String,
    pub(super) places: Places,
    /// Over all items, or over warm ones where `unseen` fills the rest.
    pub(super) all: Arc<Vec<Vec<Scored>>>,
    /// For the places, where the method has some; empty otherwise.
    pub(super) unseen: Arc<Vec<Vec<Scored>>>,
}

impl Method {
    /// Lists of `k` with a share `epsilon` for unseen items. No target is looked at.
    pub(super) fn lists(&self, epsilon: f64, k: usize) -> Vec<Vec<Scored>> {
        let pairs = || self.all.iter().zip(self.unseen.iter());
        match self.places {
            Places::None => self.all.iter().map(|list| list.iter().take(k).copied().collect()).collect(),
            Places::Slots => pairs().map(|(warm, unseen)| with_slots(warm, unseen, epsilon, k)).collect(),
            Places::Shares => {
                let most = most_places(epsilon, k);
                let views: Vec<(&[Scored], &[Scored])> = pairs().map(|(w, u)| (&w[..], &u[..])).collect();
                let bias = bias_for(&views, epsilon, k, most);
                pairs().map(|(warm, unseen)| placed(warm, unseen, bias, k, most)).collect()
            }
        }
    }
}

/// Collects methods.
#[derive(Default)]
struct Methods(Vec<Method>);

impl Methods {
    fn free(&mut self, name: &str, all: Vec<Vec<Scored>>) {
        let (all, unseen) = (Arc::new(all), Arc::new(Vec::new()));
        self.0.push(Method { name: name.into(), places: Places::None, all, unseen });
    }

    fn with(&mut self, name: &str, places: Places, warm: &Arc<Vec<Vec<Scored>>>, unseen: &Arc<Vec<Vec<Scored>>>) {
        self.0.push(Method { name: name.into(), places, all: Arc::clone(warm), unseen: Arc::clone(unseen) });
    }
}

type Lists = Arc<Vec<Vec<Scored>>>;

impl Setting<'_> {
    /// Lists of `retriever` without the items of the history, and without `without`.
    fn ask(&self, retriever: &dyn Retriever, without: &[ItemIdx]) -> Result<Vec<Vec<Scored>>> {
        let mut lists = Vec::with_capacity(self.cases.len());
        for some in self.cases.chunks(256) {
            let exclude: Vec<Vec<ItemIdx>> = some.iter().map(|case| [case.history, without].concat()).collect();
            let queries: Vec<Query> =
                some.iter().zip(&exclude).map(|(case, exclude)| Query { exclude, ..Query::of(case, true) }).collect();
            lists.extend(retriever.retrieve(&queries, self.k)?);
        }
        Ok(lists)
    }

    fn queries(&self) -> Vec<Query<'_>> {
        self.cases.iter().map(|case| Query::of(case, true)).collect()
    }

    /// The hybrid's memory, of what training may see.
    fn memory(&self) -> Result<Memory> {
        let counts = self.held.counts();
        // What never occurs in the data is neither held out nor seen: the protocol does not ask about it.
        let live = |item: ItemIdx| self.held.unseen[item.0 as usize] || counts[item.0 as usize] > 0;
        Ok(Memory::of(&self.held.known(), self.content, &live, &HybridConfig::default(), self.ties)?)
    }

    /// Warm and unseen items by the memory, with what was `generated` for each question.
    fn remember(&self, memory: &Memory, generated: Option<&[Vec<Scored>]>) -> (Lists, Lists) {
        use rayon::prelude::*;
        let rank = |(at, query): (usize, &Query)| {
            let generated = generated.map_or(&[][..], |lists| lists[at].as_slice());
            memory.rank(query, generated, self.k)
        };
        let ranked: Vec<Ranked> = self.queries().par_iter().enumerate().map(rank).collect();
        let (warm, new): (Vec<_>, Vec<_>) = ranked.into_iter().map(|r| (r.warm, r.new)).unzip();
        (Arc::new(warm), Arc::new(new))
    }

    /// The nearest unseen items by content to each item of the history.
    fn near_kernel(&self) -> Result<Lists> {
        let known = self.held.counts();
        let kernel = ContentKernel::new(self.content, &|item| known[item.0 as usize] > 0, self.ties)?;
        Ok(Arc::new(self.ask(&kernel, &self.warm)?))
    }

    fn near_mean(&self) -> Result<Lists> {
        let knn = ContentKnn::new(self.content, ContentKnn::DECAY, self.ties)?;
        Ok(Arc::new(self.ask(&knn, &self.warm)?))
    }

    /// What is counted and not trained.
    pub(super) fn counted(&self) -> Result<Vec<Method>> {
        let mut methods = Methods::default();
        let known = self.held.known();
        let fit = |name: &str| baselines::fit(name, &known, self.content, self.ties, self.seed);
        let knn = |decay| ContentKnn::new(self.content, decay, self.ties);
        methods.free("random", self.random());
        methods.free("popular", self.ask(fit("popular")?.as_ref(), &[])?);
        let item_knn = self.ask(fit("itemknn")?.as_ref(), &[])?;
        methods.free("itemknn", item_knn.clone());
        let transitions = self.ask(fit("transitions")?.as_ref(), &[])?;
        methods.free("transitions", transitions.clone());
        methods.free("ials", self.ask(fit("ials")?.as_ref(), &[])?);
        methods.free("bpr", self.ask(fit("bpr")?.as_ref(), &[])?);
        methods.free("content-knn, last item", self.ask(&knn(0.0)?, &[])?);
        methods.free("content-knn, mean", self.ask(&knn(1.0)?, &[])?);
        methods.free("content-knn", self.ask(&knn(ContentKnn::DECAY)?, &[])?);
        let (near, kernel) = (self.near_mean()?, self.near_kernel()?);
        let by_content = Arc::new(self.ask(&knn(ContentKnn::DECAY)?, &self.cold)?);
        methods.with("content-knn, slots", Places::Slots, &by_content, &near);
        let last = (Arc::new(self.ask(&knn(0.0)?, &self.cold)?), Arc::new(self.ask(&knn(0.0)?, &self.warm)?));
        methods.with("content-knn last item, slots", Places::Slots, &last.0, &last.1);
        // Counts know no unseen item, so their lists are of warm ones already.
        let (item_knn, transitions) = (Arc::new(item_knn), Arc::new(transitions));
        methods.with("itemknn + content-knn, slots", Places::Slots, &item_knn, &near);
        methods.with("itemknn + content-kernel, slots", Places::Slots, &item_knn, &kernel);
        methods.with("transitions + content-kernel, slots", Places::Slots, &transitions, &kernel);
        let (warm, new) = self.remember(&self.memory()?, None);
        methods.with("memory, slots", Places::Slots, &warm, &new);
        methods.with("memory, shares", Places::Shares, &warm, &new);
        Ok(methods.0)
    }

    /// A model that scores all items at once.
    pub(super) fn dense(&self, model: &Model) -> Result<Vec<Method>> {
        let mut methods = Methods::default();
        let name = model.config().name();
        let retriever = model.retriever(&self.catalogue.trie, self.beam, self.ties)?;
        methods.free(name, self.ask(retriever.as_ref(), &[])?);
        let warm = Arc::new(self.ask(retriever.as_ref(), &self.cold)?);
        let own = Arc::new(self.ask(retriever.as_ref(), &self.warm)?);
        methods.with(&format!("{name}, slots"), Places::Slots, &warm, &own);
        methods.with(&format!("{name} + content-knn, slots"), Places::Slots, &warm, &self.near_mean()?);
        methods.with(&format!("{name} + content-kernel, slots"), Places::Slots, &warm, &self.near_kernel()?);
        Ok(methods.0)
    }

    /// A model that generates IDs, and the hybrid of it.
    pub(super) fn generative(&self, model: &Model) -> Result<Vec<Method>> {
        let mut methods = Methods::default();
        let (trie, name) = (&self.catalogue.trie, model.config().name());
        let unseen = |item: ItemIdx| self.held.unseen[item.0 as usize];
        let (cold_mask, warm_mask) = (trie.live(unseen), trie.live(|item| !unseen(item)));
        let (near, kernel) = (self.near_mean()?, self.near_kernel()?);
        for (name, weight) in [(name.to_string(), None), (format!("{name}-codes"), Some(0.0))] {
            if weight.is_some() && !model.config().guides() {
                continue;
            }
            let search = || -> Result<_> {
                let generative = model.generative(trie, self.beam)?;
                let generative =
                    generative.ok_or_else(|| crate::error::bad_data(format!("model `{name}` generates no IDs")))?;
                Ok(match weight {
                    Some(weight) => generative.with_guide(weight),
                    None => generative,
                })
            };
            methods.free(&name, self.ask(&search()?, &[])?);
            let generated = search()?.with_live(warm_mask.clone()).hypotheses(&self.queries(), self.k)?;
            let scored = |list: &Vec<beam::Hypothesis>| -> Vec<Scored> {
                list.iter().map(|h| Scored { item: h.item, score: h.log_prob }).collect()
            };
            let warm = Arc::new(generated.iter().map(scored).collect::<Vec<_>>());
            let exact = self.ask(&search()?.with_live(cold_mask.clone()), &[])?;
            for codes in (1..=self.catalogue.sids.spec().levels()).rev() {
                let lists = generated.iter().map(|list| matched(list, codes, trie, &unseen, self.ties, self.k));
                let lists = Arc::new(lists.collect());
                methods.with(&format!("{name}, {codes}-code match"), Places::Slots, &warm, &lists);
            }
            let fused = |(a, b): (&Vec<Scored>, &Vec<Scored>)| reciprocal_ranks(&[(a, 1.0), (b, 1.0)], 60.0, self.ties);
            let both = Arc::new(near.iter().zip(&exact).map(fused).collect());
            let drafted = Arc::new(kernel.iter().zip(&exact).map(|(drafts, exact)| verified(drafts, exact)).collect());
            methods.with(&format!("{name}, unseen scored exactly"), Places::Slots, &warm, &Arc::new(exact));
            methods.with(&format!("{name}, unseen drafted and verified"), Places::Slots, &warm, &drafted);
            methods.with(&format!("{name} + content-knn, slots"), Places::Slots, &warm, &near);
            methods.with(&format!("{name} + content-kernel, slots"), Places::Slots, &warm, &kernel);
            methods.with(&format!("{name} + both fused, slots"), Places::Slots, &warm, &both);
            if weight.is_none() {
                let likely = |list: &Vec<Scored>| -> Vec<Scored> {
                    list.iter().map(|s| Scored { item: s.item, score: s.score.exp() }).collect()
                };
                let likely: Vec<Vec<Scored>> = warm.iter().map(likely).collect();
                let (warm, new) = self.remember(&self.memory()?, Some(&likely));
                let hybrid = if name == "rqt" { "hybrid".to_string() } else { format!("hybrid of {name}") };
                methods.with(&format!("{hybrid}, slots"), Places::Slots, &warm, &new);
                methods.with(&format!("{hybrid}, shares"), Places::Shares, &warm, &new);
            }
        }
        Ok(methods.0)
    }

    /// Any items but those of the history.
    fn random(&self) -> Vec<Vec<Scored>> {
        let mut rng = SeededRng::new(self.seed).stream("random lists");
        let mut all: Vec<ItemIdx> = (0..self.ties.len() as u32).map(ItemIdx).collect();
        let list = |case: &seqmodel::Case| {
            let (drawn, _) = all.partial_shuffle(&mut rng, (self.k + case.history.len()).min(self.ties.len()));
            let fresh = drawn.iter().filter(|item| !case.history.contains(item)).take(self.k);
            fresh.map(|item| Scored { item: *item, score: 0.0 }).collect()
        };
        self.cases.iter().map(list).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_go_where_unseen_items_promise_most() {
        let list = |base: u32, top: f32| -> Vec<Scored> {
            (0..10).map(|i| Scored { item: ItemIdx(base + i), score: top - i as f32 }).collect()
        };
        let (warm, unseen) = (vec![list(0, 10.0), list(0, 10.0)], vec![list(50, 1.0), list(50, 9.0)]);
        let method = |places| Method {
            name: String::new(),
            places,
            all: Arc::new(warm.clone()),
            unseen: Arc::new(unseen.clone()),
        };
        let count = |places| -> Vec<usize> {
            let lists = method(places).lists(0.1, 10);
            lists.iter().map(|list| list.iter().filter(|s| s.item.0 >= 50).count()).collect()
        };
        assert_eq!(count(Places::Slots), [1, 1]);
        assert_eq!(count(Places::Shares), [0, 2]);
        assert_eq!(count(Places::None), [0, 0]);
    }
}
