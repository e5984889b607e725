//! A transformer block with packed weights, in memory that is kept from step to step.
//!
//! Norm weights are folded into the products behind them. Keys and values that several queries read, those of a
//! history, are packed per head once; the keys of a beam's own path are read where the earlier steps left them. A row's
//! result depends on no other row of its step, and no number on who finds it: threads may share the work of one request, and
//! the rows of several go through the products together.

use super::aligned::Aligned;
use super::attention::{LANES, OwnPath, Softmax};
use super::crew::Team;
use super::matrix::{JOINED, Packed, Precision, Rows, groups};
use super::sink::{Into, Sink};
use crate::Result;
use crate::nn::{Attention, AttentionShape, Block, Linear, RmsNorm, dot, vectorized, with_values};
use std::cell::RefCell;

/// Norm in front of a projection, both as one matrix.
fn folded(norm: Option<&RmsNorm>, linear: &Linear, scale: f32) -> Result<Packed> {
    let scales = norm.map(|norm| with_values(norm.weight(), <[f32]>::to_vec)).transpose()?;
    let inputs = linear.weight().dim(1)?;
    let rows = with_values(&linear.weight().contiguous()?, <[f32]>::to_vec)?;
    let at = |output: usize, input: usize| {
        rows[output * inputs + input] * scale * scales.as_ref().map_or(1.0, |scales| scales[input])
    };
    Ok(Packed::new(rows.len() / inputs.max(1), inputs, at))
}

/// Packed weights of a block.
#[derive(Debug, Clone)]
pub(crate) struct PackedBlock {
    shape: AttentionShape,
    query_key_value: Packed,
    output: Packed,
    /// Queries, keys and values, output.
    memory: Option<(Packed, Packed, Packed)>,
    inner: Packed,
    outer: Packed,
    precision: Precision,
}

/// Keys and values of one history for one block, head by head.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedMemory(Vec<Head>);

#[derive(Debug, Clone)]
struct Head {
    keys: Packed,
    values: Packed,
}

/// Beams of a request at a step of a block, all or some.
pub(crate) struct Share<'a> {
    /// Their keys and values, (rows, key, value), which the step fills in.
    pub(crate) new: &'a mut [f32],
    /// `past[t]` holds those of step t.
    pub(crate) past: &'a [Vec<f32>],
    /// Which row of each step a beam continues: (rows, steps so far).
    pub(crate) ancestors: &'a [u32],
    /// That of its history, where the block reads one: of all shares of a step or of none.
    pub(crate) memory: Option<&'a PackedMemory>,
}

/// Rows that a search needs; grows to the largest step and stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    pub(crate) x: Aligned<f32>,
    /// Keys and values of the history at hand in the block of an encoder that is at hand.
    pub(crate) memory: PackedMemory,
    pub(super) normed: Aligned<f32>,
    projected: Aligned<f32>,
    mixed: Aligned<f32>,
    hidden: Aligned<f32>,
}

thread_local! {
    /// Scores of what attends at the moment.
    static SCORES: RefCell<Aligned<f32>> = RefCell::default();
}

/// Fewest queries that a thread attends for.
const QUERIES: usize = 16;

/// Additions to attention scores: (heads, distances), the distance 0 at `zero`, keys behind the query to its right.
#[derive(Debug, Clone)]
pub(crate) struct Bias {
    pub(crate) table: Vec<f32>,
    pub(crate) distances: usize,
    pub(crate) zero: usize,
}

/// How far apart rows of so many numbers lie: an odd number of lines of a cache, so that numbers below each other do not compete
/// for the same places in it.
fn apart(numbers: usize) -> usize {
    LANES * (numbers.div_ceil(LANES) | 1)
}

/// Histories that go through products together, which fills tiles and fetches weights once: some of together at most
/// [`JOINED`] rows, or a longer one. From `seqs`, the rows of each.
fn joined(mut seqs: &[usize]) -> impl Iterator<Item = &[usize]> {
    std::iter::from_fn(move || {
        let mut rows = 0;
        let fit = seqs.iter().take_while(|seq| {
            rows += **seq;
            rows <= JOINED
        });
        seqs.split_off(..fit.count().max(1))
    })
}

