//! Small loops that compilers turn into vector code.

pub(crate) use beam::math::exp;
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

/// Numbers that are computed with side by side. Made anew as a whole each time: an array that is changed place by place is
/// not kept in one register but in eight, two by two.
type Lanes = [f32; 16];

#[inline(always)]
fn lanes(of: impl Fn(usize) -> f32) -> Lanes {
    std::array::from_fn(of)
}

/// Sums of the first and the second half.
#[inline(always)]
fn halved<const ALL: usize, const HALF: usize>(x: [f32; ALL]) -> [f32; HALF] {
    std::array::from_fn(|i| x[i] + x[i + HALF])
}

/// Sum of products, in sixteen lanes with a fixed reduction order.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (x, y) in a.iter().zip(b) {
        sums = lanes(|i| sums[i] + x[i] * y[i]);
    }
    let [sum] = halved::<2, 1>(halved::<4, 2>(halved::<8, 4>(halved::<16, 8>(sums))));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum + rest
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

/// Sum, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums = lanes(|i| sums[i] + chunk[i]);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Largest value, `-inf` for none.
#[inline(always)]
pub(crate) fn max_of(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let greater = |a: f32, b: f32| if a > b { a } else { b };
    let most = chunks.iter().fold([f32::NEG_INFINITY; 16], |most, chunk| lanes(|i| greater(chunk[i], most[i])));
    // The greatest is the same in any order, unlike a sum.
    let most: [f32; 8] = std::array::from_fn(|i| greater(most[i], most[i + 8]));
    let most: [f32; 4] = std::array::from_fn(|i| greater(most[i], most[i + 4]));
    let most = greater(greater(most[0], most[2]), greater(most[1], most[3]));
    rest.iter().fold(most, |most, x| most.max(*x))
}

/// Sum of `exp(x - shift)`.
#[inline(always)]
pub(crate) fn exp_shifted_sum(x: &[f32], shift: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        sums = lanes(|i| sums[i] + exp(chunk[i] - shift));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| exp(v - shift)).sum::<f32>()
}

/// Log-softmax of one row, in place.
pub(crate) fn log_softmax_row(row: &mut [f32]) {
    vectorized!(beam::math::log_softmax(row));
}

/// Log-softmax of each row of `width` values, in place.
pub fn log_softmax_rows(data: &mut [f32], width: usize) {
    data.par_chunks_mut(width.max(1)).with_min_len(16).for_each(log_softmax_row);
}

#[cfg(test)]
mod tests {
    use super::*;

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
