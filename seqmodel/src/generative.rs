//! Generative retrieval: encode the histories, search the trie, return items.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored};
use crate::rqt::{Rqt, RqtSession};
use crate::tiger::{Tiger, TigerSession};
use beam::{BeamConfig, CpuKernel, Hypothesis, LiveMask, Trie};
use rqvae::ItemIdx;

/// A model that emits the codes of the next item.
pub trait Generator: Sync {
    /// Name for tables.
    fn name(&self) -> &'static str;

    /// Best hypotheses for each history, which must not be empty, over items alive in `live`.
    fn decode(
        &self,
        kernel: &CpuKernel,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
    ) -> Result<Vec<Vec<Hypothesis>>>;
}

impl Generator for Rqt {
    fn name(&self) -> &'static str {
        "rqt"
    }

    fn decode(
        &self,
        kernel: &CpuKernel,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let mut session = RqtSession::new(self, self.encode(histories)?);
        Ok(beam::search(kernel, &mut session, config, histories.len(), live)?)
    }
}

impl Generator for Tiger {
    fn name(&self) -> &'static str {
        "tiger"
    }

    fn decode(
        &self,
        kernel: &CpuKernel,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let mut session = TigerSession::new(self, histories)?;
        Ok(beam::search(kernel, &mut session, config, histories.len(), live)?)
    }
}

/// Ranks items by constrained beam search.
pub struct Generative<'a> {
    model: &'a dyn Generator,
    trie: &'a Trie,
    live: LiveMask,
    width: usize,
}

impl<'a> Generative<'a> {
    /// Beams of `width` over all items of `trie`.
    pub fn new(model: &'a dyn Generator, trie: &'a Trie, width: usize) -> Self {
        Self { model, trie, live: LiveMask::all(trie), width }
    }

    /// Only items alive in `live` are ever returned.
    #[must_use]
    pub fn with_live(mut self, live: LiveMask) -> Self {
        self.live = live;
        self
    }

    /// Best `k` hypotheses of each query, semantic IDs included. Empty histories get empty lists.
    pub fn hypotheses(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        let kernel = CpuKernel::new(self.trie);
        let config = BeamConfig::uniform(self.width.max(k), self.trie.levels(), k);
        let mut lists = vec![Vec::new(); queries.len()];
        let known: Vec<usize> = (0..queries.len()).filter(|i| !queries[*i].history.is_empty()).collect();
        for chunk in known.chunks(64) {
            let histories: Vec<_> = chunk.iter().map(|i| queries[*i].history).collect();
            let live: Vec<_> = chunk.iter().map(|i| self.live.without(self.trie, queries[*i].exclude)).collect();
            let found = self.model.decode(&kernel, &histories, &config, &live)?;
            for (i, list) in chunk.iter().zip(found) {
                lists[*i] = list;
            }
        }
        Ok(lists)
    }
}

impl Retriever for Generative<'_> {
    fn name(&self) -> &'static str {
        self.model.name()
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let scored = |list: Vec<Hypothesis>| list.iter().map(|h| Scored { item: h.item, score: h.log_prob }).collect();
        Ok(self.hypotheses(queries, k)?.into_iter().map(scored).collect())
    }
}
