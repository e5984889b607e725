//! Small loops that compilers turn into vector code, and an exponential they can turn too.

use rayon::prelude::*;

/// Runs an expression compiled for the widest vectors that the processor has.
///
/// A closure is inlined into the code of an instruction set only when it can be called once at most, which the token
/// that it consumes makes sure of; any other is called through a shim, and stays code for every processor.
macro_rules! vectorized {
    ($body:expr) => {{
        let once = $crate::nn::Once;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let _consumed: $crate::nn::Once = once;
                $body
            },
        )
    }};
}
pub(crate) use vectorized;

/// See [`vectorized`].
pub(crate) struct Once;

/// Sum of products, in sixteen lanes with a fixed reduction order.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + tail
}

/// [`dot`] for callers outside a vectorised loop.
pub(crate) fn inner_product(a: &[f32], b: &[f32]) -> f32 {
    vectorized!(dot(a, b))
}

/// `y += a * x`.
#[inline(always)]
pub(crate) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Exponential with a relative error below 2e-7 on [-87, 88], clamped outside; branch-free (Cephes' polynomial).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_sub(0x4b40_0000 - 127) << 23);
    (p * r * r + r + 1.0) * two_to_n
}

/// Sum, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Largest value, `-inf` for none.
#[inline(always)]
pub(crate) fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().fold(tail, |m, v| m.max(*v))
}

/// Sum of `exp(x - shift)`.
#[inline(always)]
pub(crate) fn exp_shifted_sum(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().map(|v| exp(v - shift)).sum();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += exp(chunk[i] - shift);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Log-softmax of one row, in place.
pub(crate) fn log_softmax_row(row: &mut [f32]) {
    vectorized!({
        let max = max_of(row);
        let log_sum = exp_shifted_sum(row, max).ln();
        for value in row.iter_mut() {
            // Two steps: the maximum may be so large that adding the logarithm to it would lose it.
            *value = (*value - max) - log_sum;
        }
    });
}

/// Log-softmax of each row of `width` values, in place.
pub fn log_softmax_rows(data: &mut [f32], width: usize) {
    data.par_chunks_mut(width.max(1)).with_min_len(16).for_each(log_softmax_row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 4e-7, "{x}: {got} {want}");
        }
        assert!(exp(-1000.0) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for n in [0, 1, 15, 16, 17, 40] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
            assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(max_of(&x), x.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }

    #[test]
    fn log_softmax_sums_to_one_even_far_from_zero() {
        let mut x = vec![1e4, 1e4 - 1.0, -1e4, 3.0, 2.0, 1.0];
        log_softmax_rows(&mut x, 3);
        for row in x.chunks(3) {
            assert!((row.iter().map(|v| v.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert!((x[0] - x[1] - 1.0).abs() < 1e-3);
    }
}
