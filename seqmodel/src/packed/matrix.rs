//! Matrix products with a right side that was laid out for them.
//!
//! A right side `W` of shape (outputs, inputs) is kept as panels of [`PANEL`] outputs, input by input, so that
//! [`Product`] reads it in order, whole vectors at a time.

use super::aligned::Aligned;
use super::bytes::{self, Bytes};
use super::crew::Team;
use super::digits::{self, Digits};
use super::halves::{self, Halves, half};
use super::product::{Part, Product};
use super::sink::Sink;
use super::transpose::columns;
use crate::nn::vectorized;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// Outputs of a panel.
pub(super) const PANEL: usize = 32;

/// Rows of a tile, where the processor has tiles.
const SIDE: usize = 16;

/// Fewest rows for which a thread reads all panels by itself: fewer take longer to read than to multiply.
pub(super) const ROWS: usize = 12;

/// How weights are kept and computed with. Sums have 32 bits in any case, and so have keys and values of histories, unless
/// weights have fewer and the processor can multiply halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they were trained. Processors with tiles keep as many bits of each as the greatest of its output resolves, and
    /// multiply those; sums are about as exact as without.
    #[default]
    F32,
    /// The upper half of their bits, rounded to nearest even, and so is what they are multiplied with; processors that can
    /// multiply such halves do so.
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
    /// (outputs / `PANEL`, inputs), zeros behind the last output; empty where weights have another form.
    panels: Aligned<Line>,
    form: Option<Form>,
}

/// Weights of one input for the outputs of a panel.
pub(super) type Line = [f32; PANEL];

/// Weights that are not kept as panels of 32 bits.
#[derive(Debug, Clone)]
enum Form {
    /// Made wide panel by panel.
    Narrow(Narrow),
    /// Multiplied as they are, in tiles.
    Halves(Halves),
    /// Multiplied as they are, in vectors or tiles.
    Bytes(Bytes),
    /// All 32 bits, multiplied digit by digit in tiles.
    Digits(Digits),
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
    /// The rows that were rounded.
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

/// Most rows that a thread takes through a product together: more do not make it faster, and need more room.
pub(super) const JOINED: usize = 96;

/// So many rows in groups that go through products together on `threads` threads: the fewest there can be, as even as whole
/// tiles allow.
pub(super) fn groups(rows: usize, threads: usize) -> impl Iterator<Item = usize> {
    let (tiles, groups) = (rows.div_ceil(SIDE), rows.div_ceil(JOINED * threads.max(1)));
    let end = move |at: usize| (SIDE * (at * tiles / groups)).min(rows);
    (0..groups).map(move |at| end(at + 1) - end(at))
}

impl Packed {
    /// A matrix whose element (output, input) is `at`.
    pub(crate) fn new(outputs: usize, inputs: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let mut packed = Self::default();
        let numbers: Vec<f32> = (0..outputs)
            .flat_map(|output| (0..inputs).map(move |input| (output, input)))
            .map(|(o, i)| at(o, i))
            .collect();
        packed.fill_rows(Rows { data: &numbers, stride: inputs, count: outputs }, inputs);
        packed
    }

    /// Nothing yet, to be filled with numbers that products of `precision` read: in halves where they have fewer than 32 bits
    /// and the processor can multiply halves.
    pub(crate) fn to_fill(precision: Precision) -> Self {
        let halves = precision != Precision::F32 && Halves::fast();
        Self { form: halves.then(|| Form::Halves(Halves::default())), ..Self::default() }
    }

    /// A matrix in halves as a processor keeps it that cannot multiply them.
    #[cfg(test)]
    pub(super) fn narrowed(mut self) -> Self {
        self.form = Some(Form::Narrow(Narrow::of_halves(&self.panels)));
        self
    }

    /// The numbers of a matrix of 32 bits, in panels.
    #[cfg(test)]
    pub(super) fn panels(&self) -> &[Line] {
        &self.panels
    }

