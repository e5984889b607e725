//! SASRec, by default with full-softmax cross-entropy: the strongest fair baseline.
//!
//! Paper: Kang and `McAuley` 2018, Self-Attentive Sequential Recommendation, sec. III; the loss over all items instead
//! of one negative is what Klenitskiy and Vasilev 2023 found to matter. The paper's loss and the calibrated one of
//! Petrov and Macdonald 2023 (gSASRec, sec. 5) are options.
//! Deviations: pre-norm blocks with RMS norm and relative position bias, as in the other models here.

use crate::data::{Negatives, Padded, Window};
use crate::loss::{LogQ, projected_cross_entropy, sampled_softmax};
use crate::nn::{
    AttentionShape, Block, Keys, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project, with_values,
};
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rayon::prelude::*;
use rqvae::{ItemIdx, Mode, mix};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the next item is told from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SasRecLoss {
    /// All items, by softmax.
    #[default]
    CrossEntropy,
    /// The same softmax over the target and uniform draws that stand for all other items, the same draws for all targets
    /// of a step: several times faster.
    SampledSoftmax {
        /// Drawn for each step.
        negatives: usize,
    },
    /// Drawn negatives, each by itself (binary cross-entropy). The paper has one.
    Bce {
        /// Drawn uniformly for each target.
        negatives: usize,
    },
    /// The same with the positive's probability raised to the power beta, which undoes the overconfidence that drawing
    /// negatives brings: beta = alpha (t (1 - 1 / alpha) + 1 / alpha), alpha the share of negatives drawn.
    Gbce {
        /// Drawn uniformly for each target.
        negatives: usize,
        /// 0: as binary cross-entropy; 1: fully calibrated.
        t: f64,
    },
}

/// Sizes and regularisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SasRecConfig {
    /// Width of item embeddings.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks.
    pub layers: usize,
    /// Newest items that are read.
    pub history_cap: usize,
    /// Dropout everywhere.
    pub dropout: f32,
    /// The loss.
    pub loss: SasRecLoss,
}

impl Default for SasRecConfig {
    fn default() -> Self {
        Self { dim: 64, heads: 2, layers: 2, history_cap: 50, dropout: 0.3, loss: SasRecLoss::CrossEntropy }
    }
}

impl SasRecConfig {
    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        if self.heads == 0 || !self.dim.is_multiple_of(self.heads) || self.dim == 0 {
            return Err(Error::InvalidConfig {
                field: "heads",
                got: self.heads.to_string(),
                expected: format!("a divisor of dim = {}", self.dim),
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::InvalidConfig {
                field: "dropout",
                got: self.dropout.to_string(),
                expected: "0 to below 1".into(),
            });
        }
        let (negatives, most) = match self.loss {
            SasRecLoss::CrossEntropy => (1, 1),
            SasRecLoss::SampledSoftmax { negatives } => (negatives, 1 << 20),
            SasRecLoss::Bce { negatives } | SasRecLoss::Gbce { negatives, .. } => (negatives, 4096),
        };
        if !(1..=most).contains(&negatives) {
            let got = negatives.to_string();
            return Err(Error::InvalidConfig { field: "loss.negatives", got, expected: format!("1 to {most}") });
        }
        if let SasRecLoss::Gbce { t, .. } = self.loss
            && !(0.0..=1.0).contains(&t)
        {
            return Err(Error::InvalidConfig { field: "loss.t", got: t.to_string(), expected: "0 to 1".into() });
        }
        if self.layers == 0 || self.history_cap == 0 {
            return Err(Error::InvalidConfig {
                field: if self.layers == 0 { "layers" } else { "history_cap" },
                got: "0".into(),
                expected: "at least 1".into(),
            });
        }
        Ok(())
    }
}

