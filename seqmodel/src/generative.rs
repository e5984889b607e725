//! Generative retrieval: encode the histories, search the trie, return items.

use crate::Result;
use crate::data::History;
use crate::retrieve::{Query, Retriever, Scored};
use crate::rqt::PackedRqt;
use crate::tiger::PackedTiger;
use beam::{BeamConfig, Guided, Hypothesis, LiveMask, ScoreMode, SimdKernel, StepScorer, Trace, Traced, Trie};
use candle_core::Tensor;
use rqvae::ItemIdx;
use std::sync::OnceLock;

/// What guides a search: see [`beam::Guided`].
#[derive(Debug, Clone)]
pub struct Guidance {
    /// What items are scored against, in the model's own form: (items, dim).
    pub table: Tensor,
    /// Weight in the search, above 0 to 1.
    pub weight: f32,
}

/// A model that emits the codes of the next item.
pub trait Generator: Send + Sync {
    /// Name for tables.
    fn name(&self) -> &'static str;

    /// What its scores are normalised over; as it was trained.
    fn score_mode(&self) -> ScoreMode {
        ScoreMode::FullVocab
    }

    /// Weight of guidance where the search is not told another; 0 for models that score no items.
    fn guide(&self) -> f32 {
        0.0
    }

    /// What items are scored against for guidance, `None` for models that score no items: -> (items, dim).
    fn guidance_table(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Best hypotheses for each history, which must not be empty; what was kept on the way goes into `trace`.
    fn decode(&self, histories: &[History], search: &Search, trace: Option<&mut Trace>)
    -> Result<Vec<Vec<Hypothesis>>>;
}

/// How to search, and among what.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// The IDs.
    pub trie: &'a Trie,
    /// Widths, length of the lists, what scores mean.
    pub config: &'a BeamConfig,
    /// The items that each request may return: (requests,).
    pub live: &'a [LiveMask],
    /// A second opinion on items, for models that have one.
    pub guidance: Option<&'a Guidance>,
}

impl Search<'_> {
    fn run(
        &self,
        scorer: impl for<'k> StepScorer<SimdKernel<'k>>,
        config: &BeamConfig,
        trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let requests = self.live.len();
        let mut scorer = Traced::new(scorer, requests, trace);
        Ok(beam::search(&SimdKernel::new(self.trie), &mut scorer, config, requests, self.live)?)
    }
}

impl Generator for PackedRqt {
    fn name(&self) -> &'static str {
        "rqt"
    }

    fn score_mode(&self) -> ScoreMode {
        if self.model().config().valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab }
    }

    fn guide(&self) -> f32 {
        self.model().config().guide
    }

    fn guidance_table(&self) -> Result<Option<Tensor>> {
        self.model().dense_table()
    }

    fn decode(
        &self,
        histories: &[History],
        search: &Search,
        trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let items: Vec<&[ItemIdx]> = histories.iter().map(|history| history.items).collect();
        let encoded = self.encode(&items)?;
        let session = self.session(&encoded)?;
        let Some(guidance) = search.guidance else {
            return search.run(session, search.config, trace);
        };
        let scores = self.model().dense_scores(&encoded.states, &guidance.table)?.flatten_all()?.to_vec1::<f32>()?;
        let guided = Guided::new(session, search.trie, guidance.weight, search.config.score, search.live, &scores)?;
        let config = BeamConfig { score: ScoreMode::FullVocab, ..search.config.clone() };
        search.run(guided, &config, trace)
    }
}

impl Generator for PackedTiger {
    fn name(&self) -> &'static str {
        "tiger"
    }

    fn decode(
        &self,
        histories: &[History],
        search: &Search,
        trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        search.run(self.session(histories), search.config, trace)
    }
}

/// Ranks items by constrained beam search. Owns its weights as they were when it was made.
pub struct Generative {
    name: String,
    model: Box<dyn Generator>,
    trie: Trie,
    live: LiveMask,
    width: usize,
    guide: f32,
    /// Made at the first question: it costs a pass over the catalogue.
    guidance: OnceLock<Option<Guidance>>,
}

