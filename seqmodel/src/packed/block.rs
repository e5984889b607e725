//! A transformer block with packed weights, in memory that is kept from step to step.
//!
//! Norm weights are folded into the products behind them. Keys and values that several queries read, those of a
//! history, are packed per head once; the keys of a beam's own path are read where the earlier steps left them. A row's
//! result depends on no other row of its step: those of one request can be parted among threads, and those of several
//! go through the products together.

use super::aligned::Aligned;
use super::matrix::{Into, Packed, Precision, Rows};
use super::parts::Muster;
use crate::Result;
use crate::nn::{
    Attention, AttentionShape, Block, Linear, RmsNorm, axpy, dot, exp, max_of, softmax_lanes, vectorized, with_values,
};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
}

/// Keys and values of one history for one block, head by head.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedMemory {
    keys: Vec<Packed>,
    values: Vec<Packed>,
}

/// A request's beams, or some of them, at a step of a block.
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

/// Rows that a thread needs; grows to the largest step and stays.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    pub(crate) x: Aligned<f32>,
    /// Keys and values of the block of an encoder that is at hand.
    pub(crate) memory: PackedMemory,
    pub(super) normed: Aligned<f32>,
    projected: Aligned<f32>,
    mixed: Aligned<f32>,
    scores: Aligned<f32>,
    hidden: Aligned<f32>,
}

