//! The loops of a transformer that are no matrix products, compiled for the widest vectors that the processor has.

/// Runs an expression compiled for each instruction set, and chooses at run time.
///
/// A closure is inlined into the code of an instruction set only when it can be called once at most, which the token
/// that it consumes makes sure of.
macro_rules! vectorized {
    ($body:expr) => {{
        let once = $crate::content::transformer::math::Once;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let _consumed: $crate::content::transformer::math::Once = once;
                $body
            },
        )
    }};
}
pub(super) use vectorized;

/// See [`vectorized`].
pub(super) struct Once;

const LANES: usize = 16;

/// Sum of `f` over a row, in sixteen lanes with a fixed order.
#[inline(always)]
fn sum_by(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Exponential of a number up to 0: relative error below 2e-7, 0 where it underflows (Cephes' polynomial).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let ruled_out = x < -87.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_sub(0x4b40_0000 - 127) << 23);
    if ruled_out { 0.0 } else { (p * r * r + r + 1.0) * two_to_n }
}

/// Error function, absolute error below 2e-7: a rational function of its argument, clamped where it is 1.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-3.832_507, 3.832_507);
    let z = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * z + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
        q = q * z + c;
    }
    x * p / q
}

/// What stands between the two products of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// x times the normal distribution function.
    Gelu,
    /// The same by a hyperbolic tangent.
    GeluTanh,
    /// Negative numbers become 0.
    Relu,
}

impl Activation {
    /// By the names that Hugging Face gives them.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    /// Over all numbers, in place.
    pub(super) fn apply(self, x: &mut [f32]) {
        match self {
            Self::Gelu => vectorized!(for x in x {
                *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            }),
            Self::GeluTanh => vectorized!(for x in x {
                // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2u))
                let u = 0.797_884_6 * (*x + 0.044_715 * *x * *x * *x);
                *x /= 1.0 + exp((-2.0 * u).clamp(-80.0, 80.0));
            }),
            Self::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
    }
}

/// `x += y`, then every row of `x` (rows, dim) to mean 0 and variance 1, times `weight` plus `bias`, both (dim,).
pub(super) fn add_and_norm(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let dim = weight.len();
    vectorized!(for (x, y) in x.chunks_exact_mut(dim).zip(y.chunks_exact(dim)) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        let mean = sum_by(x, |x| x) / dim as f32;
        let variance = sum_by(x, |x| (x - mean) * (x - mean)) / dim as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * scale * weight + bias;
        }
    });
}

/// Rows of `x` (rows, dim) over their root mean squares, times `weight` (dim,): into `out`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut Vec<f32>) {
    let dim = weight.len();
    out.resize(x.len(), 0.0);
    vectorized!(for (out, x) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
        let scale = 1.0 / (sum_by(x, |x| x * x) / dim as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    });
}

/// `x += y`
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x *= y`
pub(super) fn multiply(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x *= y);
}

/// Softmax of a row, in place.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
    row.iter_mut().for_each(|x| *x = exp(*x - max));
    let scale = 1.0 / sum_by(row, |x| x);
    row.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By its Taylor series, in 64 bits.
    fn normal(x: f64) -> f64 {
        let z = x / std::f64::consts::SQRT_2;
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        0.5 * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
    }

    #[test]
    fn activations_are_what_they_say() {
        let x: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 200.0).collect();
        let (mut gelu, mut tanh) = (x.clone(), x.clone());
        Activation::Gelu.apply(&mut gelu);
        Activation::GeluTanh.apply(&mut tanh);
        for ((x, gelu), tanh) in x.iter().zip(&gelu).zip(&tanh) {
            let x = f64::from(*x);
            // Six times an error of 2e-7 at the ends.
            assert!((f64::from(*gelu) - x * normal(x)).abs() < 1.5e-6, "{x}: {gelu}");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            assert!((f64::from(*tanh) - 0.5 * x * (1.0 + u.tanh())).abs() < 1.5e-6, "{x}: {tanh}");
        }
        let mut far = [f32::MAX, -1e30, 1e30, -0.0];
        Activation::Gelu.apply(&mut far);
        // Where the error function is all but -1 or 1, what is left or lost is a ten-millionth of the number.
        let kept = |got: f32, want: f32| (got - want).abs() <= want * 2e-7;
        assert!(kept(far[0], f32::MAX) && far[1].abs() <= 1e30 * 2e-7, "{far:?}");
        assert!(kept(far[2], 1e30) && far[3] == 0.0, "{far:?}");
        let mut far = [-1e10, 1e10];
        Activation::GeluTanh.apply(&mut far);
        assert!(far[0].abs() < 1e-20 && far[1] == 1e10, "{far:?}");
    }

    #[test]
    fn norms_and_softmax_on_paper() {
        let mut x = [1.0, 0.0];
        add_and_norm(&mut x, &[2.0, 1.0], &[2.0, 2.0], &[0.5, 0.5], 0.0);
        assert_eq!(x, [2.5, -1.5]);
        let mut out = Vec::new();
        rms_norm(&[3.0, -3.0], &[1.0, 2.0], 0.0, &mut out);
        assert_eq!(out, [1.0, -2.0]);
        let mut row = [0.0, 3f32.ln(), -1e9];
        softmax(&mut row);
        assert!((row[0] - 0.25).abs() < 1e-6 && (row[1] - 0.75).abs() < 1e-6 && row[2] < 1e-20, "{row:?}");
    }
}
