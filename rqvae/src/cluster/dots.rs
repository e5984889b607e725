//! Inner products of many rows with a few: a matrix product of so few columns that packing them would cost more than it
//! saves, and the rows come from memory once.

use pulp::{Simd, WithSimd};

/// Columns that are multiplied while a row is in registers.
const COLUMNS: usize = 4;

/// `out = rows columns^T`: (m, dim) and (n, dim), both row-major -> (m, n). Each product is summed in an order of its own
/// that neither its place nor its neighbours change.
pub(super) fn dots(out: &mut [f32], rows: &[f32], columns: &[f32], dim: usize) {
    pulp::Arch::new().dispatch(Dots { out, rows, columns, dim });
}

struct Dots<'a> {
    out: &'a mut [f32],
    rows: &'a [f32],
    columns: &'a [f32],
    dim: usize,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { out, rows, columns, dim } = self;
        for (row, out) in rows.chunks_exact(dim).zip(out.chunks_exact_mut(columns.len() / dim)) {
            for (columns, out) in columns.chunks(COLUMNS * dim).zip(out.chunks_mut(COLUMNS)) {
                match out.len() {
                    4 => some::<S, 4>(simd, row, columns, out),
                    3 => some::<S, 3>(simd, row, columns, out),
                    2 => some::<S, 2>(simd, row, columns, out),
                    _ => some::<S, 1>(simd, row, columns, out),
                }
            }
        }
    }
}

/// One row with `N` columns. Two sums a product, so that one addition need not wait for the other.
#[inline(always)]
fn some<S: Simd, const N: usize>(simd: S, row: &[f32], columns: &[f32], out: &mut [f32]) {
    let (vectors, tail) = S::as_simd_f32s(row);
    let columns: [_; N] = std::array::from_fn(|n| S::as_simd_f32s(&columns[n * row.len()..][..row.len()]));
    let mut sums = [[simd.splat_f32s(0.0); 2]; N];
    let (pairs, last) = vectors.as_chunks::<2>();
    for (at, pair) in pairs.iter().enumerate() {
        for n in 0..N {
            let column = &columns[n].0[2 * at..][..2];
            sums[n][0] = simd.mul_add_f32s(pair[0], column[0], sums[n][0]);
            sums[n][1] = simd.mul_add_f32s(pair[1], column[1], sums[n][1]);
        }
    }
    for n in 0..N {
        if let [x] = last {
            sums[n][0] = simd.mul_add_f32s(*x, columns[n].0[vectors.len() - 1], sums[n][0]);
        }
        let tail: f32 = tail.iter().zip(columns[n].1).map(|(x, y)| x * y).sum();
        out[n] = simd.reduce_sum_f32s(simd.add_f32s(sums[n][0], sums[n][1])) + tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the shape, each product is the sum that it should be, and a row alone has the bits that it has among
        /// others.
        #[test]
        fn products_are_exact_and_rows_do_not_meet(m in 1usize..6, n in 1usize..12, dim in 1usize..80, seed: u32) {
            let number = |at: usize| f32::from(((at as u32 + 1).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let rows: Vec<f32> = (0..m * dim).map(number).collect();
            let columns: Vec<f32> = (0..n * dim).map(|at| number(at + 7)).collect();
            let mut out = vec![f32::NAN; m * n];
            dots(&mut out, &rows, &columns, dim);
            for (row, x) in rows.chunks_exact(dim).enumerate() {
                let mut alone = vec![f32::NAN; n];
                dots(&mut alone, x, &columns, dim);
                prop_assert_eq!(&alone, &out[row * n..][..n]);
                for (column, y) in columns.chunks_exact(dim).enumerate() {
                    let exact: f64 = x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    prop_assert!((f64::from(alone[column]) - exact).abs() < 1e-4, "{} is not {exact}", alone[column]);
                }
            }
        }
    }
}