/// Additions to attention scores: (heads, distances), the distance 0 at `zero`, keys behind the query to its right.
#[derive(Debug, Clone)]
pub(crate) struct Bias {
    pub(crate) table: Vec<f32>,
    pub(crate) distances: usize,
    pub(crate) zero: usize,
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
        })
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Numbers that a row's key and value take.
    pub(crate) fn key_value_width(&self) -> usize {
        2 * self.width()
    }

    /// Multiplications of a row of products.
    pub(crate) fn work(&self) -> usize {
        let memory = self.memory.iter().flat_map(|(query, _, output)| [query, output]);
        let own = [&self.query_key_value, &self.output, &self.inner, &self.outer];
        own.into_iter().chain(memory).map(Packed::size).sum()
    }

    /// Multiplications that keys and values of a position of a history take.
    pub(crate) fn memory_work(&self) -> usize {
        self.memory.as_ref().map_or(0, |(_, key_value, _)| key_value.size())
    }

    /// All positions of one history attend to each other, block after block: x (seq, dim), parted among the threads of
    /// `muster`, with the keys and values of the block at hand in `memory` and a room for each thread.
    pub(crate) fn encode(
        blocks: &[Self],
        x: &mut [f32],
        bias: &Bias,
        memory: &mut PackedMemory,
        rooms: &mut [Scratch],
        muster: &Muster,
    ) {
        let Some(shape) = blocks.first().map(|block| &block.shape) else { return };
        let (dim, width, hd) = (shape.dim, shape.heads * shape.head_dim, shape.head_dim);
        let (seq, stride) = (x.len() / dim, 3 * width);
        let threads = muster.threads();
        let each = seq.div_ceil(threads).max(1);
        memory.resize(shape.heads);
        // A room is its thread's, and read by all between two meetings; a head is filled by one, then read by all.
        let rooms: Vec<_> = rooms.iter_mut().map(RwLock::new).collect();
        let heads: Vec<_> = memory.keys.iter_mut().zip(&mut memory.values).map(RwLock::new).collect();
        muster.run(x.chunks_mut(each * dim).enumerate(), |(part, x), meeting| {
            let count = x.len() / dim;
            let parts = seq.div_ceil(each);
            for block in blocks {
                {
                    let room = &mut **write(&rooms[part]);
                    norm(x, dim, &mut room.normed);
                    room.projected.make_room(count * stride);
                    let rows = Rows { data: &room.normed, stride: dim, count };
                    block.query_key_value.product(rows, &mut room.projected, stride, Into::Place);
                }
                meeting.wait();
                {
                    let rooms: Vec<_> = rooms.iter().map(read).collect();
                    let row = |row: usize| &rooms[row / each].projected[row % each * stride + width..][..2 * width];
                    for head in (part..shape.heads).step_by(parts) {
                        let (keys, values) = &mut *write(&heads[head]);
                        fill(head, keys, values, seq, shape, &row);
                    }
                }
                meeting.wait();
                let room = &mut **write(&rooms[part]);
                room.mixed.make_room(count * width);
                for (head, packed) in heads.iter().enumerate() {
                    let (keys, values) = &*read(packed);
                    let queries = Rows { data: &room.projected[head * hd..], stride, count };
                    let line = &bias.table[head * bias.distances..][..bias.distances];
                    let bias = |query: usize| &line[bias.zero - part * each - query..][..seq];
                    let mixed = &mut room.mixed[head * hd..];
                    attend(keys, values, queries, Some(&bias), &mut room.scores, mixed, width);
                }
                let mixed = Rows { data: &room.mixed, stride: width, count };
                block.output.product(mixed, x, dim, Into::Sum);
                block.feed_forward(x, room);
            }
        });
    }

    /// One new position of each beam: x (rows, dim), the rows of `shares` one after the other.
    pub(crate) fn step(&self, x: &mut [f32], shares: &mut [Share], bias: Option<&Bias>, scratch: &mut Scratch) {
        let (dim, width) = (self.shape.dim, self.width());
        let rows = x.len() / dim;
        norm(x, dim, &mut scratch.normed);
        let stride = 3 * width;
        scratch.projected.make_room(rows * stride);
        let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
        self.query_key_value.product(normed, &mut scratch.projected, stride, Into::Place);
        scratch.mixed.make_room(rows * width);
        let mut first = 0;
        for share in &mut *shares {
            let count = share.new.len() / (2 * width);
            let projected = &scratch.projected[first * stride..][..count * stride];
            let rows_of_new = share.new.chunks_exact_mut(2 * width);
            projected.chunks_exact(stride).zip(rows_of_new).for_each(|(row, new)| new.copy_from_slice(&row[width..]));
            scratch.scores.make_room(share.past.len() + 1);
            let (mixed, weights) = (&mut scratch.mixed[first * width..][..count * width], &mut scratch.scores);
            vectorized!(self.own_path(projected, bias, share, mixed, weights));
            first += count;
        }
        let mixed = Rows { data: &scratch.mixed, stride: width, count: rows };
        self.output.product(mixed, x, dim, Into::Sum);
        let remembering = shares.iter().all(|share| share.memory.is_some());
        if let Some((query, _, output)) = self.memory.as_ref().filter(|_| remembering) {
            norm(x, dim, &mut scratch.normed);
            let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
            query.product(normed, &mut scratch.projected, width, Into::Place);
            let hd = self.shape.head_dim;
            let mut first = 0;
            for share in &*shares {
                let count = share.new.len() / (2 * width);
                for (head, (keys, values)) in share.memory.iter().flat_map(|memory| memory.heads()).enumerate() {
                    let from = first * width + head * hd;
                    let queries = Rows { data: &scratch.projected[from..], stride: width, count };
                    let mixed = &mut scratch.mixed[from..];
                    attend(keys, values, queries, None, &mut scratch.scores, mixed, width);
                }
                first += count;
            }
            let mixed = Rows { data: &scratch.mixed, stride: width, count: rows };
            output.product(mixed, x, dim, Into::Sum);
        }
        self.feed_forward(x, scratch);
    }

    /// Keys and values of a history (seq, dim) for this block, in the memory of what was here before.
    pub(crate) fn remember(&self, states: &[f32], memory: &mut PackedMemory, scratch: &mut Scratch) {
        let Some((_, key_value, _)) = &self.memory else { return };
        let (seq, stride) = (states.len() / self.shape.dim, 2 * self.width());
        scratch.projected.make_room(seq * stride);
        let states = Rows { data: states, stride: self.shape.dim, count: seq };
        key_value.product(states, &mut scratch.projected, stride, Into::Place);
        memory.resize(self.shape.heads);
        let row = |row: usize| &scratch.projected[row * stride..][..stride];
        for (head, (keys, values)) in memory.keys.iter_mut().zip(&mut memory.values).enumerate() {
            fill(head, keys, values, seq, &self.shape, &row);
        }
    }

    fn feed_forward(&self, x: &mut [f32], scratch: &mut Scratch) {
        let (dim, hidden) = (self.shape.dim, self.inner.outputs());
        let rows = x.len() / dim;
        norm(x, dim, &mut scratch.normed);
        scratch.hidden.make_room(rows * hidden);
        let normed = Rows { data: &scratch.normed, stride: dim, count: rows };
        self.inner.product(normed, &mut scratch.hidden, hidden, Into::Relu);
        let hidden_rows = Rows { data: &scratch.hidden, stride: hidden, count: rows };
        self.outer.product(hidden_rows, x, dim, Into::Sum);
    }

    /// Attention of each beam to its own few positions, `weights` (steps so far + 1,) being room for one row.
    #[inline(always)]
    fn own_path(&self, projected: &[f32], bias: Option<&Bias>, share: &Share, mixed: &mut [f32], weights: &mut [f32]) {
        let (width, hd, steps) = (self.width(), self.shape.head_dim, share.past.len());
        for (row, mixed) in mixed.chunks_exact_mut(width).enumerate() {
            let ancestors = &share.ancestors[row * steps..][..steps];
            let at = |t: usize| match share.past.get(t) {
                Some(past) => &past[ancestors[t] as usize * 2 * width..][..2 * width],
                None => &share.new[row * 2 * width..][..2 * width],
            };
            for head in 0..self.shape.heads {
                let query = &projected[row * 3 * width + head * hd..][..hd];
                for (t, weight) in weights.iter_mut().enumerate() {
                    *weight = dot(query, &at(t)[head * hd..][..hd]);
                    if let Some(bias) = bias {
                        *weight += bias.table[head * bias.distances + bias.zero + t - steps];
                    }
                }
                let max = max_of(weights);
                weights.iter_mut().for_each(|weight| *weight = exp(*weight - max));
                let scale = 1.0 / weights.iter().sum::<f32>();
                let mixed = &mut mixed[head * hd..][..hd];
                mixed.fill(0.0);
                for (t, weight) in weights.iter().enumerate() {
                    axpy(mixed, weight * scale, &at(t)[width + head * hd..][..hd]);
                }
            }
        }
    }
}

