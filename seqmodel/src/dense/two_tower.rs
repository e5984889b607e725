//! Two towers: a history and an item become vectors of length one, whose product is the score.
//!
//! Shapes: histories -> (batch, dim), items -> (items, dim), scores -> (batch, items).
//! Papers: Covington et al. 2016, Deep Neural Networks for YouTube Recommendations, sec. 3 (retrieval by inner product);
//! Yi et al. 2019 (temperature, logQ, streaming frequencies); Yang et al. 2020 (mixed negatives); Khrylchenko et al. 2025
//! (the corrected form), see [`sampled_softmax`].
//! Deviations: the history is read by a causal transformer over the item tower's inputs, so that every position trains;
//! an item's embedding starts from zero and is dropped at random, so that new items are carried by their content.

use super::{DenseIndex, IvfIndex};
use crate::data::{ItemFrequency, Negatives, Padded, Window};
use crate::loss::{LogQ, sampled_softmax};
use crate::nn::{
    AttentionShape, Block, FeedForward, Keys, Linear, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project,
    unit, with_values,
};
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, ItemFeatures, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode, mix};
use serde::{Deserialize, Serialize};

/// Sizes, draws and regularisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TwoTowerConfig {
    /// Width of both towers.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks over the history.
    pub layers: usize,
    /// Newest items that are read.
    pub history_cap: usize,
    /// Dropout everywhere.
    pub dropout: f32,
    /// Share of items whose embedding is left out in training.
    pub item_dropout: f32,
    /// Scores are cosines divided by it.
    pub temperature: f64,
    /// Uniform negatives of a step, shared by its targets.
    pub uniform_negatives: usize,
    /// Whether the targets of the batch are negatives of one another.
    pub in_batch_negatives: bool,
    /// What undoes the bias of the draw.
    pub log_q: LogQ,
    /// How fast the estimate of an item's frequency moves.
    pub frequency_rate: f32,
    /// Lists of an inverted file that the nearest items are looked for in; 0 scans all items.
    pub ivf_lists: usize,
    /// Lists of it that are scanned.
    pub ivf_probes: usize,
}

impl Default for TwoTowerConfig {
    fn default() -> Self {
        Self {
            dim: 96,
            heads: 2,
            layers: 1,
            history_cap: 20,
            dropout: 0.3,
            item_dropout: 0.2,
            temperature: 0.1,
            uniform_negatives: 1024,
            in_batch_negatives: true,
            log_q: LogQ::Corrected,
            frequency_rate: 0.02,
            ivf_lists: 0,
            ivf_probes: 0,
        }
    }
}

impl TwoTowerConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        let invalid =
            |field, got: String, expected: &str| Err(Error::InvalidConfig { field, got, expected: expected.into() });
        if self.heads == 0 || self.dim == 0 || !self.dim.is_multiple_of(self.heads) {
            return invalid("heads", self.heads.to_string(), &format!("a divisor of dim = {}", self.dim));
        }
        if self.layers == 0 || self.history_cap == 0 {
            let field = if self.layers == 0 { "layers" } else { "history_cap" };
            return invalid(field, "0".into(), "at least 1");
        }
        for (field, got) in [("dropout", self.dropout), ("item_dropout", self.item_dropout)] {
            if !(0.0..1.0).contains(&got) {
                return invalid(field, got.to_string(), "0 to below 1");
            }
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return invalid("temperature", self.temperature.to_string(), "a positive number");
        }
        if !(self.frequency_rate > 0.0 && self.frequency_rate <= 1.0) {
            return invalid("frequency_rate", self.frequency_rate.to_string(), "above 0 to 1");
        }
        if self.uniform_negatives == 0 || self.uniform_negatives > 1 << 20 {
            return invalid("uniform_negatives", self.uniform_negatives.to_string(), "1 to 1048576");
        }
        if self.ivf_lists > 65_536 {
            return invalid("ivf_lists", self.ivf_lists.to_string(), "0 to 65536");
        }
        if self.ivf_lists > 0 && !(1..=self.ivf_lists).contains(&self.ivf_probes) {
            let expected = format!("1 to ivf_lists = {}", self.ivf_lists);
            return invalid("ivf_probes", self.ivf_probes.to_string(), &expected);
        }
        Ok(())
    }
}