impl PackedBlock {
    pub(crate) fn new(block: &Block, precision: Precision) -> Result<Self> {
        let (attention_norm, attention) = block.attention();
        let shape = attention.shape();
        // The scale of the scores goes into the queries.
        let scale = if shape.scaled { (shape.head_dim as f32).powf(-0.5) } else { 1.0 };
        let (query, key_value, output) = attention.projections();
        let scaled = folded(Some(attention_norm), query, scale)?;
        let rest = folded(Some(attention_norm), key_value, 1.0)?;
        let memory = block.memory().map(|(norm, attention): (&RmsNorm, &Attention)| {
            let (query, key_value, output) = attention.projections();
            let parts = (folded(Some(norm), query, scale)?, folded(None, key_value, 1.0)?, folded(None, output, 1.0)?);
            Result::Ok((parts.0.stored_as(precision), parts.1.stored_as(precision), parts.2.stored_as(precision)))
        });
        let (norm, feed_forward) = block.feed_forward();
        let (inner, outer) = feed_forward.projections();
        Ok(Self {
            shape,
            query_key_value: Packed::join(&scaled, &rest).stored_as(precision),
            output: folded(None, output, 1.0)?.stored_as(precision),
            memory: memory.transpose()?,
            inner: folded(Some(norm), inner, 1.0)?.stored_as(precision),
            outer: folded(None, outer, 1.0)?.stored_as(precision),
            precision,
        })
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Numbers that a row's key and value take.
    pub(crate) fn key_value_width(&self) -> usize {
        2 * self.width()
    }

    /// All positions of each history attend to each other, block after block: x (seq of all, dim), histories of so many rows one
    /// after the other, with the keys and values of what is at hand in `memory`. All of them go through a half of a block before
    /// any goes through the next, so that its weights are fetched once.
    pub(crate) fn encode(
        blocks: &[Self],
        x: &mut [f32],
        seqs: &[usize],
        bias: &Bias,
        memory: &mut PackedMemory,
        scratch: &mut Scratch,
        team: &Team,
    ) {
        for block in blocks {
            let dim = block.shape.dim;
            let mut rest = &mut *x;
            for seqs in joined(seqs) {
                let x = rest.split_off_mut(..seqs.iter().sum::<usize>() * dim).unwrap_or_default();
                block.self_attention(x, seqs, bias, memory, scratch, team);
            }
            let groups = groups(x.len() / dim, team.threads());
            let mut rest = &mut *x;
            for rows in groups {
                block.feed_forward(rest.split_off_mut(..rows * dim).unwrap_or_default(), scratch, team);
            }
        }
    }

    /// The attention of some histories, each to itself: x (seq of all, dim).
    fn self_attention(
        &self,
        x: &mut [f32],
        seqs: &[usize],
        bias: &Bias,
        memory: &mut PackedMemory,
        scratch: &mut Scratch,
        team: &Team,
    ) {
        let (dim, width) = (self.shape.dim, self.width());
        let (rows, stride) = (x.len() / dim, apart(3 * width));
        norm(x, dim, &mut scratch.normed);
        scratch.projected.make_room(rows * stride);
        let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
        self.query_key_value.product(normed, &mut Sink::new(&mut scratch.projected, stride, Into::Place), team);
        scratch.mixed.make_room(rows * width);
        let (mut projected, mut mixed) = (&scratch.projected[..], &mut scratch.mixed[..]);
        for seq in seqs {
            let projected = projected.split_off(..seq * stride).unwrap_or_default();
            let mixed = mixed.split_off_mut(..seq * width).unwrap_or_default();
            memory.fill(projected, stride, width, self, team);
            let queries = Rows { data: projected, stride, count: *seq };
            memory.attend(queries, Some(bias), &mut Sink::new(mixed, width, Into::Place), &self.shape, team);
        }
        let mixed = Rows { data: &scratch.mixed, stride: width, count: rows };
        self.output.product(mixed, &mut Sink::new(x, dim, Into::Sum), team);
    }

    /// The attention of beams at one new position each: x (rows, dim), the rows of `shares` one after the other.
    pub(crate) fn attention(
        &self,
        x: &mut [f32],
        shares: &mut [Share],
        bias: Option<&Bias>,
        scratch: &mut Scratch,
        team: &Team,
    ) {
        let (dim, width) = (self.shape.dim, self.width());
        let rows = x.len() / dim;
        norm(x, dim, &mut scratch.normed);
        let stride = 3 * width;
        scratch.projected.make_room(rows * stride);
        let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
        self.query_key_value.product(normed, &mut Sink::new(&mut scratch.projected, stride, Into::Place), team);
        scratch.mixed.make_room(rows * width);
        let mut first = 0;
        for share in &mut *shares {
            let count = share.new.len() / (2 * width);
            let projected = &scratch.projected[first * stride..][..count * stride];
            let mixed = &mut scratch.mixed[first * width..][..count * width];
            let (each, steps) = (count.div_ceil(team.threads()).max(1), share.past.len());
            let parts = share.new.chunks_mut(each * 2 * width).zip(mixed.chunks_mut(each * width)).enumerate();
            let parts = parts.map(|(part, (new, mixed))| {
                let ancestors = &share.ancestors[part * each * steps..][..new.len() / (2 * width) * steps];
                let own = Share { new, past: share.past, ancestors, memory: None };
                (own, &projected[part * each * stride..], mixed)
            });
            // What this takes is not its multiplications, of which there are few.
            team.each_of(parts, 64 * count * width, |(share, projected, mixed)| {
                SCORES.with_borrow_mut(|scores| {
                    let (heads, head_dim) = (self.shape.heads, self.shape.head_dim);
                    scores.make_room(OwnPath::room(heads, steps + 1));
                    let weights = scores;
                    pulp::Arch::new().dispatch(OwnPath { heads, head_dim, bias, projected, share, mixed, weights });
                });
            });
            first += count;
        }
        let mixed = Rows { data: &scratch.mixed, stride: width, count: rows };
        self.output.product(mixed, &mut Sink::new(x, dim, Into::Sum), team);
        let remembering = shares.iter().all(|share| share.memory.is_some());
        if let Some((query, _, output)) = self.memory.as_ref().filter(|_| remembering) {
            norm(x, dim, &mut scratch.normed);
            let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
            query.product(normed, &mut Sink::new(&mut scratch.projected, width, Into::Place), team);
            let mut first = 0;
            for share in &*shares {
                let count = share.new.len() / (2 * width);
                let queries = Rows { data: &scratch.projected[first * width..], stride: width, count };
                let mixed = &mut scratch.mixed[first * width..][..count * width];
                if let Some(memory) = share.memory {
                    memory.attend(queries, None, &mut Sink::new(mixed, width, Into::Place), &self.shape, team);
                }
                first += count;
            }
            let mixed = Rows { data: &scratch.mixed, stride: width, count: rows };
            output.product(mixed, &mut Sink::new(x, dim, Into::Sum), team);
        }
    }

    /// Keys and values of histories of so many rows for this block, states (seq of all, dim), in the memory of what was here
    /// before.
    pub(crate) fn remember<'a>(
        &self,
        mut states: &[f32],
        seqs: &[usize],
        mut memories: impl Iterator<Item = &'a mut PackedMemory>,
        scratch: &mut Scratch,
        team: &Team,
    ) {
        let Some((_, key_value, _)) = &self.memory else { return };
        let (dim, stride) = (self.shape.dim, apart(2 * self.width()));
        for seqs in joined(seqs) {
            let rows = seqs.iter().sum();
            scratch.projected.make_room(rows * stride);
            let data = states.split_off(..rows * dim).unwrap_or_default();
            let states = Rows { data, stride: dim, count: rows };
            key_value.product(states, &mut Sink::new(&mut scratch.projected, stride, Into::Place), team);
            let mut projected = &scratch.projected[..];
            for (seq, memory) in seqs.iter().zip(&mut memories) {
                memory.fill(projected.split_off(..seq * stride).unwrap_or_default(), stride, 0, self, team);
            }
        }
    }

