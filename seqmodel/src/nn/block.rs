//! The pre-norm transformer block that all models here are stacked from.

use super::{Attention, AttentionShape, FeedForward, Keys, RmsNorm, dropout_add};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use rqvae::Mode;

/// Self-attention, optional attention to a memory, feed-forward; each `x + dropout(f(norm(x)))`.
#[derive(Debug, Clone)]
pub struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    memory: Option<(RmsNorm, Attention)>,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
    dropout: f32,
}

/// A memory prepared for one block: keys and values (batch, keys, 2 * heads * `head_dim`), and which of them exist.
pub type Memory<'a> = Option<(&'a Tensor, &'a Keys)>;

impl Block {
    /// A block of the given attention shape with a feed-forward of `hidden` units.
    pub fn new(shape: AttentionShape, hidden: usize, with_memory: bool, vb: &VarBuilder) -> Result<Self> {
        let memory = if with_memory {
            Some((RmsNorm::new(shape.dim, &vb.pp("memory_norm"))?, Attention::new(shape, &vb.pp("memory"))?))
        } else {
            None
        };
        Ok(Self {
            attention_norm: RmsNorm::new(shape.dim, &vb.pp("attention_norm"))?,
            attention: Attention::new(shape, &vb.pp("attention"))?,
            memory,
            feed_forward_norm: RmsNorm::new(shape.dim, &vb.pp("feed_forward_norm"))?,
            feed_forward: FeedForward::new(shape.dim, hidden, shape.dropout, &vb.pp("feed_forward"))?,
            dropout: shape.dropout,
        })
    }

    /// Self-attention and its norm.
    pub(crate) fn attention(&self) -> (&RmsNorm, &Attention) {
        (&self.attention_norm, &self.attention)
    }

    /// Attention to a memory and its norm.
    pub(crate) fn memory(&self) -> Option<(&RmsNorm, &Attention)> {
        self.memory.as_ref().map(|(norm, attention)| (norm, attention))
    }

    /// The feed-forward layer and its norm.
    pub(crate) fn feed_forward(&self) -> (&RmsNorm, &FeedForward) {
        (&self.feed_forward_norm, &self.feed_forward)
    }

    /// (batch, seq, dim) -> (batch, seq, dim), attending to itself and to `memory`.
    pub fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        keys: &Keys,
        memory: Memory,
        mode: Mode,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let kv = self.attention.keys_values(&normed)?;
        let mixed = self.attention.forward(&normed, &kv, bias, keys, mode)?;
        self.rest(&dropout_add(x, &mixed, self.dropout, mode)?, memory, mode)
    }

    /// One new position per row after `past` keys and values: (rows, 1, dim) -> the output and the longer cache.
    pub fn step(
        &self,
        x: &Tensor,
        past: Option<&Tensor>,
        bias: Option<&Tensor>,
        attend_memory: impl FnOnce(&RmsNorm, &Attention, &Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let normed = self.attention_norm.forward(x)?;
        let new = self.attention.keys_values(&normed)?;
        let kv = match past {
            Some(past) => Tensor::cat(&[past, &new], 1)?,
            None => new,
        };
        let mixed = self.attention.forward(&normed, &kv, bias, &Keys::All, Mode::Eval)?;
        let mut x = (x + mixed)?;
        if let Some((norm, attention)) = &self.memory {
            x = attend_memory(norm, attention, &x)?;
        }
        Ok((self.rest(&x, None, Mode::Eval)?, kv))
    }

    /// Keys and values of a memory (batch, seq, dim) for this block.
    pub fn memory_keys_values(&self, memory: &Tensor) -> Result<Option<Tensor>> {
        self.memory.as_ref().map(|(_, attention)| attention.keys_values(memory)).transpose()
    }

    fn rest(&self, x: &Tensor, memory: Memory, mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        if let (Some((norm, attention)), Some((kv, keys))) = (&self.memory, memory) {
            let mixed = attention.forward(&norm.forward(&x)?, kv, None, keys, mode)?;
            x = dropout_add(&x, &mixed, self.dropout, mode)?;
        }
        let hidden = self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?, mode)?;
        dropout_add(&x, &hidden, self.dropout, mode)
    }
}
