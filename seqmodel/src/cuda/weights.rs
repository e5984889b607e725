//! Weights as kernels read them: rows padded with zeros, norms and scales folded in, heads at multiples of 32.

use super::launch::FUSED_DIM;
use crate::Result;
use crate::nn::{AttentionShape, Block, Linear, RmsNorm, with_values};
use beam::cuda::{Device, Memory, Numbers};
use candle_core::Tensor;
use half::bf16;
use std::sync::Arc;

/// Inputs and widths of heads are multiples of this.
pub(super) const STEP: usize = 32;

/// Hidden units that `feed_forward` takes at once.
const UNITS: usize = 128;

/// Makes weights of one kind on one device.
pub(super) struct Packer<'a> {
    pub(super) device: &'a Arc<dyn Device>,
    pub(super) numbers: Numbers,
}

/// A matrix (rows, pitch) of numbers.
pub(super) struct Matrix {
    memory: Memory,
    /// Multiple of 8.
    pub(super) rows: u32,
    /// Multiple of 32.
    pub(super) pitch: u32,
}

impl Matrix {
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// Values of a matrix (rows, columns) on the host.
pub(super) struct Host {
    values: Vec<f32>,
    columns: usize,
}

impl Host {
    pub(super) fn new(tensor: &Tensor) -> Result<Self> {
        let columns = tensor.dim(candle_core::D::Minus1)?;
        Ok(Self { values: with_values(&tensor.contiguous()?, <[f32]>::to_vec)?, columns })
    }

    fn linear(linear: &Linear) -> Result<Self> {
        Self::new(linear.weight())
    }

    pub(super) fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.columns + column]
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }
}

/// The weights of a norm.
pub(super) fn scales(norm: &RmsNorm) -> Result<Vec<f32>> {
    Ok(with_values(norm.weight(), <[f32]>::to_vec)?)
}

impl Packer<'_> {
    /// A matrix of `rows` by `columns` whose elements `at` gives, zeros around them.
    pub(super) fn matrix(&self, rows: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Result<Matrix> {
        let (tall, pitch) = (rows.next_multiple_of(8), columns.next_multiple_of(STEP));
        let value = |i: usize| {
            let (row, column) = (i / pitch, i % pitch);
            if row < rows && column < columns { at(row, column) } else { 0.0 }
        };
        let memory = match self.numbers {
            Numbers::F32 => Memory::with(self.device, &(0..tall * pitch).map(value).collect::<Vec<f32>>())?,
            Numbers::Bf16 => {
                let bits = |i| bf16::from_f32(value(i)).to_bits();
                Memory::with(self.device, &(0..tall * pitch).map(bits).collect::<Vec<u16>>())?
            }
        };
        Ok(Matrix { memory, rows: tall as u32, pitch: pitch as u32 })
    }

    /// A table of f32 rows, zeros behind them.
    pub(super) fn table(&self, host: &Host) -> Result<Memory> {
        let pitch = host.columns.next_multiple_of(STEP);
        let mut values = vec![0f32; host.rows() * pitch];
        for (to, from) in values.chunks_exact_mut(pitch).zip(host.values.chunks_exact(host.columns)) {
            to[..host.columns].copy_from_slice(from);
        }
        Ok(Memory::with(self.device, &values)?)
    }
}

/// Sizes of the heads of a block, padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) count: usize,
    /// What the model has.
    real: usize,
    /// What a device keeps, a multiple of 32.
    pub(super) dim: usize,
    scaled: bool,
}

impl Heads {
    pub(super) fn new(shape: AttentionShape) -> Self {
        let dim = shape.head_dim.next_multiple_of(STEP);
        Self { count: shape.heads, real: shape.head_dim, dim, scaled: shape.scaled }
    }

    pub(super) fn width(self) -> usize {
        self.count * self.dim
    }

    /// The model's place of a padded one; `None` in the padding.
    fn place(self, padded: usize) -> Option<usize> {
        let (head, d) = (padded / self.dim, padded % self.dim);
        (d < self.real).then_some(head * self.real + d)
    }

    fn scale(self) -> f32 {
        if self.scaled { (self.real as f32).powf(-0.5) } else { 1.0 }
    }
}