    pub(crate) fn feed_forward(&self, x: &mut [f32], scratch: &mut Scratch, team: &Team) {
        let (dim, hidden) = (self.shape.dim, self.inner.outputs());
        let rows = x.len() / dim;
        norm(x, dim, &mut scratch.normed);
        let stride = apart(hidden);
        scratch.hidden.make_room(rows * stride);
        let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
        self.inner.product(normed, &mut Sink::new(&mut scratch.hidden, stride, Into::Relu), team);
        let hidden_rows = Rows { data: &scratch.hidden, stride, count: rows };
        self.outer.product(hidden_rows, &mut Sink::new(x, dim, Into::Sum), team);
    }
}

impl PackedMemory {
    /// From rows of keys and values, those of all heads beside each other (seq, 2 * heads * `head_dim`) from a `column` of
    /// `projected` (seq, stride) on; in the memory of what was here before.
    fn fill(&mut self, projected: &[f32], stride: usize, column: usize, block: &PackedBlock, team: &Team) {
        let (shape, precision) = (&block.shape, block.precision);
        let (seq, hd) = (projected.len() / stride, shape.head_dim);
        self.0.resize_with(shape.heads, || Head::new(precision));
        let rows = |column: usize| Rows { data: projected.get(column..).unwrap_or_default(), stride, count: seq };
        // To move a number takes as long as some multiplications.
        let work = 16 * projected.len();
        team.each_of(self.0.iter_mut().enumerate(), work, |(head, Head { keys, values })| {
            let key = column + head * hd;
            let value = key + shape.heads * hd;
            keys.fill_rows(rows(key), hd);
            values.fill_columns(hd, rows(value));
        });
    }

