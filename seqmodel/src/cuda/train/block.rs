//! The transformer block on a tape, as `nn::Block` is on the processor: the same operations and draws in the same order.

use super::params::DeviceParameters;
use super::tape::{Heads, Node, Tape};
use crate::Result;
use crate::nn::{AttentionShape, Drop, Keys};
use rqvae::Mode;

/// Projections of an attention layer.
#[derive(Debug, Clone, Copy)]
struct Attention {
    query: Node,
    key_value: Node,
    output: Node,
}

impl Attention {
    fn new(params: &DeviceParameters, name: &str) -> Result<Self> {
        let weight = |part: &str| params.node(&format!("{name}.{part}.weight"));
        Ok(Self { query: weight("q")?, key_value: weight("kv")?, output: weight("o")? })
    }
}

/// Weights of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct TapeBlock {
    shape: AttentionShape,
    attention_norm: Node,
    attention: Attention,
    memory: Option<(Node, Attention)>,
    feed_forward_norm: Node,
    inner: Node,
    outer: Node,
}

impl TapeBlock {
    /// The block called `name`.
    pub(super) fn new(params: &DeviceParameters, name: &str, shape: AttentionShape, memory: bool) -> Result<Self> {
        let node = |part: &str| params.node(&format!("{name}.{part}.weight"));
        let attention = |part: &str| Attention::new(params, &format!("{name}.{part}"));
        Ok(Self {
            shape,
            attention_norm: node("attention_norm")?,
            attention: attention("attention")?,
            memory: if memory { Some((node("memory_norm")?, attention("memory")?)) } else { None },
            feed_forward_norm: node("feed_forward_norm")?,
            inner: node("feed_forward.wi")?,
            outer: node("feed_forward.wo")?,
        })
    }

    fn heads(&self) -> Heads {
        let AttentionShape { heads, head_dim, scaled, .. } = self.shape;
        Heads { count: heads, dim: head_dim, scale: if scaled { (head_dim as f32).powf(-0.5) } else { 1.0 } }
    }

    /// Keys and values of a memory for this block: (batch * seq, dim) -> (batch * seq, 2 inner).
    pub(super) fn memory_keys_values(&self, tape: &mut Tape, memory: Node) -> Option<Node> {
        self.memory.map(|(_, attention)| tape.linear(memory, attention.key_value))
    }

    /// (batch * seq, dim) -> (batch * seq, dim).
    #[expect(clippy::too_many_arguments, reason = "as the block on the processor, with the tape and the batch size")]
    pub(super) fn forward(
        &self,
        tape: &mut Tape,
        x: Node,
        batch: usize,
        bias: Option<Node>,
        keys: &Keys,
        memory: Option<(Node, &Keys)>,
        mode: Mode,
    ) -> Result<Node> {
        let rate = self.shape.dropout;
        let normed = tape.norm(x, self.attention_norm)?;
        let kv = tape.linear(normed, self.attention.key_value);
        let query = tape.linear(normed, self.attention.query);
        let mixed = tape.attention(query, kv, bias, keys, batch, self.heads(), Drop::new(rate, mode))?;
        let mixed = tape.linear(mixed, self.attention.output);
        let mut x = tape.dropout_add(x, mixed, Drop::new(rate, mode));
        if let (Some((norm, attention)), Some((kv, keys))) = (self.memory, memory) {
            let normed = tape.norm(x, norm)?;
            let query = tape.linear(normed, attention.query);
            let mixed = tape.attention(query, kv, None, keys, batch, self.heads(), Drop::new(rate, mode))?;
            let mixed = tape.linear(mixed, attention.output);
            x = tape.dropout_add(x, mixed, Drop::new(rate, mode));
        }
        let normed = tape.norm(x, self.feed_forward_norm)?;
        let hidden = tape.linear(normed, self.inner);
        let hidden = tape.relu_dropout(hidden, Drop::new(rate, mode));
        let out = tape.linear(hidden, self.outer);
        Ok(tape.dropout_add(x, out, Drop::new(rate, mode)))
    }
}
