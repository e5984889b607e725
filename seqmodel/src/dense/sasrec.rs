//! SASRec with full-softmax cross-entropy: the strongest fair baseline.
//!
//! Paper: Kang and `McAuley` 2018, Self-Attentive Sequential Recommendation, sec. III; the loss over all items instead
//! of one negative is what Klenitskiy and Vasilev 2023 found to matter.
//! Deviations: pre-norm blocks with RMS norm and relative position bias, as in the other models here.

use crate::data::Window;
use crate::loss::cross_entropy;
use crate::nn::{
    AttentionShape, Block, Keys, NO_ROW, RelativeBias, RmsNorm, dropout, embedding_sum, project, with_values,
};
use crate::retrieve::{Query, Retriever, Scored};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rayon::prelude::*;
use rqvae::{ItemIdx, Mode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
}

impl Default for SasRecConfig {
    fn default() -> Self {
        Self { dim: 64, heads: 2, layers: 2, history_cap: 50, dropout: 0.3 }
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

    /// Padded histories of `seq` items each -> (batch * seq, dim).
    fn states(&self, ids: Vec<u32>, seq: usize, mode: Mode) -> Result<Tensor> {
        let dim = self.config.dim;
        let x = (embedding_sum(&self.items, ids, 1)? * (dim as f64).sqrt())?.reshape(((), seq, dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.bias.forward(seq, seq)?;
        for block in &self.blocks {
            x = block.forward(&x, Some(&bias), &Keys::Causal, None, mode)?;
        }
        Ok(self.norm.forward(&x)?.reshape(((), dim))?)
    }

    /// Mean cross-entropy over all items at every position that has a target.
    pub fn loss(&self, windows: &[&Window], mode: Mode) -> Result<Tensor> {
        let seq = windows.iter().map(|w| w.items.len() - 1).max().unwrap_or(0);
        let mut ids = vec![NO_ROW; windows.len() * seq];
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (i, window) in windows.iter().enumerate() {
            for (t, pair) in window.items.windows(2).enumerate() {
                ids[i * seq + t] = pair[0].0;
                if t >= window.first_target {
                    positions.push((i * seq + t) as u32);
                    targets.push(pair[1].0);
                }
            }
        }
        if targets.is_empty() {
            return Err(Error::NoData { what: "training targets" });
        }
        let count = positions.len();
        let states = self.states(ids, seq, mode)?;
        let states = states.index_select(&Tensor::from_vec(positions, count, &Device::Cpu)?, 0)?;
        Ok(cross_entropy(&project(&states, &self.items)?, targets, 0.0)?)
    }

    /// Scores of all items after each history, which must not be empty -> (batch, items).
    pub fn scores(&self, histories: &[&[ItemIdx]]) -> Result<Tensor> {
        let capped: Vec<_> = histories.iter().map(|h| &h[h.len().saturating_sub(self.config.history_cap)..]).collect();
        let seq = capped.iter().map(|h| h.len()).max().unwrap_or(1).max(1);
        let mut ids = vec![NO_ROW; capped.len() * seq];
        for (row, history) in ids.chunks_exact_mut(seq).zip(&capped) {
            for (slot, item) in row.iter_mut().zip(*history) {
                *slot = item.0;
            }
        }
        let last: Vec<u32> = capped.iter().enumerate().map(|(i, h)| (i * seq + h.len().max(1) - 1) as u32).collect();
        let states = self.states(ids, seq, Mode::Eval)?;
        Ok(project(&states.index_select(&Tensor::from_vec(last, capped.len(), &Device::Cpu)?, 0)?, &self.items)?)
    }
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
