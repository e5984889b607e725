//! Matrix products with a right side that was laid out for them.
//!
//! A right side `W` of shape (outputs, inputs) is kept as panels of [`PANEL`] outputs, input by input, so that the inner
//! loop reads it in order, whole vectors at a time. Sums run over the inputs in order, with fused multiply-adds, so that a
//! row's result depends on no other row.

use super::aligned::Aligned;
use super::bytes::{Bytes, round};
use super::transpose::columns;
use crate::nn::vectorized;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// Outputs of a panel.
pub(super) const PANEL: usize = 32;

/// Where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// Over what is there.
    Place,
    /// Over what is there, negative numbers as 0.
    Relu,
    /// On top of what is there.
    Sum,
}

/// How weights are kept and computed with. Sums have 32 bits in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they were trained.
    #[default]
    F32,
    /// The upper half of their bits, rounded to nearest even; computed with in 32.
    Bf16,
    /// One byte, times a scale per output that lets its greatest weight be 127. What they are multiplied with becomes bytes
    /// too, row by row, and processors that can multiply bytes do so.
    Int8,
}

/// A matrix (outputs, inputs) in panels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    outputs: usize,
    inputs: usize,
    /// (outputs / `PANEL`, inputs), zeros behind the last output; empty where they are narrow.
    panels: Aligned<Line>,
    small: Option<Small>,
}

/// Weights of one input for the outputs of a panel.
pub(super) type Line = [f32; PANEL];

/// Weights of fewer than 32 bits.
#[derive(Debug, Clone)]
enum Small {
    /// Made wide panel by panel.
    Narrow(Narrow),
    /// Multiplied as they are.
    Bytes(Bytes),
}

/// Weights of fewer than 32 bits, in panels.
#[derive(Debug, Clone)]
enum Narrow {
    Bf16(Vec<u16>),
    /// With one scale an output, (outputs / `PANEL`, `PANEL`).
    Int8(Vec<i8>, Vec<f32>),
}

