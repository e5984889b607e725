//! Generative retrieval: encode the histories, search the trie, return items.

use crate::Result;
use crate::retrieve::{Query, Retriever, Scored};
use crate::rqt::{PackedRqt, Rqt};
use crate::tiger::{PackedTiger, Tiger};
use beam::{BeamConfig, Guided, Hypothesis, LiveMask, ScoreMode, SimdKernel, Trie};
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
pub trait Generator: Sync {
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

    /// Best hypotheses for each history, which must not be empty, over items alive in `live`.
    fn decode(
        &self,
        trie: &Trie,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
        guidance: Option<&Guidance>,
    ) -> Result<Vec<Vec<Hypothesis>>>;
}

impl Generator for Rqt {
    fn name(&self) -> &'static str {
        "rqt"
    }

    fn score_mode(&self) -> ScoreMode {
        if self.config().valid_only { ScoreMode::ValidOnly } else { ScoreMode::FullVocab }
    }

    fn guide(&self) -> f32 {
        self.config().guide
    }

    fn guidance_table(&self) -> Result<Option<Tensor>> {
        self.dense_table()
    }

    fn decode(
        &self,
        trie: &Trie,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
        guidance: Option<&Guidance>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let kernel = SimdKernel::new(trie);
        let encoded = self.encode(histories)?;
        let packed = PackedRqt::new(self)?;
        let mut session = packed.session(&encoded)?;
        let Some(guidance) = guidance else {
            return Ok(beam::search(&kernel, &mut session, config, histories.len(), live)?);
        };
        let scores = self.dense_scores(&encoded.states, &guidance.table)?.flatten_all()?.to_vec1::<f32>()?;
        let mut guided = Guided::new(session, trie, guidance.weight, config.score, live, &scores)?;
        let config = BeamConfig { score: ScoreMode::FullVocab, ..config.clone() };
        Ok(beam::search(&kernel, &mut guided, &config, histories.len(), live)?)
    }
}

impl Generator for Tiger {
    fn name(&self) -> &'static str {
        "tiger"
    }

    fn decode(
        &self,
        trie: &Trie,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
        guidance: Option<&Guidance>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        // Packing costs a request's worth of time: whoever has few requests and still weights packs once.
        PackedTiger::new(self)?.decode(trie, histories, config, live, guidance)
    }
}

impl Generator for PackedTiger {
    fn name(&self) -> &'static str {
        "tiger"
    }

    fn decode(
        &self,
        trie: &Trie,
        histories: &[&[ItemIdx]],
        config: &BeamConfig,
        live: &[LiveMask],
        _: Option<&Guidance>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let mut session = self.session(histories);
        Ok(beam::search(&SimdKernel::new(trie), &mut session, config, histories.len(), live)?)
    }
}

/// Ranks items by constrained beam search.
pub struct Generative<'a> {
    name: String,
    model: &'a dyn Generator,
    trie: &'a Trie,
    live: LiveMask,
    width: usize,
    guide: f32,
    /// Made at the first question: it costs a pass over the catalogue.
    guidance: OnceLock<Option<Guidance>>,
}

impl<'a> Generative<'a> {
    /// Beams of `width` over all items of `trie`.
    pub fn new(model: &'a dyn Generator, trie: &'a Trie, width: usize) -> Self {
        let name = model.name().to_string();
        Self { name, model, trie, live: LiveMask::all(trie), width, guide: model.guide(), guidance: OnceLock::new() }
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

    fn guidance(&self) -> Result<Option<&Guidance>> {
        if self.guidance.get().is_none() {
            let table = if self.guide > 0.0 { self.model.guidance_table()? } else { None };
            let made = table.map(|table| Guidance { table, weight: self.guide });
            // Of two that came at once, the first stays; they are equal.
            let _ = self.guidance.set(made);
        }
        Ok(self.guidance.get().and_then(Option::as_ref))
    }

    /// Best `k` hypotheses of each query, semantic IDs included. Empty histories get empty lists.
    pub fn hypotheses(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        let score = self.model.score_mode();
        let config = BeamConfig { score, ..BeamConfig::uniform(self.width.max(k), self.trie.levels(), k) };
        let guidance = self.guidance()?;
        let mut lists = vec![Vec::new(); queries.len()];
        let known: Vec<usize> = (0..queries.len()).filter(|i| !queries[*i].history.is_empty()).collect();
        for chunk in known.chunks(64) {
            let histories: Vec<_> = chunk.iter().map(|i| queries[*i].history).collect();
            let live: Vec<_> = chunk.iter().map(|i| self.live.without(self.trie, queries[*i].exclude)).collect();
            let found = self.model.decode(self.trie, &histories, &config, &live, guidance)?;
            for (i, list) in chunk.iter().zip(found) {
                lists[*i] = list;
            }
        }
        Ok(lists)
    }
}

impl Retriever for Generative<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let scored = |list: Vec<Hypothesis>| list.iter().map(|h| Scored { item: h.item, score: h.log_prob }).collect();
        Ok(self.hypotheses(queries, k)?.into_iter().map(scored).collect())
    }
}
