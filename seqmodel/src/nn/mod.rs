//! Differentiable layers. Candle's fused softmax and norms cut the gradient without a word, so each operation here
//! brings its own backward pass, checked against central differences.

mod attention;
mod block;
mod embedding;
mod feed_forward;
mod linear;
mod math;
mod matrix;
mod norm;
mod params;
mod position;
mod product;
mod unit;

pub use attention::{Attention, AttentionShape, Keys};
pub use block::{Block, Memory};
pub use embedding::{NO_ROW, embedding_sum};
pub(crate) use feed_forward::Drop;
pub use feed_forward::{FeedForward, dropout, dropout_add};
pub use linear::Linear;
pub(crate) use linear::project;
pub use math::log_softmax_rows;
pub(crate) use math::{
    Once, axpy, dot, exp, exp_shifted_sum, inner_product, log_softmax_row, max_of, sum_of, vectorized,
};
pub(crate) use matrix::Matrix;
pub use matrix::multiplications;
pub use norm::RmsNorm;
pub use params::{Parameters, load_parameters, save_parameters};
pub use position::RelativeBias;
pub use unit::unit;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// The contiguous f32 values behind a layout.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("expected a contiguous tensor".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Runs `f` on the values of a contiguous CPU tensor.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(values(cpu, layout)?)),
        _ => Err(candle_core::Error::Msg("expected a tensor on the CPU".into())),
    }
}

#[cfg(test)]
pub(crate) mod check {
    //! Central differences against backward passes.

    use candle_core::{Device, Tensor, Var};
    use rand::Rng;
    use rqvae::SeededRng;

    /// A seeded variable with values in (-1, 1).
    pub(crate) fn var(name: &str, shape: &[usize]) -> Var {
        let mut rng = SeededRng::new(11).stream(name);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Compares the gradient of `f` (projected on fixed random weights) with central differences for every input.
    pub(crate) fn gradients(inputs: &[&Var], f: impl Fn() -> Tensor) {
        let weights = var("weights", f().dims());
        let loss = || (f() * weights.as_tensor()).unwrap().sum_all().unwrap();
        let grads = loss().backward().unwrap();
        for (which, input) in inputs.iter().enumerate() {
            let grad = grads.get(input).expect("a gradient").flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let base = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let shape = input.shape().clone();
            let at = |i: usize, delta: f32| {
                let mut moved = base.clone();
                moved[i] += delta;
                input.set(&Tensor::from_vec(moved, &shape, &Device::Cpu).unwrap()).unwrap();
                f64::from(loss().to_scalar::<f32>().unwrap())
            };
            for i in (0..base.len()).step_by((base.len() / 40).max(1)) {
                let numeric = (at(i, 1e-2) - at(i, -1e-2)) / 2e-2;
                let analytic = f64::from(grad[i]);
                // f32 losses of a few units lose about 1e-6 / 2e-2 in the quotient; curvature adds the rest.
                assert!(
                    (numeric - analytic).abs() < 5e-3 * (1.0 + analytic.abs()),
                    "input {which}, element {i}: numeric {numeric}, analytic {analytic}"
                );
            }
            input.set(&Tensor::from_vec(base, &shape, &Device::Cpu).unwrap()).unwrap();
        }
    }
}