/// Weights of a block.
pub(super) struct DeviceBlock {
    pub(super) heads: Heads,
    pub(super) query_key_value: Matrix,
    pub(super) output: Matrix,
    /// Queries and output.
    pub(super) memory: Option<(Matrix, Matrix)>,
    pub(super) inner: Matrix,
    pub(super) outer: Matrix,
    pub(super) hidden: usize,
}

impl DeviceBlock {
    pub(super) fn new(block: &Block, packer: &Packer) -> Result<Self> {
        let (norm, attention) = block.attention();
        let shape = attention.shape();
        let (heads, dim) = (Heads::new(shape), shape.dim);
        let width = heads.width();
        let scales_of = scales(norm)?;
        let (query, key_value, output) = attention.projections();
        let (query, key_value) = (Host::linear(query)?, Host::linear(key_value)?);
        let (scale, inner) = (heads.scale(), heads.count * heads.real);
        let query_key_value = packer.matrix(3 * width, dim, |row, i| {
            let Some(place) = heads.place(row % width) else { return 0.0 };
            scales_of[i]
                * match row / width {
                    0 => query.at(place, i) * scale,
                    part => key_value.at((part - 1) * inner + place, i),
                }
        })?;
        let output = projection(packer, output, heads, dim)?;
        let memory = block.memory().map(|(norm, attention)| {
            let scales_of = scales(norm)?;
            let (query, _, output) = attention.projections();
            let query = Host::linear(query)?;
            let query = packer.matrix(width, dim, |row, i| {
                heads.place(row).map_or(0.0, |place| query.at(place, i) * scale * scales_of[i])
            })?;
            Result::Ok((query, projection(packer, output, heads, dim)?))
        });
        let (norm, feed_forward) = block.feed_forward();
        let (inner, outer) = feed_forward.projections();
        let (inner, outer, scales_of) = (Host::linear(inner)?, Host::linear(outer)?, scales(norm)?);
        let real = inner.rows();
        let hidden = real.next_multiple_of(UNITS);
        Ok(Self {
            heads,
            query_key_value,
            output,
            memory: memory.transpose()?,
            inner: packer.matrix(hidden, dim, |u, i| if u < real { inner.at(u, i) * scales_of[i] } else { 0.0 })?,
            // As tall as rows are wide, so that the kernels need not ask.
            outer: packer.matrix(dim.next_multiple_of(STEP), hidden, |o, u| {
                if o < dim && u < real { outer.at(o, u) } else { 0.0 }
            })?,
            hidden,
        })
    }

    /// Whether one kernel does the whole feed-forward layer.
    pub(super) fn is_fused(&self) -> bool {
        self.outer.rows <= FUSED_DIM
    }
}

/// An output projection, (dim, heads) with the heads apart.
fn projection(packer: &Packer, linear: &Linear, heads: Heads, dim: usize) -> Result<Matrix> {
    let host = Host::linear(linear)?;
    let tall = dim.next_multiple_of(STEP);
    packer.matrix(tall, heads.width(), |o, i| match heads.place(i) {
        Some(place) if o < dim => host.at(o, place),
        _ => 0.0,
    })
}

/// Keys and values that all blocks of a decoder make of a memory, with the norm behind the encoder folded in.
pub(super) fn memory_projection(packer: &Packer, decoder: &[Block], norm: &RmsNorm) -> Result<Option<Matrix>> {
    let mut parts = Vec::new();
    let mut heads = None;
    let mut dim = 0;
    for (_, attention) in decoder.iter().filter_map(Block::memory) {
        parts.push(Host::linear(attention.projections().1)?);
        heads = Some(Heads::new(attention.shape()));
        dim = attention.shape().dim;
    }
    let Some(heads) = heads else { return Ok(None) };
    let (width, scales_of) = (heads.width(), scales(norm)?);
    let inner = heads.count * heads.real;
    let matrix = packer.matrix(parts.len() * 2 * width, dim, |row, i| {
        let (layer, rest) = (row / (2 * width), row % (2 * width));
        let place = heads.place(rest % width);
        place.map_or(0.0, |place| parts[layer].at(rest / width * inner + place, i) * scales_of[i])
    })?;
    Ok(Some(matrix))
}