/// A causal transformer over item embeddings with tied output.
#[derive(Debug, Clone)]
pub struct SasRec {
    config: SasRecConfig,
    items: Tensor,
    bias: RelativeBias,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

impl SasRec {
    /// A model over `items` items.
    pub fn new(config: &SasRecConfig, items: usize, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let shape = AttentionShape {
            dim: config.dim,
            heads: config.heads,
            head_dim: config.dim / config.heads,
            scaled: true,
            dropout: config.dropout,
        };
        let blocks = (0..config.layers)
            .map(|i| Block::new(shape, 4 * config.dim, false, &vb.pp(format!("blocks.{i}"))))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self {
            items: vb.get_with_hints((items, config.dim), "items", Init::Randn { mean: 0.0, stdev: 0.05 })?,
            bias: RelativeBias::new(32, 64, config.heads, false, &vb.pp("bias"))?,
            norm: RmsNorm::new(config.dim, &vb.pp("norm"))?,
            blocks,
            config: config.clone(),
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &SasRecConfig {
        &self.config
    }

    /// States of the histories at the places that are asked about -> (asked, dim).
    fn states(&self, padded: &Padded, mode: Mode) -> Result<Tensor> {
        let (dim, seq) = (self.config.dim, padded.seq);
        let ids = padded.items.iter().map(|item| item.map_or(NO_ROW, |item| item.0)).collect();
        let x = (embedding_sum(&self.items, ids, 1)? * (dim as f64).sqrt())?.reshape(((), seq, dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.bias.forward(seq, seq)?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&bias), &Keys::Causal, None, mode)?;
        }
        let places = Tensor::from_slice(&padded.positions, padded.positions.len(), &Device::Cpu)?;
        Ok(self.norm.forward(&x)?.reshape(((), dim))?.index_select(&places, 0)?)
    }

    /// Mean loss over all positions that have a target.
    pub fn loss(&self, windows: &[&Window], mode: Mode) -> Result<Tensor> {
        self.batch_loss(Padded::of_windows(windows)?, mode)
    }

    /// The loss of windows that were read before.
    pub fn batch_loss(&self, batch: Padded, mode: Mode) -> Result<Tensor> {
        let states = self.states(&batch, mode)?;
        let targets = batch.targets;
        match self.config.loss {
            SasRecLoss::CrossEntropy => Ok(projected_cross_entropy(&states, &self.items, targets, 0.0)?),
            SasRecLoss::SampledSoftmax { negatives } => self.sampled(&states, &targets, negatives, mode),
            SasRecLoss::Bce { negatives } => self.binary(&states, &targets, negatives, 1.0, mode),
            SasRecLoss::Gbce { negatives, t } => {
                let alpha = negatives as f64 / (self.items.dim(0)?.max(2) - 1) as f64;
                self.binary(&states, &targets, negatives, alpha * (t * (1.0 - 1.0 / alpha) + 1.0 / alpha), mode)
            }
        }
    }

    /// Softmax over the target and `negatives` drawn items.
    fn sampled(&self, states: &Tensor, targets: &[u32], negatives: usize, mode: Mode) -> Result<Tensor> {
        let items = self.items.dim(0)?;
        let drawn = Negatives::uniform(items, targets, negatives, draw_key(mode));
        let own = (states * embedding_sum(&self.items, targets.to_vec(), 1)?)?.sum(1)?;
        let others = project(states, &embedding_sum(&self.items, drawn.items.clone(), 1)?)?;
        sampled_softmax(&own, &others, targets, &drawn, LogQ::Corrected)
    }

    /// Mean over targets of -beta log sigma(positive) - sum log sigma(-negative).
    fn binary(&self, states: &Tensor, targets: &[u32], negatives: usize, beta: f64, mode: Mode) -> Result<Tensor> {
        let (count, dim, items) = (targets.len(), self.config.dim, self.items.dim(0)? as u64);
        let key = draw_key(mode);
        let mut rows = Vec::with_capacity(count * (1 + negatives));
        for (at, target) in targets.iter().enumerate() {
            rows.push(*target);
            for n in 0..negatives {
                let draw = mix(key ^ mix((at * negatives + n) as u64)) % (items - 1).max(1);
                // All items but the target.
                rows.push(if draw >= u64::from(*target) { (draw + 1).min(items - 1) } else { draw } as u32);
            }
        }
        let rows = embedding_sum(&self.items, rows, 1)?.reshape((count, 1 + negatives, dim))?;
        let scores = rows.broadcast_mul(&states.unsqueeze(1)?)?.sum(2)?;
        let positive = (softplus(&scores.narrow(1, 0, 1)?.neg()?)? * beta)?.sum_all()?;
        let negative = softplus(&scores.narrow(1, 1, negatives)?)?.sum_all()?;
        Ok(((positive + negative)? / count as f64)?)
    }

    /// Scores of all items after each history, which must not be empty -> (batch, items).
    pub fn scores(&self, histories: &[&[ItemIdx]]) -> Result<Tensor> {
        let padded = Padded::of_histories(histories, self.config.history_cap);
        Ok(project(&self.states(&padded, Mode::Eval)?, &self.items)?)
    }
}

/// What a draw of negatives follows from: outside training a fixed draw, so that losses are comparable over time.
fn draw_key(mode: Mode) -> u64 {
    match mode {
        Mode::Train(keys) => keys.next_key(),
        Mode::Eval => 0,
    }
}

/// log(1 + exp(x)), without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

/// Ranks the whole catalogue by SASRec's scores.
pub struct SasRecRetriever<'a> {
    model: &'a SasRec,
    tie_hash: Arc<[u64]>,
}

impl<'a> SasRecRetriever<'a> {
    /// Ties are broken by `tie_hash`, one per item.
    pub fn new(model: &'a SasRec, tie_hash: Arc<[u64]>) -> Self {
        Self { model, tie_hash }
    }
}

impl Retriever for SasRecRetriever<'_> {
    fn name(&self) -> &'static str {
        "sasrec"
    }

    fn retrieve(&self, queries: &[Query], k: usize) -> Result<Vec<Vec<Scored>>> {
        let mut lists = Vec::with_capacity(queries.len());
        for chunk in queries.chunks(128) {
            let histories: Vec<_> = chunk.iter().map(|q| q.history).collect();
            let scores = self.model.scores(&histories)?;
            let items = scores.dim(1)?;
            lists.extend(with_values(&scores, |scores| {
                chunk
                    .par_iter()
                    .zip(scores.par_chunks(items))
                    .map(|(query, row)| {
                        if query.history.is_empty() {
                            return Vec::new();
                        }
                        let mut row = row.to_vec();
                        for item in query.exclude {
                            row[item.0 as usize] = f32::NEG_INFINITY;
                        }
                        crate::retrieve::top_k(&row, k, &self.tie_hash)
                    })
                    .collect::<Vec<_>>()
            })?);
        }
        Ok(lists)
    }
}