    /// Queries of all heads beside each other, (queries, heads * `head_dim`), to mixtures of values in the same order.
    fn attend(&self, queries: Rows, bias: Option<&Bias>, mixed: &mut Sink, shape: &AttentionShape, team: &Team) {
        if queries.count == 0 {
            return;
        }
        let (heads, hd) = (self.0.len(), shape.head_dim);
        let work = 2 * queries.count * self.0.iter().map(|head| head.keys.size()).sum::<usize>();
        let blocks = if team.parts(work) { (queries.count / QUERIES).clamp(1, team.threads()) } else { 1 };
        team.each(blocks * heads, work, |at| {
            let (block, head) = (at / heads, at % heads);
            let (first, end) = (block * queries.count / blocks, (block + 1) * queries.count / blocks);
            let data = &queries.data[first * queries.stride + head * hd..];
            let queries = Rows { data, count: end - first, ..queries };
            // SAFETY: each part has queries or a head of its own.
            #[expect(unsafe_code, reason = "threads write to one matrix")]
            let mut mixed = unsafe { mixed.share() }.behind(first, head * hd);
            let bias = bias.map(|bias| (&bias.table[head * bias.distances..][..bias.distances], bias.zero - first));
            self.0[head].attend(queries, bias, &mut mixed);
        });
    }
}

impl Head {
    fn new(precision: Precision) -> Self {
        Self { keys: Packed::to_fill(precision), values: Packed::to_fill(precision) }
    }

    /// Softmax over all positions, and the mixture of their values. Of `bias` the second says where the distance 0 of the
    /// first query is.
    fn attend(&self, queries: Rows, bias: Option<(&[f32], usize)>, mixed: &mut Sink) {
        let (seq, alone) = (self.keys.outputs(), Team::alone());
        let stride = seq.next_multiple_of(LANES);
        SCORES.with_borrow_mut(|scores| {
            scores.make_room(queries.count * stride);
            self.keys.product(queries, &mut Sink::new(scores, stride, Into::Place), &alone);
            pulp::Arch::new().dispatch(Softmax { scores, seq, bias });
            let weights = Rows { data: scores, stride, count: queries.count };
            self.values.product(weights, mixed, &alone);
        });
    }
}

/// Rows of `x` (rows, dim) over their root mean squares.
pub(crate) fn norm(x: &[f32], dim: usize, normed: &mut Aligned<f32>) {
    normed.make_room(x.len());
    vectorized!({
        for (normed, x) in normed.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
            let scale = 1.0 / (dot(x, x) / dim as f32 + RmsNorm::EPSILON).sqrt();
            normed.iter_mut().zip(x).for_each(|(normed, x)| *normed = x * scale);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every history is in one place, in order, and none that would have fitted in front begins another.
        #[test]
        fn histories_are_joined_as_far_as_they_fit(seqs in prop::collection::vec(0usize..200, 0..20)) {
            let all: Vec<&[usize]> = joined(&seqs).collect();
            prop_assert_eq!(&all.concat(), &seqs);
            for pair in all.windows(2) {
                let rows: usize = pair[0].iter().sum();
                prop_assert!(pair[0].len() == 1 || rows <= JOINED);
                prop_assert!(rows + pair[1][0] > JOINED);
            }
        }
    }
}
