//! What answers a batch of histories: a trained model, or in tests something that sleeps and fails on demand.

use crate::models::Model;
use beam::{Kept, LiveMask, Trace, Trie};
use rqvae::ItemIdx;
use seqmodel::{Generative, History, Query, Retriever, Scored, UserHash};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One history to answer; checked, so that every number is within the limits.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Known items, oldest first; not empty.
    pub history: Vec<ItemIdx>,
    /// Whose it is, where the request says so.
    pub user: Option<UserHash>,
    /// Never returned.
    pub exclude: Vec<ItemIdx>,
    /// The only items that may be returned, where there is such a list.
    pub allow: Option<Vec<ItemIdx>>,
    /// Only items that training has not seen.
    pub only_new: bool,
    /// Length of the list.
    pub k: usize,
    /// Beams.
    pub beam: usize,
    /// Write down the beams.
    pub trace: bool,
}

/// The list for an [`Ask`].
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Best first.
    pub items: Vec<Scored>,
    /// Kept after each level, where it was asked for.
    pub levels: Vec<Vec<Kept>>,
}

/// Why a batch could not be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// Too much at once: half of it may do.
    OutOfMemory,
    /// Nothing will be answered any more; the process should be started anew.
    DeviceLost(String),
    /// This batch failed.
    Failed(String),
}

/// Answers batches, one at a time.
pub trait Engine: Send + Sync {
    /// One answer per question, in order.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing of the batch is answered then.
    fn answer(&self, asks: &[&Ask]) -> Result<Vec<Answer>, EngineError>;
}

/// Beams of models that are asked for lists, not for a search.
const BEAM: usize = 50;

/// A trained model over a catalogue.
pub struct ModelEngine {
    model: Arc<Model>,
    generative: Option<Generative>,
    /// Of models that make something of the whole catalogue first.
    packed: Option<Box<dyn Retriever + Send>>,
    trie: Trie,
    tie_hash: Arc<[u64]>,
    removed: Vec<ItemIdx>,
    /// Items that training has not seen; `None` where that is not known.
    new: Option<LiveMask>,
}

impl ModelEngine {
    /// Packs `model` for the items of `trie`; `is_new` tells items that training has not seen.
    pub fn new(
        model: Arc<Model>,
        trie: &Trie,
        tie_hash: &[u64],
        removed: &[ItemIdx],
        is_new: Option<&dyn Fn(ItemIdx) -> bool>,
    ) -> anyhow::Result<Self> {
        let generative = model.generative(trie, 1)?;
        if let Some(generative) = &generative {
            generative.guidance()?;
        }
        let packed = model.packed_retriever(trie, BEAM, tie_hash)?;
        let new = is_new.map(|is_new| trie.live(is_new));
        let (tie_hash, removed) = (Arc::from(tie_hash), removed.to_vec());
        Ok(Self { model, generative, packed, trie: trie.clone(), tie_hash, removed, new })
    }

    fn mask(&self, ask: &Ask, all: &LiveMask) -> LiveMask {
        let base = match (&self.new, ask.only_new) {
            (Some(new), true) => new,
            _ => all,
        };
        let base = match &ask.allow {
            Some(allow) => base.only(&self.trie, allow),
            None => base.clone(),
        };
        base.without(&self.trie, &ask.exclude)
    }

    fn search(&self, generative: &Generative, asks: &[&Ask], beam: usize) -> anyhow::Result<Vec<Answer>> {
        let histories: Vec<_> = asks.iter().map(|ask| History { items: &ask.history, user: ask.user }).collect();
        let live: Vec<LiveMask> = asks.iter().map(|ask| self.mask(ask, generative.live())).collect();
        let k = asks.iter().map(|ask| ask.k).max().unwrap_or(1);
        let mut trace = asks.iter().any(|ask| ask.trace).then(Trace::default);
        let lists = generative.search(&histories, &live, beam, k, trace.as_mut())?;
        let answer = |(at, list): (usize, Vec<beam::Hypothesis>)| {
            let scored = list.iter().take(asks[at].k).map(|h| Scored { item: h.item, score: h.log_prob });
            let levels = match &mut trace {
                Some(trace) if asks[at].trace => {
                    trace.levels.iter_mut().map(|level| std::mem::take(&mut level[at])).collect()
                }
                _ => Vec::new(),
            };
            Answer { items: scored.collect(), levels }
        };
        Ok(lists.into_iter().enumerate().map(answer).collect())
    }