    /// A matrix in bytes as a processor keeps it that cannot multiply them.
    #[cfg(test)]
    pub(super) fn of_bytes(outputs: usize, inputs: usize, bytes: Vec<i8>, scales: Vec<f32>) -> Self {
        let form = Some(Form::Narrow(Narrow::Int8(bytes, scales)));
        Self { outputs, inputs, panels: Aligned::default(), form }
    }

    /// From its `rows`, one an output, in the memory of what was here before.
    pub(crate) fn fill_rows(&mut self, rows: Rows, inputs: usize) {
        (self.outputs, self.inputs) = (rows.count, inputs);
        if let Some(Form::Halves(halves)) = &mut self.form {
            return halves.fill_rows(rows, inputs);
        }
        self.make_room();
        for (panel, lines) in self.panels.chunks_exact_mut(inputs.max(1)).enumerate() {
            let first = panel * PANEL;
            let row = |output: usize| &rows.data[(first + output) * rows.stride..][..inputs];
            columns(lines, (rows.count - first).min(PANEL), row);
        }
    }

    /// From its `columns`, one an input, in the memory of what was here before.
    pub(crate) fn fill_columns(&mut self, outputs: usize, columns: Rows) {
        (self.outputs, self.inputs) = (outputs, columns.count);
        if let Some(Form::Halves(halves)) = &mut self.form {
            return halves.fill_columns(outputs, columns);
        }
        self.make_room();
        for input in 0..columns.count {
            let (whole, rest) = columns.data[input * columns.stride..][..outputs].as_chunks::<PANEL>();
            let mut lines = self.panels[input..].iter_mut().step_by(columns.count);
            // A line of known length is a few vectors, any other a call.
            whole.iter().zip(lines.by_ref()).for_each(|(numbers, line)| *line = *numbers);
            if let Some(line) = lines.next() {
                line[..rest.len()].copy_from_slice(rest);
            }
        }
    }

    /// What lies behind the last output is computed with and never read out: it only has to be there.
    fn make_room(&mut self) {
        self.panels.make_room(self.outputs.div_ceil(PANEL) * self.inputs);
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

    /// The same as `precision` wants it.
    pub(crate) fn stored_as(mut self, precision: Precision) -> Self {
        self.form = match precision {
            Precision::F32 => {
                let digits = Digits::fast() && self.inputs <= digits::INPUTS;
                digits.then(|| Form::Digits(Digits::new(self.outputs, self.inputs, &self.panels)))
            }
            Precision::Bf16 => Some(if Halves::fast() {
                Form::Halves(Halves::new(self.outputs, self.inputs, &self.panels))
            } else {
                Form::Narrow(Narrow::of_halves(&self.panels))
            }),
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
                    Form::Bytes(Bytes::new(self.outputs, self.inputs, &bytes, scales))
                } else {
                    Form::Narrow(Narrow::Int8(bytes, scales))
                })
            }
        };
        if self.form.is_some() {
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

    /// `rows` (count, inputs) times the transpose of this one, to `out`, with the help of `team`.
    pub(crate) fn product(&self, rows: Rows, out: &mut Sink, team: &Team) {
        match &self.form {
            None => self.each(team, rows, out, |part, run| {
                run(&self.panels[part.panels.start * self.inputs..part.panels.end * self.inputs], part);
            }),
            Some(Form::Halves(halves)) => halves.product(rows, self.inputs, out, team),
            Some(Form::Digits(digits)) => digits.product(rows, self.inputs, out, team),
            Some(Form::Bytes(bytes)) => bytes.product(rows, self.inputs, out, team),
            Some(Form::Narrow(narrow)) => ROUNDED.with_borrow_mut(|rounded| {
                match narrow {
                    Narrow::Bf16(_) => vectorized!(halves::round(rows, self.inputs, rounded)),
                    Narrow::Int8(..) => vectorized!(bytes::round(rows, self.inputs, rounded)),
                }
                let rows = Rows { data: rounded, stride: self.inputs, count: rows.count };
                self.widened(narrow, rows, out, team);
            }),
        }
    }

    /// With panels that are made wide one by one.
    fn widened(&self, narrow: &Narrow, rows: Rows, out: &Sink, team: &Team) {
        self.each(team, rows, out, |part, run| {
            WIDE.with_borrow_mut(|wide| {
                wide.make_room(self.inputs);
                for panel in part.panels {
                    narrow.widen(panel, wide.as_flattened_mut());
                    run(wide, Part { panels: panel..panel + 1, rows: part.rows.clone() });
                }
            });
        });
    }

    /// All parts of a product, each run by `multiply` with the weights of its panels.
    fn each(&self, team: &Team, rows: Rows, out: &Sink, multiply: impl Fn(Part, &dyn Fn(&[Line], Part)) + Sync) {
        let (outputs, inputs, arch) = (self.outputs, self.inputs.max(1), pulp::Arch::new());
        Part::each(team, (outputs.div_ceil(PANEL), rows.count), ROWS, rows.count * self.size(), |part| {
            multiply(part, &|panels, part| {
                // SAFETY: parts have places of their own.
                #[expect(unsafe_code, reason = "threads write to one matrix")]
                let out = unsafe { out.share() };
                arch.dispatch(Product { outputs, inputs, part, panels, rows, out });
            });
        });
    }
}

impl Narrow {
    fn of_halves(panels: &[Line]) -> Self {
        Self::Bf16(panels.as_flattened().iter().map(|weight| half(*weight)).collect())
    }

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

#[cfg(test)]
mod tests {
    use super::super::crew::Crew;
    use super::super::sink::Into;
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static CREW: LazyLock<Crew> = LazyLock::new(|| Crew::with_least(3, 1));

