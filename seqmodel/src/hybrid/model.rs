//! The hybrid's parameters: those of its generative part, and what it has counted.
//!
//! Counts are kept among the parameters, without a gradient, so that a checkpoint holds all that answering takes. Items that
//! come later get rows of zeros there: never seen, followed by nothing.

use super::{HybridConfig, Memory};
use crate::baseline::Transitions;
use crate::data::Window;
use crate::retrieve::Scored;
use crate::rqt::{Rqt, RqtBatch};
use crate::{Error, ItemFeatures, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode, SeededRng};

/// Histories that places for new items are calibrated on, and their longest length.
const SAMPLE: (usize, usize) = (256, 20);

/// A generative model and a memory.
#[derive(Debug, Clone)]
pub struct Hybrid {
    config: HybridConfig,
    features: ItemFeatures,
    rqt: Rqt,
    /// Occurrences in training: (items,).
    seen: Tensor,
    /// Followers of each item, one more than their row so that 0 is none, and their weights: (items, followers).
    followers: Tensor,
    weights: Tensor,
    /// Histories of training, one more than their rows: (256, 20).
    sample: Tensor,
}

impl Hybrid {
    /// Parameters are read from, or made by, `vb`; nothing is counted yet.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when there is no content.
    pub fn new(config: &HybridConfig, features: ItemFeatures, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        if features.content_dim() == 0 {
            return Err(Error::Mismatch {
                what: "content vectors".into(),
                expected: "one per item, since new items are scored by content".into(),
                found: "none in the catalogue".into(),
            });
        }
        let (items, zeros) = (features.len(), Init::Const(0.0));
        Ok(Self {
            rqt: Rqt::new(&config.rqt, features.clone(), &vb.pp("rqt"))?,
            seen: vb.get_with_hints(items, "seen", zeros)?,
            followers: vb.get_with_hints((items, config.followers), "followers", zeros)?,
            weights: vb.get_with_hints((items, config.followers), "weights", zeros)?,
            sample: vb.get_with_hints(SAMPLE, "sample", zeros)?,
            config: config.clone(),
            features,
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &HybridConfig {
        &self.config
    }

    /// The generative part.
    pub fn rqt(&self) -> &Rqt {
        &self.rqt
    }

    /// Counts `histories`: what is known when the model is asked.
    pub fn count(&self, histories: &[&[ItemIdx]], seed: u64) -> Result<()> {
        let (items, most) = (self.features.len(), self.config.followers);
        let mut seen = vec![0f32; items];
        histories.iter().copied().flatten().for_each(|item| seen[item.0 as usize] += 1.0);
        let transitions = Transitions::fit(histories, &self.content_hash(), most);
        let (mut followers, mut weights) = (vec![0f32; items * most], vec![0f32; items * most]);
        for (row, found) in transitions.rows().iter().enumerate() {
            for (at, scored) in found.iter().enumerate() {
                followers[row * most + at] = (scored.item.0 + 1) as f32;
                weights[row * most + at] = scored.score;
            }
        }
        let mut sample = vec![0f32; SAMPLE.0 * SAMPLE.1];
        let long: Vec<&[ItemIdx]> = histories.iter().copied().filter(|history| !history.is_empty()).collect();
        let mut rng = SeededRng::new(seed).stream("calibration users");
        let drawn = rand::seq::index::sample(&mut rng, long.len(), SAMPLE.0.min(long.len()));
        for (row, user) in sample.chunks_exact_mut(SAMPLE.1).zip(drawn) {
            let newest = &long[user][long[user].len().saturating_sub(SAMPLE.1)..];
            row.iter_mut().zip(newest).for_each(|(slot, item)| *slot = (item.0 + 1) as f32);
        }
        for (tensor, values) in
            [(&self.seen, seen), (&self.followers, followers), (&self.weights, weights), (&self.sample, sample)]
        {
            Var::from_tensor(tensor)?.set(&Tensor::from_vec(values, tensor.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// One number per item that depends on its content alone: neither names nor rows may break ties.
    fn content_hash(&self) -> Vec<u64> {
        let hash = |vectors: &rqvae::Vectors, item: usize| {
            let mut first = [0; 8];
            first.copy_from_slice(&vectors.digest(item)[..8]);
            u64::from_le_bytes(first)
        };
        self.features.vectors().map_or_else(Vec::new, |v| (0..v.rows()).map(|item| hash(v, item)).collect())
    }

    /// What was counted, ready to rank; `live` tells items that may be found.
    pub fn memory(&self, live: &dyn Fn(ItemIdx) -> bool, tie_hash: &[u64]) -> Result<Memory> {
        let Some(content) = self.features.vectors() else { return Err(Error::NoData { what: "content vectors" }) };
        let seen = self.seen.to_vec1::<f32>()?.into_iter().map(|count| count > 0.5).collect();
        let row = |(followers, weights): (Vec<f32>, Vec<f32>)| {
            let pairs = followers.into_iter().zip(weights).take_while(|(follower, _)| *follower > 0.5);
            pairs.map(|(follower, score)| Scored { item: ItemIdx(follower.round() as u32 - 1), score }).collect()
        };
        let rows = self.followers.to_vec2::<f32>()?.into_iter().zip(self.weights.to_vec2::<f32>()?).map(row).collect();
        Memory::new(Transitions::from_rows(rows, tie_hash), content, seen, live, &self.config, tie_hash)
    }

    /// The histories that places for new items are calibrated on.
    pub(super) fn sample(&self) -> Result<Vec<Vec<ItemIdx>>> {
        let known = |row: Vec<f32>| -> Vec<ItemIdx> {
            row.into_iter().take_while(|item| *item > 0.5).map(|item| ItemIdx(item.round() as u32 - 1)).collect()
        };
        Ok(self.sample.to_vec2::<f32>()?.into_iter().map(known).filter(|history| !history.is_empty()).collect())
    }

    /// What [`Hybrid::batch_loss`] learns from.
    ///
    /// # Errors
    /// [`Error::NoData`] when no window has a target.
    pub fn prepare(&self, windows: &[&Window]) -> Result<RqtBatch> {
        self.rqt.prepare(windows)
    }

    /// The loss of the generative part, weighted.
    pub fn batch_loss(&self, batch: RqtBatch, mode: Mode) -> Result<Tensor> {
        if self.config.generative_weight > 0.0 {
            return Ok((self.rqt.batch_loss(batch, mode)? * f64::from(self.config.generative_weight))?);
        }
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?)
    }
}
