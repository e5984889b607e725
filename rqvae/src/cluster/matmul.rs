//! The `gemm` crate behind slices: one thread, a fixed order of additions for a given shape.

use super::lloyd::BLOCK;
use rayon::prelude::*;

/// A matrix over a slice, as it lies there or transposed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: isize,
    col_stride: isize,
}

impl<'a> Matrix<'a> {
    /// `data` is (rows, cols), row-major.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "matrix of {rows} x {cols}");
        Self { data, rows, cols, row_stride: cols as isize, col_stride: 1 }
    }

    /// The transpose: (cols, rows).
    pub(crate) fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// `out = a b`: (m, k) x (k, n) -> (m, n), row-major.
pub(crate) fn matmul(out: &mut [f32], a: Matrix, b: Matrix) {
    assert_eq!(a.cols, b.rows, "inner dimensions");
    assert_eq!(out.len(), a.rows * b.cols, "matrix product");
    if out.is_empty() {
        return;
    }
    #[expect(unsafe_code, reason = "the kernels of the gemm crate take raw pointers")]
    // SAFETY: every matrix covers rows x cols elements of its slice with the strides set by `Matrix`, checked in
    // `Matrix::new` and above; `out` is borrowed mutably, so it overlaps neither input; it is written, not read.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            false,
            a.data.as_ptr(),
            a.col_stride,
            a.row_stride,
            b.data.as_ptr(),
            b.col_stride,
            b.row_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Every row times `matrix` (dim, out): (rows, dim) -> (rows, out). The product of a row depends neither on its place
/// nor on its neighbours: blocks are always full.
pub(crate) fn multiply_rows(rows: &[f32], dim: usize, matrix: &[f32], out: usize) -> Vec<f32> {
    let mut products = vec![0.0; rows.len() / dim * out];
    products.par_chunks_mut(BLOCK * out).zip(rows.par_chunks(BLOCK * dim)).for_each(|(products, rows)| {
        let mut block = rows.to_vec();
        block.resize(BLOCK * dim, 0.0);
        let mut all = vec![0.0; BLOCK * out];
        matmul(&mut all, Matrix::new(&block, BLOCK, dim), Matrix::new(matrix, dim, out));
        products.copy_from_slice(&all[..products.len()]);
    });
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_on_paper() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        let mut out = [0.0; 4];
        matmul(&mut out, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2));
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        matmul(&mut out, Matrix::new(&a, 3, 2).t(), Matrix::new(&b, 2, 3).t());
        assert_eq!(out, [11.0, 16.0, 14.0, 20.0]);
        matmul(&mut [], Matrix::new(&[], 0, 3), Matrix::new(&b, 3, 2));
    }
}
