//! Exponentials, logarithms and sums of them by fixed operations in a fixed order, so that every device gives the same
//! bits: no library function, no contraction into fused operations, sums in 32 lanes that are folded in halves.

/// Lanes of a sum.
pub(crate) const LANES: usize = 32;

/// Numbers that share a maximum in [`log_softmax`].
pub const TILE: usize = 128;

/// Exponential with a relative error below 4e-7 on [-87, 88], 0 below and clamped above; branch-free (Cephes'
/// polynomial).
///
/// What is ruled out must come to 0 and not to the least of numbers: times anything below 1 that is no normal number any
/// more, and products with such take many times as long (on an Intel Xeon a training step of `rqt` took 2.6 times).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let ruled_out = x < -87.0;
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
    let found = (p * r * r + r + 1.0) * two_to_n;
    if ruled_out { 0.0 } else { found }
}

/// Natural logarithm of a normal positive number, with an error of some units in the last place (Cephes' polynomial);
/// minus infinity of 0, and what is no number or infinite is given back.
pub(crate) fn ln(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if !x.is_finite() {
        return x;
    }
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        m += m;
    }
    m -= 1.0;
    let e = exponent as f32;
    let z = m * m;
    let mut p = 7.037_683_6e-2;
    p = p * m - 1.151_461e-1;
    p = p * m + 1.167_699_9e-1;
    p = p * m - 1.242_014_1e-1;
    p = p * m + 1.424_932_3e-1;
    p = p * m - 1.666_805_8e-1;
    p = p * m + 2.000_071_5e-1;
    p = p * m - 2.499_999_4e-1;
    p = p * m + 3.333_333e-1;
    let mut y = p * m * z;
    y += -2.121_944_4e-4 * e;
    y += -0.5 * z;
    (m + y) + 0.693_359_4 * e
}

/// Folds lanes in halves: what a warp does by exchanging numbers.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Maximum of at most [`TILE`] numbers and the sum of their exponentials over it.
#[inline(always)]
pub(crate) fn tile(x: &[f32]) -> (f32, f32) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
        }
    }
    let greater = |max: f32, x: &f32| if *x > max { *x } else { max };
    let max = maxima.iter().chain(rest).fold(f32::NEG_INFINITY, greater);
    if max == f32::NEG_INFINITY {
        return (max, 0.0);
    }
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp(chunk[lane] - max);
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += exp(x - max));
    (max, fold(lanes))
}

/// Log-probabilities from logits, in place: (codes,). Each tile of [`TILE`] codes gives its maximum and its sum of
/// exponentials, which are joined tile by tile; a head that computes its logits tile by tile does the same.
#[inline(always)]
pub fn log_softmax(row: &mut [f32]) {
    let tiles = || row.chunks(TILE).map(tile);
    let max = tiles().fold(f32::NEG_INFINITY, |max, (x, _)| if x > max { x } else { max });
    let mut sum = 0.0;
    for (x, s) in tiles() {
        sum += if x == f32::NEG_INFINITY { 0.0 } else { s * exp(x - max) };
    }
    let log_sum = ln(sum);
    for x in row.iter_mut() {
        // Two steps: the maximum may be so large that adding the logarithm to it would lose it.
        *x = (*x - max) - log_sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 4e-7, "{x}: {got} {want}");
        }
        assert!(exp(-1000.0) == 0.0 && exp(f32::NEG_INFINITY) == 0.0 && exp(-87.0) > 0.0 && exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn ln_is_close_to_the_library() {
        for i in 1..40_000 {
            let x = (i as f32 / 1000.0).powi(3);
            let want = f64::from(x).ln();
            assert!((f64::from(ln(x)) - want).abs() < 2e-7 * (1.0 + want.abs()), "{x}");
        }
        assert_eq!((ln(1.0), ln(0.0)), (0.0, f32::NEG_INFINITY));
        assert!(ln(f32::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn log_softmax_is_a_distribution(x in prop::collection::vec(-40f32..40.0, 1..600), shift in -1e4f32..1e4) {
            let mut row: Vec<f32> = x.iter().map(|x| x + shift).collect();
            let exact: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            log_softmax(&mut row);
            let max = exact.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = max + exact.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            for (got, x) in row.iter().zip(exact) {
                prop_assert!((f64::from(*got) - (x - sum)).abs() < 1e-5 * (1.0 + (x - sum).abs()));
            }
        }
    }

    #[test]
    fn impossible_codes_stay_impossible() {
        let mut row = [f32::NEG_INFINITY, 0.0, 0.0];
        log_softmax(&mut row);
        assert!(row[0] == f32::NEG_INFINITY && (row[1] + std::f32::consts::LN_2).abs() < 1e-6);
        let mut row = [f32::NEG_INFINITY; 3];
        log_softmax(&mut row);
        assert!(row.iter().all(|x| !x.is_finite()));
    }
}