    #[test]
    fn groups_take_every_row_and_end_where_tiles_do() {
        for (rows, threads) in (0..700).flat_map(|rows| (1..4).map(move |threads| (rows, threads))) {
            let groups: Vec<usize> = groups(rows, threads).collect();
            assert_eq!(groups.iter().sum::<usize>(), rows);
            assert_eq!(groups.len(), rows.div_ceil(JOINED * threads));
            assert!(groups.iter().all(|group| (1..=JOINED * threads).contains(group)));
            assert!(groups.iter().rev().skip(1).all(|group| group.is_multiple_of(SIDE)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Every count of rows, outputs and inputs, rows with something between them, all three ways out.
        #[test]
        fn a_product_is_a_product(
            count in 0usize..110, inputs in 1usize..300, outputs in 1usize..100, gap in 0usize..3, seed: u32, way in 0u8..3,
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
                let columns: Vec<f32> = (0..inputs).flat_map(|i| (0..outputs).map(move |o| (o, i))).map(|(o, i)| weight(o, i)).collect();
                packed.fill_columns(outputs, Rows { data: &columns, stride: outputs, count: inputs });
            }
            packed = packed.stored_as(precision);
            let into = [Into::Place, Into::Relu, Into::Sum][usize::from(way)];
            let before: Vec<f32> = (0..count * (outputs + gap)).map(|at| number(at + 99)).collect();
            let mut out = before.clone();
            let team = if seed % 3 == 0 { Team::alone() } else { CREW.call() };
            packed.product(Rows { data: &data, stride, count }, &mut Sink::new(&mut out, outputs + gap, into), &team);
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
                // Sums of at most 300 products of numbers below 1, rows and weights rounded to the last bit of what is kept.
                let size: f64 = (0..inputs).map(|i| f64::from(data[row * stride + i].abs())).sum();
                let rounding = match precision {
                    Precision::F32 => 0.0,
                    Precision::Bf16 => 1.01 * size / 128.0,
                    Precision::Int8 => 1.01 * (size + inputs as f64) / 254.0,
                };
                prop_assert!((f64::from(*out) - want).abs() < 1e-4 + rounding, "{} {}", out, want);
            }
        }
    }
}
