//! A matrix product without bias, as in T5.

use super::matrix::Matrix;
use super::{values, with_values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;

/// `x W^T` with `W` of shape (out, in), the layout of PyTorch.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
}

impl Linear {
    /// Weights drawn with standard deviation `stdev`.
    pub fn new(input: usize, output: usize, stdev: f64, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints((output, input), "weight", Init::Randn { mean: 0.0, stdev })?;
        Ok(Self { weight })
    }

    /// With the weights given, (out, in).
    #[cfg(test)]
    pub(crate) fn from_weight(weight: Tensor) -> Self {
        Self { weight }
    }

    /// (out, in).
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (.., in) -> (.., out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        project(x, &self.weight)
    }
}

/// (.., in) times the transpose of `weight` (out, in) -> (.., out).
pub(crate) fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if dims.pop() != Some(input) {
        candle_core::bail!("linear: input {:?} does not fit weight ({output}, {input})", x.dims());
    }
    dims.push(output);
    x.contiguous()?.reshape(((), input))?.apply_op2(&weight.contiguous()?, Project)?.reshape(dims)
}

struct Project;

impl CustomOp2 for Project {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, input), (output, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let x = Matrix::new(values(x, xl)?, rows, input);
        let w = Matrix::new(values(w, wl)?, output, input);
        Ok((CpuStorage::F32(x.times(w.t())), Shape::from((rows, output))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, input), (output, _)) = (x.dims2()?, w.dims2()?);
        let (dx, dw) = with_values(x, |xs| {
            with_values(w, |ws| {
                with_values(&grad.contiguous()?, |gs| {
                    let g = Matrix::new(gs, rows, output);
                    let dx = x.track_op().then(|| g.times(Matrix::new(ws, output, input)));
                    (dx, g.t().times(Matrix::new(xs, rows, input)))
                })
            })
        })???;
        Ok((
            dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?,
            Some(Tensor::from_vec(dw, w.shape(), w.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn gradients_match_central_differences() {
        let (x, w) = (check::var("x", &[2, 3, 7]), check::var("w", &[5, 7]));
        check::gradients(&[&x, &w], || project(&x, &w).unwrap());
    }

    #[test]
    fn equals_candle_and_refuses_wrong_widths() {
        let (x, w) = (check::var("x", &[33, 70]), check::var("w", &[41, 70]));
        let want = x.matmul(&w.t().unwrap()).unwrap();
        let gap = (project(&x, &w).unwrap() - want).unwrap().abs().unwrap().max_all().unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-4);
        assert!(project(&x, &check::var("w", &[41, 71])).is_err());
    }
}