impl PackedMemory {
    fn heads(&self) -> impl Iterator<Item = (&Packed, &Packed)> {
        self.keys.iter().zip(&self.values)
    }

    fn resize(&mut self, heads: usize) {
        self.keys.resize_with(heads, Packed::default);
        self.values.resize_with(heads, Packed::default);
    }
}

/// Keys and values of a head, from rows of keys and values, all heads beside each other: (seq, 2 * heads * `head_dim`).
fn fill<'r>(
    head: usize,
    keys: &mut Packed,
    values: &mut Packed,
    seq: usize,
    shape: &AttentionShape,
    row: &impl Fn(usize) -> &'r [f32],
) {
    let (hd, key) = (shape.head_dim, head * shape.head_dim);
    let value = shape.heads * hd + key;
    keys.fill_rows(seq, hd, |position| &row(position)[key..][..hd]);
    values.fill_columns(hd, seq, (0..seq).map(|position| &row(position)[value..][..hd]));
}

/// Softmax over all positions, and the mixture of their values: into rows of `mixed` that are `width` apart.
fn attend<'b>(
    keys: &Packed,
    values: &Packed,
    queries: Rows,
    bias: Option<&dyn Fn(usize) -> &'b [f32]>,
    scores: &mut Aligned<f32>,
    mixed: &mut [f32],
    width: usize,
) {
    let seq = keys.outputs();
    let stride = seq.next_multiple_of(LANES);
    scores.make_room(queries.count * stride);
    keys.product(queries, scores, stride, Into::Place);
    vectorized!(softmax(scores, seq, bias));
    let weights = Rows { data: scores, stride, count: queries.count };
    values.product(weights, mixed, width, Into::Place);
}

/// Rows of scores are whole vectors: a few numbers behind the last position cost less than those that fill no vector.
const LANES: usize = 16;

/// Softmax of rows of `seq` scores, what `bias` says of its query added before.
#[inline(always)]
fn softmax<'b>(scores: &mut [f32], seq: usize, bias: Option<&dyn Fn(usize) -> &'b [f32]>) {
    for (query, row) in scores.chunks_exact_mut(seq.next_multiple_of(LANES).max(1)).enumerate() {
        let (positions, behind) = row.split_at_mut(seq);
        behind.fill(f32::NEG_INFINITY);
        if let Some(bias) = bias {
            axpy(positions, 1.0, bias(query));
        }
        softmax_lanes(row);
    }
}

/// Locks that nobody holds when they are asked for: the meetings see to it. A thread that panicked has told the others.
fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
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