thread_local! {
    /// The panel of narrow weights that is computed with.
    static WIDE: RefCell<Aligned<Line>> = RefCell::default();
    /// The rows that were bytes.
    static ROUNDED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows inside a larger matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// From the first number of the first row on.
    pub(crate) data: &'a [f32],
    /// From row to row.
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl Packed {
    /// A matrix whose element (output, input) is `at`.
    pub(crate) fn new(outputs: usize, inputs: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let mut packed = Self::default();
        let numbers: Vec<f32> = (0..outputs)
            .flat_map(|output| (0..inputs).map(move |input| (output, input)))
            .map(|(o, i)| at(o, i))
            .collect();
        packed.fill_rows(outputs, inputs, |output| &numbers[output * inputs..][..inputs]);
        packed
    }

    /// A matrix in bytes as a processor keeps it that cannot multiply them.
    #[cfg(test)]
    pub(super) fn of_bytes(outputs: usize, inputs: usize, bytes: Vec<i8>, scales: Vec<f32>) -> Self {
        let small = Some(Small::Narrow(Narrow::Int8(bytes, scales)));
        Self { outputs, inputs, panels: Aligned::default(), small }
    }

    /// From its rows, one an output, in the memory of what was here before.
    pub(crate) fn fill_rows<'r>(&mut self, outputs: usize, inputs: usize, row: impl Fn(usize) -> &'r [f32]) {
        self.make_room(outputs, inputs);
        for (panel, lines) in self.panels.chunks_exact_mut(inputs.max(1)).enumerate() {
            let first = panel * PANEL;
            columns(lines, (outputs - first).min(PANEL), |output| row(first + output));
        }
    }

    /// From its columns, one an input, in the memory of what was here before.
    pub(crate) fn fill_columns<'a>(&mut self, outputs: usize, inputs: usize, all: impl Iterator<Item = &'a [f32]>) {
        self.make_room(outputs, inputs);
        for (input, column) in all.enumerate() {
            let (whole, rest) = column.as_chunks::<PANEL>();
            let mut lines = self.panels[input..].iter_mut().step_by(inputs);
            // A line of known length is a few vectors, any other a call.
            whole.iter().zip(lines.by_ref()).for_each(|(numbers, line)| *line = *numbers);
            if let Some(line) = lines.next() {
                line[..rest.len()].copy_from_slice(rest);
            }
        }
    }

    /// What lies behind the last output is computed with and never read out: it only has to be there.
    fn make_room(&mut self, outputs: usize, inputs: usize) {
        (self.outputs, self.inputs) = (outputs, inputs);
        self.panels.make_room(outputs.div_ceil(PANEL) * inputs);
    }

    /// The outputs of `first`, then those of `second`, which has the same inputs.
    pub(crate) fn join(first: &Self, second: &Self) -> Self {
        let from =
            |output: usize| if output < first.outputs { (first, output) } else { (second, output - first.outputs) };
        Self::new(first.outputs + second.outputs, first.inputs, |output, input| {
            let (matrix, output) = from(output);
            matrix.panels[output / PANEL * matrix.inputs + input][output % PANEL]
        })
    }

    /// The same in fewer bits.
    pub(crate) fn stored_as(mut self, precision: Precision) -> Self {
        self.small = match precision {
            Precision::F32 => None,
            Precision::Bf16 => {
                let weights = self.panels.as_flattened().iter();
                Some(Small::Narrow(Narrow::Bf16(weights.map(|weight| bf16(*weight)).collect())))
            }
            Precision::Int8 => {
                let panels = self.panels.chunks_exact(self.inputs.max(1));
                let greatest = panels.clone().flat_map(|rows| {
                    std::array::from_fn::<f32, PANEL, _>(|at| {
                        rows.iter().fold(0.0, |most, row| row[at].abs().max(most))
                    })
                });
                let scales: Vec<f32> = greatest.map(|most| most / 127.0).collect();
                let byte = |weight: f32, scale: f32| if scale > 0.0 { (weight / scale).round() as i8 } else { 0 };
                let bytes = panels.zip(scales.chunks_exact(PANEL)).flat_map(|(rows, scales)| {
                    rows.iter().flat_map(move |row| row.iter().zip(scales).map(move |(w, scale)| byte(*w, *scale)))
                });
                let bytes: Vec<i8> = bytes.collect();
                Some(if Bytes::fast() {
                    Small::Bytes(Bytes::new(self.outputs, self.inputs, &bytes, scales))
                } else {
                    Small::Narrow(Narrow::Int8(bytes, scales))
                })
            }
        };
        if self.small.is_some() {
            self.panels = Aligned::default();
        }
        self
    }

    /// Numbers of it.
    pub(crate) fn size(&self) -> usize {
        self.outputs * self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `rows` (count, inputs) times the transpose of this one, into rows of `out` that are `stride` apart.
    pub(crate) fn product(&self, rows: Rows, out: &mut [f32], stride: usize, into: Into) {
        let inputs = self.inputs.max(1);
        let arch = pulp::Arch::new();
        let run = |first, panels: &[Line], rows: Rows, out: &mut [f32]| {
            arch.dispatch(Product { outputs: self.outputs, inputs, first, panels, rows, out, stride, into });
        };
        let widened = |narrow: &Narrow, rows: Rows, out: &mut [f32]| {
            WIDE.with_borrow_mut(|wide| {
                wide.make_room(inputs);
                for panel in 0..self.outputs.div_ceil(PANEL) {
                    narrow.widen(panel, wide.as_flattened_mut());
                    run(panel, wide, rows, out);
                }
            });
        };
        match &self.small {
            None => run(0, &self.panels, rows, out),
            Some(Small::Bytes(bytes)) => bytes.product(rows, self.inputs, out, stride, into),
            Some(Small::Narrow(narrow @ Narrow::Bf16(_))) => widened(narrow, rows, out),
            Some(Small::Narrow(narrow @ Narrow::Int8(..))) => ROUNDED.with_borrow_mut(|rounded| {
                vectorized!(round(rows, self.inputs, rounded));
                widened(narrow, Rows { data: rounded, stride: self.inputs, count: rows.count }, out);
            }),
        }
    }
}

impl Narrow {
    /// The weights of a panel: (inputs, `PANEL`).
    fn widen(&self, panel: usize, wide: &mut [f32]) {
        let (from, len) = (panel * wide.len(), wide.len());
        match self {
            Self::Bf16(halves) => {
                let halves = &halves[from..from + len];
                vectorized!(
                    wide.iter_mut().zip(halves).for_each(|(w, half)| *w = f32::from_bits(u32::from(*half) << 16))
                );
            }
            Self::Int8(bytes, scales) => {
                let (rows, _) = bytes[from..from + len].as_chunks::<PANEL>();
                let (wide, _) = wide.as_chunks_mut::<PANEL>();
                let scales = &scales[panel * PANEL..][..PANEL];
                vectorized!({
                    for (wide, bytes) in wide.iter_mut().zip(rows) {
                        for at in 0..PANEL {
                            wide[at] = f32::from(bytes[at]) * scales[at];
                        }
                    }
                });
            }
        }
    }
}

/// Rounded to nearest even. Weights are finite.
fn bf16(weight: f32) -> u16 {
    let bits = weight.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

struct Product<'a> {
    outputs: usize,
    inputs: usize,
    /// Number of the first of `panels`.
    first: usize,
    panels: &'a [Line],
    rows: Rows<'a>,
    out: &'a mut [f32],
    stride: usize,
    into: Into,
}