impl Generative {
    /// Beams of `width` over all items of `trie`, with the packed weights of `model`.
    pub fn new(model: impl Generator + 'static, trie: &Trie, width: usize) -> Self {
        let (name, guide, live) = (model.name().to_string(), model.guide(), LiveMask::all(trie));
        Self { name, model: Box::new(model), trie: trie.clone(), live, width, guide, guidance: OnceLock::new() }
    }

    /// Only items alive in `live` are ever returned.
    #[must_use]
    pub fn with_live(mut self, live: LiveMask) -> Self {
        self.live = live;
        self
    }

    /// Another name in tables than the model's.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    /// Another weight of guidance than the model's own; 0 searches by the codes alone. No effect on models that score
    /// no items.
    #[must_use]
    pub fn with_guide(mut self, weight: f32) -> Self {
        self.guide = weight;
        self.guidance = OnceLock::new();
        self
    }

    /// What scores mean, for reports: `full-vocab`, `valid-only`, or `guided:WEIGHT`.
    pub fn score_name(&self) -> Result<String> {
        Ok(match (self.guidance()?, self.model.score_mode()) {
            (Some(guidance), _) => format!("guided:{}", guidance.weight),
            (None, ScoreMode::FullVocab) => "full-vocab".into(),
            (None, ScoreMode::ValidOnly) => "valid-only".into(),
        })
    }

    /// The IDs it searches.
    pub fn trie(&self) -> &Trie {
        &self.trie
    }

    /// The items it may return.
    pub fn live(&self) -> &LiveMask {
        &self.live
    }

    /// What guides its search; made when first asked for.
    pub fn guidance(&self) -> Result<Option<&Guidance>> {
        if self.guidance.get().is_none() {
            let table = if self.guide > 0.0 { self.model.guidance_table()? } else { None };
            let made = table.map(|table| Guidance { table, weight: self.guide });
            // Of two that came at once, the first stays; they are equal.
            let _ = self.guidance.set(made);
        }
        Ok(self.guidance.get().and_then(Option::as_ref))
    }

    /// Best `k` hypotheses of each history, which must not be empty, by beams of `width`, among what its mask allows.
    ///
    /// # Errors
    /// `k` or `width` is 0, or a mask is of another trie.
    pub fn search(
        &self,
        histories: &[History],
        live: &[LiveMask],
        width: usize,
        k: usize,
        trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let score = self.model.score_mode();
        let config = BeamConfig { score, ..BeamConfig::uniform(width.max(k), self.trie.levels(), k) };
        let search = Search { trie: &self.trie, config: &config, live, guidance: self.guidance()? };
        self.model.decode(histories, &search, trace)
    }

    /// Best `k` hypotheses of each query, semantic IDs included. Empty histories get empty lists.
    pub fn hypotheses(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        let mut lists = vec![Vec::new(); queries.len()];
        let known: Vec<usize> = (0..queries.len()).filter(|i| !queries[*i].history.is_empty()).collect();
        for chunk in known.chunks(64) {
            let histories: Vec<_> = chunk.iter().map(|i| queries[*i].read()).collect();
            let live: Vec<_> = chunk.iter().map(|i| self.live.without(&self.trie, queries[*i].exclude)).collect();
            let found = self.search(&histories, &live, self.width, k, None)?;
            for (i, list) in chunk.iter().zip(found) {
                lists[*i] = list;
            }
        }
        Ok(lists)
    }
}

impl Retriever for Generative {
    fn name(&self) -> &str {
        &self.name
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let scored = |list: Vec<Hypothesis>| list.iter().map(|h| Scored { item: h.item, score: h.log_prob }).collect();
        Ok(self.hypotheses(queries, k)?.into_iter().map(scored).collect())
    }
}
