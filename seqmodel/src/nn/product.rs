//! Small matrix products inside one thread: blocks of four rows by sixteen columns stay in registers.
//!
//! Why not `gemm`: a head's products have a few dozen rows, where packing costs as much as multiplying. To be called
//! inside `vectorized!`.

/// A matrix anywhere in memory: value (i, j) lies at `i * row + j * col`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> Strided<'a> {
    /// Rows of neighbouring values, `stride` apart.
    #[inline(always)]
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: stride, col: 1 }
    }

    /// The transpose of such a matrix.
    #[inline(always)]
    pub(crate) fn columns(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: 1, col: stride }
    }
}

const WIDE: usize = 16;

/// `out = a b` of `rows` x `depth` by `depth` x `width`, none of them 0; rows of `b` lie `b_stride` apart, those of `out` `out_stride`.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "three matrices with their strides, and the sizes")]
pub(crate) fn product(
    a: Strided,
    b: &[f32],
    b_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    rows: usize,
    depth: usize,
    width: usize,
) {
    let mut row = 0;
    while row < rows {
        let many = if rows - row >= 4 { 4 } else { 1 };
        let mut col = 0;
        while col + WIDE <= width {
            let out = &mut out[row * out_stride + col..];
            let a = Strided { data: &a.data[row * a.row..], ..a };
            if many == 4 {
                block::<4>(a, &b[col..], b_stride, out, out_stride, depth);
            } else {
                block::<1>(a, &b[col..], b_stride, out, out_stride, depth);
            }
            col += WIDE;
        }
        for row in row..row + many {
            for col in col..width {
                let terms = (0..depth).map(|k| a.data[row * a.row + k * a.col] * b[k * b_stride + col]);
                out[row * out_stride + col] = terms.sum();
            }
        }
        row += many;
    }
}

/// `R` rows and sixteen columns of a product, summed in the order of `k`.
#[inline(always)]
fn block<const R: usize>(a: Strided, b: &[f32], b_stride: usize, out: &mut [f32], out_stride: usize, depth: usize) {
    let mut sums = [[0f32; WIDE]; R];
    for k in 0..depth {
        let b = &b[k * b_stride..][..WIDE];
        for r in 0..R {
            let a = a.data[r * a.row + k * a.col];
            for c in 0..WIDE {
                sums[r][c] += a * b[c];
            }
        }
    }
    for r in 0..R {
        out[r * out_stride..][..WIDE].copy_from_slice(&sums[r]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::vectorized;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_plain_sums(rows in 1usize..10, depth in 1usize..9, width in 1usize..40, gap in 0usize..3) {
            let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
            let (a_stride, b_stride, out_stride) = (depth + gap, width + gap, width + 2 * gap);
            let a: Vec<f32> = (0..rows * a_stride).map(value).collect();
            let b: Vec<f32> = (0..depth * b_stride).map(|i| value(i + 3)).collect();
            let turned: Vec<f32> = (0..depth * rows).map(|i| a[i % rows * a_stride + i / rows]).collect();
            let mut outs = [vec![f32::NAN; rows * out_stride], vec![f32::NAN; rows * out_stride]];
            let [plain, columns] = &mut outs;
            vectorized!({
                product(Strided::rows(&a, a_stride), &b, b_stride, plain, out_stride, rows, depth, width);
                product(Strided::columns(&turned, rows), &b, b_stride, columns, out_stride, rows, depth, width);
            });
            for i in 0..rows {
                for j in 0..width {
                    // Small integers: every order of adding gives the same sum.
                    let want: f32 = (0..depth).map(|k| a[i * a_stride + k] * b[k * b_stride + j]).sum();
                    prop_assert_eq!(want, outs[0][i * out_stride + j]);
                    prop_assert_eq!(want, outs[1][i * out_stride + j]);
                }
            }
        }
    }
}
