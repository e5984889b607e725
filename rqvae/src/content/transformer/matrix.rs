//! Products with weights that were laid out for them once.
//!
//! Weights (outputs, inputs) are kept as panels of [`PANEL`] outputs, input by input, so that the inner loop reads them
//! in order. Every sum runs over the inputs in order with fused multiply-adds, so a row's result has the same bits
//! whatever rows stand beside it.
//! Paper: Goto and van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication (the register block alone).

/// Outputs of a panel.
const PANEL: usize = 32;

/// Weights in panels.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    outputs: usize,
    inputs: usize,
    /// (outputs / `PANEL`, inputs, `PANEL`), zeros behind the last output.
    panels: Vec<f32>,
    /// (outputs,), added to every row.
    bias: Vec<f32>,
}

impl Packed {
    /// Weights (outputs, inputs), row-major, with a bias (outputs,) or none.
    pub(super) fn new(weights: &[f32], inputs: usize, bias: Option<Vec<f32>>) -> Self {
        let outputs = weights.len() / inputs;
        let mut panels = vec![0.0; outputs.div_ceil(PANEL) * inputs * PANEL];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[output / PANEL * inputs * PANEL..][..inputs * PANEL];
            panel[output % PANEL..].iter_mut().step_by(PANEL).zip(row).for_each(|(place, weight)| *place = *weight);
        }
        Self { outputs, inputs, panels, bias: bias.unwrap_or_else(|| vec![0.0; outputs]) }
    }

    /// `x` (rows, inputs) -> `out` (rows, outputs).
    pub(super) fn product(&self, x: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len() / self.inputs * self.outputs, 0.0);
        pulp::Arch::new().dispatch(Product { packed: self, x, out });
    }
}

struct Product<'a> {
    packed: &'a Packed,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let (inputs, rows) = (self.packed.inputs, self.x.len() / self.packed.inputs);
        for (panel, weights) in self.packed.panels.chunks_exact(inputs * PANEL).enumerate() {
            let mut row = 0;
            while row < rows {
                // Two vectors of sums a row, in the 16 or 32 registers that there are.
                row += match (rows - row, S::F32_LANES) {
                    (12.., 16) => self.block::<S, 12>(simd, panel, weights, row),
                    (6.., _) => self.block::<S, 6>(simd, panel, weights, row),
                    (3.., _) => self.block::<S, 3>(simd, panel, weights, row),
                    _ => self.block::<S, 1>(simd, panel, weights, row),
                };
            }
        }
    }
}

impl Product<'_> {
    /// `R` rows from `row` on with the outputs of one panel; how many rows that was.
    #[inline(always)]
    fn block<S: pulp::Simd, const R: usize>(&mut self, simd: S, panel: usize, weights: &[f32], row: usize) -> usize {
        let Packed { inputs, outputs, bias, .. } = self.packed;
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.x[(row + r) * inputs..][..*inputs]);
        let step = (2 * S::F32_LANES).min(PANEL);
        let mut sums = [[0f32; PANEL]; R];
        for start in (0..PANEL).step_by(step) {
            let mut pairs = [[simd.splat_f32s(0.0); 2]; R];
            for (input, weights) in weights.chunks_exact(PANEL).enumerate() {
                let (vectors, _) = S::as_simd_f32s(&weights[start..start + step]);
                let (a, b) = (vectors[0], vectors[vectors.len() - 1]);
                for r in 0..R {
                    let x = simd.splat_f32s(rows[r][input]);
                    pairs[r][0] = simd.mul_add_f32s(x, a, pairs[r][0]);
                    pairs[r][1] = simd.mul_add_f32s(x, b, pairs[r][1]);
                }
            }
            for (sums, pair) in sums.iter_mut().zip(pairs) {
                let (vectors, _) = S::as_mut_simd_f32s(&mut sums[start..start + step]);
                let last = vectors.len() - 1;
                vectors[0] = pair[0];
                vectors[last] = pair[1];
            }
        }
        let first = panel * PANEL;
        let width = PANEL.min(outputs - first);
        for (r, sums) in sums.iter().enumerate() {
            let out = &mut self.out[(row + r) * outputs + first..][..width];
            out.iter_mut().zip(sums).zip(&bias[first..]).for_each(|((out, sum), bias)| *out = sum + bias);
        }
        R
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// A product is the sum it should be, and a row alone has the bits that it has among others.
        #[test]
        fn products_are_exact_and_rows_do_not_meet(
            rows in 1usize..30, inputs in 1usize..70, outputs in 1usize..100, seed: u32, with_bias: bool,
        ) {
            let number = |at: usize| f32::from(((at as u32 + 1).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let x: Vec<f32> = (0..rows * inputs).map(|at| number(at + 7)).collect();
            let bias = with_bias.then(|| (0..outputs).map(|at| number(at + 99)).collect::<Vec<f32>>());
            let packed = Packed::new(&weights, inputs, bias.clone());
            let (mut out, mut alone) = (Vec::new(), Vec::new());
            packed.product(&x, &mut out);
            for row in 0..rows {
                let x = &x[row * inputs..][..inputs];
                packed.product(x, &mut alone);
                prop_assert_eq!(&alone, &out[row * outputs..][..outputs]);
                for (output, found) in alone.iter().enumerate() {
                    let products = x.iter().zip(&weights[output * inputs..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let sum = products.sum::<f64>() + bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
                    // At most 70 products of numbers below 1.
                    prop_assert!((f64::from(*found) - sum).abs() < 1e-4, "{} {}", found, sum);
                }
            }
        }
    }
}