    /// Models that score the whole catalogue at once are told what to leave out.
    fn rank(&self, asks: &[&Ask]) -> anyhow::Result<Vec<Answer>> {
        let made;
        let retriever: &dyn Retriever = if let Some(packed) = &self.packed {
            packed.as_ref()
        } else {
            made = self.model.retriever(&self.trie, 1, &self.tie_hash)?;
            made.as_ref()
        };
        let k = asks.iter().map(|ask| ask.k).max().unwrap_or(1);
        let all = LiveMask::all(&self.trie);
        let exclude = |ask: &&Ask| -> Vec<ItemIdx> {
            if ask.allow.is_none() && !ask.only_new {
                return ask.exclude.iter().chain(&self.removed).copied().collect();
            }
            let mask = self.mask(ask, &all);
            (0..self.tie_hash.len() as u32).map(ItemIdx).filter(|item| !mask.allows(*item)).collect()
        };
        let exclude: Vec<_> = asks.iter().map(exclude).collect();
        let both = asks.iter().zip(&exclude);
        let queries: Vec<_> =
            both.map(|(ask, exclude)| Query { history: &ask.history, user: ask.user, exclude }).collect();
        let lists = retriever.retrieve(&queries, k)?;
        let answer = |(ask, list): (&&Ask, Vec<Scored>)| Answer {
            items: list.into_iter().take(ask.k).collect(),
            levels: Vec::new(),
        };
        Ok(asks.iter().zip(lists).map(answer).collect())
    }
}

impl Engine for ModelEngine {
    fn answer(&self, asks: &[&Ask]) -> Result<Vec<Answer>, EngineError> {
        let failed = |error: anyhow::Error| EngineError::Failed(format!("{error:#}"));
        let Some(generative) = &self.generative else {
            return self.rank(asks).map_err(failed);
        };
        // A list must not depend on who else is in the batch, so only equal searches share one.
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, ask) in asks.iter().enumerate() {
            groups.entry(ask.beam.max(ask.k)).or_default().push(at);
        }
        let mut answers = vec![Answer::default(); asks.len()];
        for (beam, group) in groups {
            let some: Vec<&Ask> = group.iter().map(|at| asks[*at]).collect();
            for (at, answer) in group.into_iter().zip(self.search(generative, &some, beam).map_err(failed)?) {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Asking, ModelConfig};
    use seqmodel::ItemFeatures;
    use seqmodel::tiger::TigerConfig;

    /// Who asks reaches the model, whoever is in the same batch, and a kept history is of one user.
    #[test]
    fn users_have_lists_of_their_own() -> anyhow::Result<()> {
        let spec = rqvae::SidSpec { codebook_sizes: vec![5, 7], suffix_size: Some(4) };
        let codes = (0..60u16).flat_map(|item| [item % 5, item * 3 % 7, item / 20]).collect();
        let features = ItemFeatures::new(Arc::new(rqvae::SidTable::new(spec, codes)?), None)?;
        let trie = Trie::build(features.sids())?;
        let config =
            TigerConfig { dim: 16, heads: 2, head_dim: 8, hidden: 24, user_tokens: 50, ..TigerConfig::default() };
        let asking = Asking { history_cache: 8, device: crate::gpu::DeviceChoice::Cpu, ..Asking::default() };
        let model = Arc::new(crate::models::Model::new(&ModelConfig::Tiger(config), &features, 1)?.asked(asking)?);
        let ties: Vec<u64> = (0..60).map(rqvae::mix).collect();
        let engine = ModelEngine::new(Arc::clone(&model), &trie, &ties, &[], None)?;
        let users = [Some("u1"), Some("u2"), None, Some("u1")].map(|id| id.map(UserHash::of));
        let ask = |user| Ask { history: vec![ItemIdx(3), ItemIdx(5)], user, k: 5, beam: 20, ..Ask::default() };
        let asks = users.map(ask);
        let answer =
            |asks: &[&Ask]| engine.answer(asks).map(|all| all.into_iter().map(|a| a.items).collect::<Vec<_>>());
        let together = answer(&asks.iter().collect::<Vec<_>>()).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let alone: Vec<_> = asks.iter().flat_map(|ask| answer(&[ask]).unwrap_or_default()).collect();
        anyhow::ensure!(together == alone && together[0] == together[3]);
        anyhow::ensure!(together[0] != together[1] && together[0] != together[2] && together[1] != together[2]);
        // As evaluation asks.
        let retriever = model.retriever(&trie, 20, &ties)?;
        let queries = asks.each_ref().map(|ask| Query { history: &ask.history, user: ask.user, exclude: &[] });
        anyhow::ensure!(retriever.retrieve(&queries, 5)? == together);
        Ok(())
    }
}
