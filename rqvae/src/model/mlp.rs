//! Encoder and decoder towers, forward and backward by hand.
//!
//! Shapes: (rows, input) -> (rows, output); ReLU between layers, none behind the last. Weights are (output, input) as
//! in PyTorch and live, with the biases, in one flat vector of the whole model, so the optimiser sees one array.

use crate::cluster::{Matrix, matmul};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// A linear layer, and where it lies in the flat vector of all parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TowerLayer {
    /// Numbers that go in.
    pub input: usize,
    /// Numbers that come out.
    pub output: usize,
    /// Place of the weight (output, input).
    pub weight: usize,
    /// Place of the bias (output,), right behind the weight.
    pub bias: usize,
}

/// Where the layers of a tower lie in the flat vector.
#[derive(Debug, Clone)]
pub(super) struct Mlp {
    layers: Vec<TowerLayer>,
}

/// What a forward pass leaves for the backward pass: the output of every layer.
pub(super) type Tape = Vec<Vec<f32>>;

impl Mlp {
    /// A tower through `widths`, its parameters from `offset` on, which moves behind them.
    pub(super) fn new(widths: &[usize], offset: &mut usize) -> Self {
        let mut place = |size: usize| {
            let start = *offset;
            *offset += size;
            start
        };
        let layers = widths
            .windows(2)
            .map(|w| TowerLayer { input: w[0], output: w[1], weight: place(w[0] * w[1]), bias: place(w[1]) })
            .collect();
        Self { layers }
    }

    /// Its layers, first to last.
    pub(super) fn layers(&self) -> &[TowerLayer] {
        &self.layers
    }

    /// Name, shape and place of every parameter.
    pub(super) fn parameters(&self, tower: &str) -> Vec<(String, Vec<usize>, usize)> {
        let both = |(i, layer): (usize, &TowerLayer)| {
            [
                (format!("{tower}.{i}.weight"), vec![layer.output, layer.input], layer.weight),
                (format!("{tower}.{i}.bias"), vec![layer.output], layer.bias),
            ]
        };
        self.layers.iter().enumerate().flat_map(both).collect()
    }

    /// Draws weights and biases from U(-1/sqrt(input), 1/sqrt(input)), as PyTorch's `Linear` does.
    pub(super) fn init(&self, params: &mut [f32], rng: &mut ChaCha8Rng) {
        for layer in &self.layers {
            let bound = 1.0 / (layer.input as f32).sqrt();
            for param in &mut params[layer.weight..layer.bias + layer.output] {
                *param = (rng.random::<f32>() * 2.0 - 1.0) * bound;
            }
        }
    }

    /// (rows, input) -> (rows, output), the last entry of the tape.
    pub(super) fn forward(&self, params: &[f32], x: &[f32], rows: usize, tape: &mut Tape) {
        tape.resize_with(self.layers.len(), Vec::new);
        for (i, layer) in self.layers.iter().enumerate() {
            let (before, after) = tape.split_at_mut(i);
            let input = before.last().map_or(x, Vec::as_slice);
            let output = &mut after[0];
            output.resize(rows * layer.output, 0.0);
            let weight = &params[layer.weight..layer.bias];
            let bias = &params[layer.bias..][..layer.output];
            let (x, w) = (Matrix::new(input, rows, layer.input), Matrix::new(weight, layer.output, layer.input));
            matmul(output, x, w.t());
            let floor = if i + 1 < self.layers.len() { 0.0 } else { f32::NEG_INFINITY };
            for row in output.chunks_exact_mut(layer.output) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y = (*y + b).max(floor));
            }
        }
    }

    /// From the gradient of the output, left in `flow` (rows, output), to those of the parameters, written at their
    /// places in `grads`, and, if `to_input`, that of the input, left in `flow` (rows, input).
    #[expect(clippy::too_many_arguments, reason = "buffers are the caller's, so that a step allocates nothing")]
    pub(super) fn backward(
        &self,
        params: &[f32],
        x: &[f32],
        rows: usize,
        tape: &Tape,
        flow: &mut Vec<f32>,
        spare: &mut Vec<f32>,
        grads: &mut [f32],
        to_input: bool,
    ) {
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let input = if i == 0 { x } else { &tape[i - 1] };
            let gradient = Matrix::new(flow, rows, layer.output);
            matmul(&mut grads[layer.weight..layer.bias], gradient.t(), Matrix::new(input, rows, layer.input));
            let bias = &mut grads[layer.bias..][..layer.output];
            bias.fill(0.0);
            for row in flow.chunks_exact(layer.output) {
                bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
            }
            if i == 0 && !to_input {
                break;
            }
            spare.resize(rows * layer.input, 0.0);
            let weight = &params[layer.weight..layer.bias];
            matmul(spare, gradient, Matrix::new(weight, layer.output, layer.input));
            if i > 0 {
                spare.iter_mut().zip(input).for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 });
            }
            std::mem::swap(flow, spare);
        }
    }
}
