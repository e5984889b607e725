//! A matrix product without bias, as in T5.
//!
//! The product is an operation of its own rather than candle's: the same `gemm` kernels, but on rayon's threads, so
//! that no second pool of spinning threads competes for the cores (a step of `rqt` took 2.3 times as long with it).

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

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix holds rows * cols values");
        Self { data, rows, cols, transposed: false }
    }

    fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    /// Distance in memory between neighbours of a row, and of a column.
    fn strides(&self) -> (isize, isize) {
        if self.transposed { (self.rows as isize, 1) } else { (1, self.cols as isize) }
    }

    /// The product, row-major.
    #[allow(unsafe_code, reason = "gemm takes raw pointers")]
    fn times(self, right: Matrix) -> Vec<f32> {
        assert_eq!(self.cols, right.rows, "inner sizes agree");
        let mut out = vec![0.0; self.rows * right.cols];
        let ((left_cs, left_rs), (right_cs, right_rs)) = (self.strides(), right.strides());
        let work = self.rows * right.cols * self.cols;
        let threads = if work > 1 << 19 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
        // SAFETY: `new` has checked that both inputs hold rows * cols values, strides stay inside them, and `out` was
        // allocated with rows * right.cols values just above and is borrowed by nobody else.
        unsafe {
            gemm::gemm(
                self.rows,
                right.cols,
                self.cols,
                out.as_mut_ptr(),
                1,
                right.cols as isize,
                false,
                self.data.as_ptr(),
                left_cs,
                left_rs,
                right.data.as_ptr(),
                right_cs,
                right_rs,
                0.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
        out
    }
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
