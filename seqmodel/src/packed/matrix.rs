//! Matrix products with a right side that was laid out for them.
//!
//! A right side `W` of shape (outputs, inputs) is kept as panels of [`PANEL`] outputs, input by input, so that the inner
//! loop reads it in order, whole vectors at a time. Sums run over the inputs in order, with fused multiply-adds.

/// Outputs of a panel.
const PANEL: usize = 32;

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

/// A matrix (outputs, inputs) in panels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed {
    outputs: usize,
    inputs: usize,
    /// (outputs / `PANEL`, inputs, `PANEL`), zeros behind the last output.
    panels: Vec<f32>,
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
        let row = |output: usize| (0..inputs).map(|input| at(output, input)).collect::<Vec<_>>();
        packed.fill_rows(outputs, inputs, (0..outputs).map(row));
        packed
    }

    /// From its rows, one an output, in the memory of what was here before.
    pub(crate) fn fill_rows<R: AsRef<[f32]>>(&mut self, outputs: usize, inputs: usize, rows: impl Iterator<Item = R>) {
        self.make_room(outputs, inputs);
        for (output, row) in rows.enumerate() {
            let panel = &mut self.panels[output / PANEL * inputs * PANEL..][..inputs * PANEL];
            let places = panel[output % PANEL..].iter_mut().step_by(PANEL);
            places.zip(row.as_ref()).for_each(|(place, number)| *place = *number);
        }
    }

    /// From its columns, one an input, in the memory of what was here before.
    pub(crate) fn fill_columns<'a>(&mut self, outputs: usize, inputs: usize, columns: impl Iterator<Item = &'a [f32]>) {
        self.make_room(outputs, inputs);
        for (input, column) in columns.enumerate() {
            for (panel, numbers) in column.chunks(PANEL).enumerate() {
                self.panels[(panel * inputs + input) * PANEL..][..numbers.len()].copy_from_slice(numbers);
            }
        }
    }

    /// What lies behind the last output is computed with and never read out: it only has to be there.
    fn make_room(&mut self, outputs: usize, inputs: usize) {
        (self.outputs, self.inputs) = (outputs, inputs);
        self.panels.resize(outputs.div_ceil(PANEL) * inputs * PANEL, 0.0);
    }

    /// The outputs of `first`, then those of `second`, which has the same inputs.
    pub(crate) fn join(first: &Self, second: &Self) -> Self {
        let from =
            |output: usize| if output < first.outputs { (first, output) } else { (second, output - first.outputs) };
        Self::new(first.outputs + second.outputs, first.inputs, |output, input| {
            let (matrix, output) = from(output);
            matrix.panels[(output / PANEL * matrix.inputs + input) * PANEL + output % PANEL]
        })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `rows` (count, inputs) times the transpose of this one, into rows of `out` that are `stride` apart.
    pub(crate) fn product(&self, rows: Rows, out: &mut [f32], stride: usize, into: Into) {
        pulp::Arch::new().dispatch(Product { packed: self, rows, out, stride, into });
    }
}

struct Product<'a> {
    packed: &'a Packed,
    rows: Rows<'a>,
    out: &'a mut [f32],
    stride: usize,
    into: Into,
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let inputs = self.packed.inputs;
        for (panel, numbers) in self.packed.panels.chunks_exact((inputs * PANEL).max(1)).enumerate() {
            let mut row = 0;
            while row < self.rows.count {
                // As many rows as the registers hold sums for: two vectors a row, 32 or 16 registers.
                row += match (self.rows.count - row, S::F32_LANES) {
                    (12.., 16) => self.block::<S, 12>(simd, panel, numbers, row),
                    (6.., _) => self.block::<S, 6>(simd, panel, numbers, row),
                    (4.., _) => self.block::<S, 4>(simd, panel, numbers, row),
                    (2.., _) => self.block::<S, 2>(simd, panel, numbers, row),
                    _ => self.block::<S, 1>(simd, panel, numbers, row),
                };
            }
        }
    }
}

impl Product<'_> {
    /// `R` rows from `row` on against one panel; how many rows that was.
    #[inline(always)]
    fn block<S: pulp::Simd, const R: usize>(&mut self, simd: S, panel: usize, numbers: &[f32], row: usize) -> usize {
        let inputs = self.packed.inputs;
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.rows.data[(row + r) * self.rows.stride..][..inputs]);
        let mut sums = [[0f32; PANEL]; R];
        let pair = 2 * S::F32_LANES;
        for start in (0..PANEL).step_by(pair.min(PANEL)) {
            let mut pairs = [[simd.splat_f32s(0.0); 2]; R];
            for (input, numbers) in numbers.chunks_exact(PANEL).enumerate() {
                let (vectors, _) = S::as_simd_f32s(&numbers[start..(start + pair).min(PANEL)]);
                let (a, b) = (vectors[0], vectors[vectors.len() - 1]);
                for r in 0..R {
                    let x = simd.splat_f32s(rows[r][input]);
                    pairs[r][0] = simd.mul_add_f32s(x, a, pairs[r][0]);
                    pairs[r][1] = simd.mul_add_f32s(x, b, pairs[r][1]);
                }
            }
            for r in 0..R {
                let (vectors, _) = S::as_mut_simd_f32s(&mut sums[r][start..(start + pair).min(PANEL)]);
                let last = vectors.len() - 1;
                vectors[0] = pairs[r][0];
                vectors[last] = pairs[r][1];
            }
        }
        let width = PANEL.min(self.packed.outputs - panel * PANEL);
        for r in 0..R {
            let out = &mut self.out[(row + r) * self.stride + panel * PANEL..][..width];
            match self.into {
                Into::Place => out.copy_from_slice(&sums[r][..width]),
                Into::Relu => out.iter_mut().zip(&sums[r]).for_each(|(out, sum)| *out = sum.max(0.0)),
                Into::Sum => out.iter_mut().zip(&sums[r]).for_each(|(out, sum)| *out += sum),
            }
        }
        R
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
            count in 0usize..30, inputs in 1usize..70, outputs in 1usize..100, gap in 0usize..3, seed: u32, way in 0u8..3,
        ) {
            let number = |at: usize| f32::from(((at as u32).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let stride = inputs + gap;
            let weight = |o: usize, i: usize| number(7 * o + 1000 * i + 3);
            let data: Vec<f32> = (0..count * stride).map(number).collect();
            let mut packed = Packed::new(outputs, inputs, weight);
            if seed.is_multiple_of(2) {
                // Over something else.
                packed = Packed::new(outputs + 40, inputs + 3, |_, _| 9.0);
                let columns: Vec<Vec<f32>> = (0..inputs).map(|i| (0..outputs).map(|o| weight(o, i)).collect()).collect();
                packed.fill_columns(outputs, inputs, columns.iter().map(Vec::as_slice));
            }
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
                // Sums of at most 70 products of numbers below 1.
                prop_assert!((f64::from(*out) - want).abs() < 1e-4, "{} {}", out, want);
            }
        }
    }
}