/// A panel and its number: (inputs, `PANEL`).
type Panel<'a> = (usize, &'a [Line]);

/// Some of the rows, in which of how many turns.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) number: usize,
    pub(super) of: usize,
}

/// `count` rows in the fewest turns of at most `most`, as even as can be: a turn with few rows waits for its own sums.
pub(super) fn turns(count: usize, most: usize) -> impl Iterator<Item = Turn> {
    let of = count.div_ceil(most);
    (0..of).map(move |number| {
        let (first, end) = (number * count / of, (number + 1) * count / of);
        Turn { first, count: end - first, number, of }
    })
}

/// Asks for what a kernel will read soon; any address will do.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that every x86-64 has, and that reads nothing.
        #[expect(unsafe_code, reason = "a hint to the processor")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The rows of a turn, one name each, against two vectors of a panel from `$start` on. Sums have names because an array of
/// them would live in memory. Each turn fetches its part of the next panel, which is read from far away otherwise.
macro_rules! tile {
    ($product:ident, $simd:ident, $panel:ident, $start:expr, $turn:ident, $($name:ident)+) => {{
        let (panel, weights) = $panel;
        let mut row = $turn.first..;
        $(
            let from = row.next().unwrap_or(0) * $product.rows.stride;
            let zero = $simd.splat_f32s(0.0);
            let mut $name = (&$product.rows.data[from..][..weights.len()], zero, zero);
        )+
        let step = size_of::<Line>().div_ceil($turn.of);
        let mut ahead = weights.as_ptr_range().end.cast::<u8>().wrapping_add(step * weights.len() * $turn.number);
        for (input, weights) in weights.iter().enumerate() {
            prefetch(ahead);
            prefetch(ahead.wrapping_add(64));
            ahead = ahead.wrapping_add(step);
            let weights = &weights[$start..][..2 * S::F32_LANES];
            let (low, high) = weights.split_at(S::F32_LANES);
            let (low, high) = (S::as_simd_f32s(low).0[0], S::as_simd_f32s(high).0[0]);
            $(
                let x = $simd.splat_f32s($name.0[input]);
                $name.1 = $simd.mul_add_f32s(x, low, $name.1);
                $name.2 = $simd.mul_add_f32s(x, high, $name.2);
            )+
        }
        let mut row = $turn.first..;
        $($product.put($simd, row.next().unwrap_or(0), panel * PANEL + $start, [$name.1, $name.2]);)+
    }};
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let panels = self.panels.chunks_exact(self.inputs);
        for panel in (self.first..).zip(panels) {
            // Loops, since closures that are called again and again stay code for every processor.
            match S::F32_LANES {
                16 => {
                    for turn in turns(self.rows.count, 12) {
                        self.wide(simd, panel, turn);
                    }
                }
                8 => {
                    for turn in turns(self.rows.count, 6) {
                        self.narrow(simd, panel, turn);
                    }
                }
                lanes => {
                    for start in (0..PANEL).step_by(lanes) {
                        for row in 0..self.rows.count {
                            self.plain::<S, 1, 1>(simd, panel, row, start);
                        }
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// Two vectors a row fill a panel, and 32 registers hold twelve rows of sums.
    #[inline(always)]
    fn wide<S: pulp::Simd>(&mut self, simd: S, panel: Panel, turn: Turn) {
        match turn.count {
            12 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j k l),
            11 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j k),
            10 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j),
            9 => tile!(self, simd, panel, 0, turn, a b c d e f g h i),
            8 => tile!(self, simd, panel, 0, turn, a b c d e f g h),
            7 => tile!(self, simd, panel, 0, turn, a b c d e f g),
            6 => tile!(self, simd, panel, 0, turn, a b c d e f),
            5 => tile!(self, simd, panel, 0, turn, a b c d e),
            4 => tile!(self, simd, panel, 0, turn, a b c d),
            3 => tile!(self, simd, panel, 0, turn, a b c),
            2 => tile!(self, simd, panel, 0, turn, a b),
            _ => tile!(self, simd, panel, 0, turn, a),
        }
    }

    /// Sixteen registers hold two vectors of six rows; a few rows take whole panels of four vectors, since sums that are
    /// too few wait for each other.
    #[inline(always)]
    fn narrow<S: pulp::Simd>(&mut self, simd: S, panel: Panel, turn: Turn) {
        match turn.count {
            1 => return self.plain::<S, 1, 4>(simd, panel, turn.first, 0),
            2 => return self.plain::<S, 2, 4>(simd, panel, turn.first, 0),
            3 => return self.plain::<S, 3, 4>(simd, panel, turn.first, 0),
            _ => {}
        }
        for start in [0, PANEL / 2] {
            match turn.count {
                6 => tile!(self, simd, panel, start, turn, a b c d e f),
                5 => tile!(self, simd, panel, start, turn, a b c d e),
                _ => tile!(self, simd, panel, start, turn, a b c d),
            }
        }
    }

    /// `R` rows from `row` on against `V` vectors of the panel from `start` on, for few sums.
    #[inline(always)]
    fn plain<S: pulp::Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        (panel, weights): Panel,
        row: usize,
        start: usize,
    ) {
        let row_of = |r: usize| &self.rows.data[(row + r) * self.rows.stride..][..weights.len()];
        let rows: [&[f32]; R] = std::array::from_fn(row_of);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for (input, weights) in weights.iter().enumerate() {
            let weights = S::as_simd_f32s(&weights[start..]).0;
            let weights: [S::f32s; V] = std::array::from_fn(|v| weights[v]);
            for r in 0..R {
                let x = simd.splat_f32s(rows[r][input]);
                for v in 0..V {
                    sums[r][v] = simd.mul_add_f32s(x, weights[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            self.put(simd, row + r, panel * PANEL + start, sums[r]);
        }
    }

    /// Sums of `row`, those of the outputs from `from` on, to their place.
    #[inline(always)]
    fn put<S: pulp::Simd, const V: usize>(&mut self, simd: S, row: usize, from: usize, sums: [S::f32s; V]) {
        let width = (V * S::F32_LANES).min(self.outputs.saturating_sub(from));
        if width == 0 {
            return;
        }
        let (on_top, clip) = (self.into == Into::Sum, self.into == Into::Relu);
        let out = &mut self.out[row * self.stride + from..][..width];
        if width == V * S::F32_LANES {
            for (out, sum) in S::as_mut_simd_f32s(out).0.iter_mut().zip(sums) {
                let sum = if on_top { simd.add_f32s(*out, sum) } else { sum };
                *out = if clip { simd.max_f32s(sum, simd.splat_f32s(0.0)) } else { sum };
            }
            return;
        }
        let mut line = [0f32; PANEL];
        S::as_mut_simd_f32s(&mut line).0.iter_mut().zip(sums).for_each(|(line, sum)| *line = sum);
        for (out, sum) in out.iter_mut().zip(line) {
            let sum = if on_top { *out + sum } else { sum };
            *out = if clip { sum.max(0.0) } else { sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Every count of rows, outputs and inputs, rows with something between them, all three ways out.
        #[test]
        fn a_product_is_a_product(
            count in 0usize..30, inputs in 1usize..300, outputs in 1usize..100, gap in 0usize..3, seed: u32, way in 0u8..3,
        ) {
            let number = |at: usize| f32::from(((at as u32).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let stride = inputs + gap;
            let weight = |o: usize, i: usize| number(7 * o + 1000 * i + 3);
            let data: Vec<f32> = (0..count * stride).map(number).collect();
            let mut packed = Packed::new(outputs, inputs, weight);
            let precision = [Precision::F32, Precision::F32, Precision::Bf16, Precision::Int8][seed as usize / 2 % 4];
            if precision == Precision::F32 && seed.is_multiple_of(2) {
                // Over something else.
                packed = Packed::new(outputs + 40, inputs + 3, |_, _| 9.0);
                let columns: Vec<Vec<f32>> = (0..inputs).map(|i| (0..outputs).map(|o| weight(o, i)).collect()).collect();
                packed.fill_columns(outputs, inputs, columns.iter().map(Vec::as_slice));
            }
            packed = packed.stored_as(precision);
            let into = [Into::Place, Into::Relu, Into::Sum][usize::from(way)];
            let before: Vec<f32> = (0..count * (outputs + gap)).map(|at| number(at + 99)).collect();
            let mut out = before.clone();
            packed.product(Rows { data: &data, stride, count }, &mut out, outputs + gap, into);
            for (at, out) in out.iter().enumerate() {
                let (row, output) = (at / (outputs + gap), at % (outputs + gap));
                if output >= outputs {
                    prop_assert_eq!(*out, before[at]);
                    continue;
                }
                let sum: f64 = (0..inputs).map(|i| f64::from(data[row * stride + i]) * f64::from(weight(output, i))).sum();
                let want = match into {
                    Into::Place => sum,
                    Into::Relu => sum.max(0.0),
                    Into::Sum => sum + f64::from(before[at]),
                };
                // Sums of at most 300 products of numbers below 1, rounded to the last bit of what is kept of a weight; with
                // bytes the row is rounded too.
                let size: f64 = (0..inputs).map(|i| f64::from(data[row * stride + i].abs())).sum();
                let rounding = match precision {
                    Precision::F32 => 0.0,
                    Precision::Bf16 => size / 256.0,
                    Precision::Int8 => 1.01 * (size + inputs as f64) / 254.0,
                };
                prop_assert!((f64::from(*out) - want).abs() < 1e-4 + rounding, "{} {}", out, want);
            }
        }
    }
}