/// Both towers; the item tower's inputs are what the history is read as.
#[derive(Debug, Clone)]
pub struct TwoTower {
    config: TwoTowerConfig,
    features: ItemFeatures,
    items: Tensor,
    content: Linear,
    input_norm: RmsNorm,
    item_tower: FeedForward,
    bias: RelativeBias,
    blocks: Vec<Block>,
    norm: RmsNorm,
    frequency: ItemFrequency,
}

impl TwoTower {
    /// A model over the items of `features`, whose content it reads.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when there is no content.
    pub fn new(config: &TwoTowerConfig, features: ItemFeatures, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let (dim, width) = (config.dim, features.content_dim());
        if width == 0 {
            return Err(Error::Mismatch {
                what: "content vectors".into(),
                expected: "one per item, since the item tower reads content".into(),
                found: "none in the catalogue".into(),
            });
        }
        let shape = AttentionShape {
            dim,
            heads: config.heads,
            head_dim: dim / config.heads,
            scaled: true,
            dropout: config.dropout,
        };
        let blocks = (0..config.layers)
            .map(|i| Block::new(shape, 4 * dim, false, &vb.pp(format!("blocks.{i}"))))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self {
            items: vb.get_with_hints((features.len(), dim), "items", Init::Const(0.0))?,
            content: Linear::new(width, dim, (width as f64).powf(-0.5), &vb.pp("content"))?,
            input_norm: RmsNorm::new(dim, &vb.pp("input_norm"))?,
            item_tower: FeedForward::new(dim, 2 * dim, config.dropout, &vb.pp("item_tower"))?,
            bias: RelativeBias::new(32, 64, config.heads, false, &vb.pp("bias"))?,
            norm: RmsNorm::new(dim, &vb.pp("norm"))?,
            frequency: ItemFrequency::new(features.len(), config.frequency_rate, &vb.pp("frequency"))?,
            blocks,
            config: config.clone(),
            features,
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &TwoTowerConfig {
        &self.config
    }

    /// Embedding and content of each item: -> (items, dim).
    fn inputs(&self, items: &[Option<ItemIdx>], mode: Mode) -> Result<Tensor> {
        let key = match mode {
            Mode::Train(keys) => Some(keys.next_key()),
            Mode::Eval => None,
        };
        let threshold = (f64::from(self.config.item_dropout) * u64::MAX as f64) as u64;
        let dropped = |at: usize| key.is_some_and(|key| mix(key ^ mix(at as u64)) < threshold);
        let row = |(at, item): (usize, &Option<ItemIdx>)| item.filter(|_| !dropped(at)).map_or(NO_ROW, |item| item.0);
        let embedded = embedding_sum(&self.items, items.iter().enumerate().map(row).collect(), 1)?;
        let x = (embedded + self.content.forward(&self.features.content(items)?)?)?;
        Ok(self.input_norm.forward(&x)?)
    }

    /// The item tower: (items, dim) inputs -> (items, dim) of length one.
    fn tower(&self, inputs: &Tensor, mode: Mode) -> Result<Tensor> {
        Ok(unit(&(inputs + self.item_tower.forward(inputs, mode)?)?)?)
    }

    /// Vectors of the histories at the places that are asked about: -> (asked, dim) of length one.
    fn histories(&self, padded: &Padded, mode: Mode) -> Result<Tensor> {
        let dim = self.config.dim;
        let x = self.inputs(&padded.items, mode)?.reshape(((), padded.seq, dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.bias.forward(padded.seq, padded.seq)?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&bias), &Keys::Causal, None, mode)?;
        }
        let places = Tensor::from_slice(&padded.positions, padded.positions.len(), &Device::Cpu)?;
        Ok(unit(&self.norm.forward(&x.reshape(((), dim))?.index_select(&places, 0)?)?)?)
    }

    /// Vectors of the whole catalogue: -> (items, dim).
    pub fn item_vectors(&self) -> Result<Tensor> {
        let all: Vec<_> = (0..self.features.len() as u32).map(|item| Some(ItemIdx(item))).collect();
        self.tower(&self.inputs(&all, Mode::Eval)?, Mode::Eval)
    }

    /// Vectors of histories, which must not be empty: -> (batch, dim).
    pub fn history_vectors(&self, histories: &[&[ItemIdx]]) -> Result<Tensor> {
        self.histories(&Padded::of_histories(histories, self.config.history_cap), Mode::Eval)
    }

    /// Mean loss over all positions that have a target.
    pub fn loss(&self, windows: &[&Window], mode: Mode) -> Result<Tensor> {
        self.batch_loss(&Padded::of_windows(windows)?, mode)
    }

    /// The loss of windows that were read before; a training pass also counts the targets.
    pub fn batch_loss(&self, padded: &Padded, mode: Mode) -> Result<Tensor> {
        let targets = &padded.targets;
        let key = match mode {
            Mode::Train(keys) => {
                self.frequency.observe(targets)?;
                keys.next_key()
            }
            // A fixed draw, so that losses of one model are comparable.
            Mode::Eval => 0,
        };
        let drawn = if self.config.in_batch_negatives {
            let shares = self.frequency.shares()?;
            Negatives::mixed(&shares, targets, self.config.uniform_negatives, key)
        } else {
            Negatives::uniform(self.features.len(), targets, self.config.uniform_negatives, key)
        };
        // One pass of the tower for targets and drawn items together.
        let rows: Vec<_> = targets.iter().chain(&drawn.items).map(|item| Some(ItemIdx(*item))).collect();
        let vectors = self.tower(&self.inputs(&rows, mode)?, mode)?;
        let states = (self.histories(padded, mode)? / self.config.temperature)?;
        let positive = (&states * vectors.narrow(0, 0, targets.len())?)?.sum(1)?;
        let negative = project(&states, &vectors.narrow(0, targets.len(), drawn.items.len())?)?;
        sampled_softmax(&positive, &negative, targets, &drawn, self.config.log_q)
    }
}

enum Nearest {
    Exact(DenseIndex),
    Ivf(IvfIndex, usize),
}

/// Ranks the catalogue by the product of the towers. Owns the item vectors as they were when it was made.
pub struct TwoTowerRetriever {
    model: TwoTower,
    nearest: Nearest,
}

impl TwoTowerRetriever {
    /// Ties are broken by `tie_hash`, one per item.
    ///
    /// # Errors
    /// No items.
    pub fn new(model: &TwoTower, tie_hash: &[u64]) -> Result<Self> {
        let rows = with_values(&model.item_vectors()?.contiguous()?, <[f32]>::to_vec)?;
        let index = DenseIndex::new(model.config.dim, rows, tie_hash)?;
        let nearest = match model.config.ivf_lists {
            0 => Nearest::Exact(index),
            lists => Nearest::Ivf(IvfIndex::new(index, lists, 0)?, model.config.ivf_probes),
        };
        Ok(Self { model: model.clone(), nearest })
    }
}

impl Retriever for TwoTowerRetriever {
    fn name(&self) -> &'static str {
        "two-tower"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let mut lists = Vec::with_capacity(queries.len());
        for chunk in queries.chunks(128) {
            let histories: Vec<_> = chunk.iter().map(|query| query.history).collect();
            let exclude: Vec<_> = chunk.iter().map(|query| query.exclude).collect();
            let states = self.model.history_vectors(&histories)?.flatten_all()?.to_vec1::<f32>()?;
            let mut found = match &self.nearest {
                Nearest::Exact(index) => index.search(&states, &exclude, k)?,
                Nearest::Ivf(index, probes) => index.search(&states, &exclude, k, *probes),
            };
            found
                .iter_mut()
                .zip(chunk)
                .filter(|(_, query)| query.history.is_empty())
                .for_each(|(list, _)| list.clear());
            lists.extend(found);
        }
        Ok(lists)
    }
}
