//! Attention beside its two products: softmax of scores, and of a beam to its own few positions.
//!
//! Written in vectors, since compilers make few of loops like these. Steps of some rows are taken together: those of one row
//! wait for each other.

use super::block::{Bias, Share};
use super::product::prefetch;
use pulp::{Simd, WithSimd};

/// Numbers of the widest vectors. Rows of scores are whole vectors: a few numbers behind the last one cost less than those
/// that fill no vector.
pub(super) const LANES: usize = 16;

/// Rows that take a step together.
const ROWS: usize = 16;

/// Exponential of numbers that are not above 0: relative error below 4e-7, 0 below -87 (Cephes' polynomial, as
/// [`exp`](crate::nn::exp), whose bits it need not have).
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let splat = |x: f32| simd.splat_f32s(x);
    let least = splat(-87.0);
    let ruled_out = simd.less_than_f32s(x, least);
    let x = simd.select_f32s(ruled_out, least, x);
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_f32s(n, splat(-0.693_359_4), x);
    let r = simd.mul_add_f32s(n, splat(2.121_944_4e-4), r);
    let mut p = splat(1.987_569_1e-4);
    for term in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add_f32s(p, r, splat(term));
    }
    let found = simd.mul_add_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    let exponent = simd.sub_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(0x4b40_0000 - 127));
    let two_to_n = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23)));
    simd.select_f32s(ruled_out, splat(0.0), simd.mul_f32s(found, two_to_n))
}

/// Softmax of rows of `seq` scores, each in whole vectors, in place; of `bias` for each distance, added before, the second
/// says where the distance 0 of the first row is.
pub(super) struct Softmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) seq: usize,
    pub(super) bias: Option<(&'a [f32], usize)>,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scores, seq, bias } = self;
        let width = seq.next_multiple_of(LANES).max(1);
        for (block, scores) in scores.chunks_mut(ROWS * width).enumerate() {
            let (mut most, mut scales) = ([simd.splat_f32s(0.0); ROWS], [simd.splat_f32s(0.0); ROWS]);
            for (at, row) in scores.chunks_exact_mut(width).enumerate() {
                if let Some((bias, zero)) = bias {
                    let bias = &bias[zero - (block * ROWS + at)..][..seq];
                    let ((scores, rest), (bias, rest_of_bias)) = (S::as_mut_simd_f32s(row), S::as_simd_f32s(bias));
                    for (score, bias) in scores.iter_mut().zip(bias) {
                        *score = simd.add_f32s(*score, *bias);
                    }
                    debug_assert!(rest.is_empty(), "rows are whole vectors");
                    let first = seq - rest_of_bias.len();
                    for (score, bias) in row[first..].iter_mut().zip(rest_of_bias) {
                        *score += bias;
                    }
                }
                row[seq..].fill(f32::NEG_INFINITY);
                let mut greatest = simd.splat_f32s(f32::NEG_INFINITY);
                for score in S::as_simd_f32s(row).0 {
                    greatest = simd.max_f32s(greatest, *score);
                }
                most[at] = simd.splat_f32s(simd.reduce_max_f32s(greatest));
            }
            for (at, row) in scores.chunks_exact_mut(width).enumerate() {
                let mut sums = simd.splat_f32s(0.0);
                for score in S::as_mut_simd_f32s(row).0 {
                    *score = exp(simd, simd.sub_f32s(*score, most[at]));
                    sums = simd.add_f32s(sums, *score);
                }
                scales[at] = simd.splat_f32s(1.0 / simd.reduce_sum_f32s(sums));
            }
            for (at, row) in scores.chunks_exact_mut(width).enumerate() {
                for score in S::as_mut_simd_f32s(row).0 {
                    *score = simd.mul_f32s(*score, scales[at]);
                }
            }
        }
    }
}

/// Attention of each beam to its own few positions, of which the last is new.
pub(super) struct OwnPath<'a, 'b> {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) bias: Option<&'a Bias>,
    /// Queries, keys and values: (rows, query, key, value).
    pub(super) projected: &'a [f32],
    /// The keys and values go to `new`.
    pub(super) share: Share<'b>,
    /// (rows, heads * `head_dim`).
    pub(super) mixed: &'a mut [f32],
    /// Room for exactly [`OwnPath::room`] numbers.
    pub(super) weights: &'a mut [f32],
}

impl OwnPath<'_, '_> {
    /// Weights of so many positions, those of all heads side by side in whole vectors.
    pub(super) fn room(heads: usize, positions: usize) -> usize {
        positions * heads.next_multiple_of(LANES)
    }
}

/// Key and value of a beam's position: the row of an earlier step that it continues, or its own new one.
#[inline(always)]
fn position<'a>(share: &'a Share, row: usize, t: usize, width: usize) -> &'a [f32] {
    match share.past.get(t) {
        Some(past) => &past[share.ancestors[row * share.past.len() + t] as usize * 2 * width..][..2 * width],
        None => &share.new[row * 2 * width..][..2 * width],
    }
}

impl WithSimd for OwnPath<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, head_dim: hd, bias, projected, share, mixed, weights } = self;
        let (width, lanes, steps) = (heads * hd, heads.next_multiple_of(LANES), share.past.len());
        for (row, new) in projected.chunks_exact(3 * width).zip(share.new.chunks_exact_mut(2 * width)) {
            new.copy_from_slice(&row[width..]);
        }
        for (row, mixed) in mixed.chunks_exact_mut(width).enumerate() {
            // The next beam's path lies anywhere, and is fetched while this one's is read.
            if (row + 1) * steps < share.ancestors.len() {
                for t in 0..steps {
                    for line in position(&share, row + 1, t, width).chunks(LANES) {
                        prefetch(line.as_ptr().cast());
                    }
                }
            }
            let queries = &projected[row * 3 * width..][..width];
            for (t, weights) in weights.chunks_exact_mut(lanes).enumerate() {
                let keys = position(&share, row, t, width);
                for head in 0..heads {
                    let (query, key) = (&queries[head * hd..][..hd], &keys[head * hd..][..hd]);
                    let ((query, query_rest), (key, key_rest)) = (S::as_simd_f32s(query), S::as_simd_f32s(key));
                    let mut sums = simd.splat_f32s(0.0);
                    for (query, key) in query.iter().zip(key) {
                        sums = simd.mul_add_f32s(*query, *key, sums);
                    }
                    let mut sum = simd.reduce_sum_f32s(sums);
                    for (query, key) in query_rest.iter().zip(key_rest) {
                        sum += query * key;
                    }
                    weights[head] = match bias {
                        Some(bias) => sum + bias.table[head * bias.distances + bias.zero + t - steps],
                        None => sum,
                    };
                }
            }
            softmax_columns(simd, weights, lanes);
            for (head, mixed) in mixed.chunks_exact_mut(hd).enumerate() {
                mixed.fill(0.0);
                let (sums, rest) = S::as_mut_simd_f32s(mixed);
                for (t, weights) in weights.chunks_exact(lanes).enumerate() {
                    let values = &position(&share, row, t, width)[width + head * hd..][..hd];
                    let (values, values_rest) = S::as_simd_f32s(values);
                    let weight = simd.splat_f32s(weights[head]);
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = simd.mul_add_f32s(weight, *value, *sum);
                    }
                    for (sum, value) in rest.iter_mut().zip(values_rest) {
                        *sum += weights[head] * value;
                    }
                }
            }
        }
    }
}

/// Softmax of columns, (rows, width) of whole vectors, in place.
#[inline(always)]
fn softmax_columns<S: Simd>(simd: S, rows: &mut [f32], width: usize) {
    let across = width / S::F32_LANES;
    let (rows, _) = S::as_mut_simd_f32s(rows);
    for column in 0..across {
        let mut most = simd.splat_f32s(f32::NEG_INFINITY);
        for row in rows.chunks_exact(across) {
            most = simd.max_f32s(most, row[column]);
        }
        let mut sums = simd.splat_f32s(0.0);
        for row in rows.chunks_exact_mut(across) {
            row[column] = exp(simd, simd.sub_f32s(row[column], most));
            sums = simd.add_f32s(sums, row[column]);
        }
        let scales = simd.div_f32s(simd.splat_f32s(1.0), sums);
        for row in rows.chunks_exact_mut(across) {
            row[column] = simd.mul_f32s(row[column], scales);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// With the widest vectors that there are, with narrower ones and with none.
    fn everywhere(mut run: impl FnMut(&dyn Fn(Job))) {
        run(&|job| pulp::Arch::new().dispatch(job));
        run(&|job| job.with_simd(pulp::Scalar));
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            run(&|job| Simd::vectorize(simd, job));
        }
    }

    enum Job<'a, 'b> {
        Exp(&'a mut [f32]),
        Softmax(Softmax<'a>),
        OwnPath(OwnPath<'a, 'b>),
    }

    impl WithSimd for Job<'_, '_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match self {
                Self::Exp(numbers) => {
                    S::as_mut_simd_f32s(numbers).0.iter_mut().for_each(|x| *x = exp(simd, *x));
                }
                Self::Softmax(softmax) => softmax.with_simd(simd),
                Self::OwnPath(own) => own.with_simd(simd),
            }
        }
    }

    fn number(at: usize, seed: u32) -> f32 {
        let bits = (at as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(9).wrapping_mul(2_654_435_761);
        bits as f32 / 2_147_483_648.0 - 1.0
    }

    /// Weights of a softmax, by numbers of 64 bits.
    fn weights(scores: &[f64]) -> Vec<f64> {
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        scores.iter().map(|score| (score - most).exp() / sum).collect()
    }

    #[test]
    fn exponentials_are_exact_and_nothing_where_they_are_tiny() {
        everywhere(|run| {
            let inputs: Vec<f32> = (0..87 * 64).map(|at| at as f32 / -64.0).collect();
            let mut numbers = inputs.clone();
            run(Job::Exp(&mut numbers));
            for (x, found) in inputs.iter().zip(numbers) {
                let want = f64::from(*x).exp();
                assert!((f64::from(found) / want - 1.0).abs() < 4e-7, "{x}: {found} {want}");
            }
            let mut ends = [f32::NAN; LANES];
            ends[..4].copy_from_slice(&[f32::NEG_INFINITY, -1e30, -87.1, 0.0]);
            run(Job::Exp(&mut ends));
            assert_eq!(ends[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(ends[4..].iter().all(|x| x.is_nan()));
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn softmax_is_a_softmax(rows in 0usize..40, seq in 1usize..100, biased: bool, size in 0.1f32..60.0, seed: u32) {
            let (width, zero) = (seq.next_multiple_of(LANES), 50);
            let bias: Vec<f32> = (0..zero + seq).map(|at| number(at, !seed)).collect();
            let bias = biased.then_some((&bias[..], zero));
            let scores: Vec<f32> = (0..rows * width).map(|at| size * number(at, seed)).collect();
            everywhere(|run| {
                let mut found = scores.clone();
                run(Job::Softmax(Softmax { scores: &mut found, seq, bias }));
                for (row, (found, scores)) in found.chunks(width).zip(scores.chunks(width)).enumerate() {
                    let add = |at: usize| bias.map_or(0.0, |(bias, zero)| f64::from(bias[zero - row + at]));
                    let scores: Vec<f64> = (0..seq).map(|at| f64::from(scores[at]) + add(at)).collect();
                    for (found, want) in found.iter().zip(weights(&scores)) {
                        assert!((f64::from(*found) - want).abs() < 1e-5, "{found} {want}");
                    }
                    assert!(found[seq..].iter().all(|x| *x == 0.0), "{:?}", &found[seq..]);
                }
            });
        }

        /// Beams that continue rows of earlier steps in any order.
        #[test]
        fn a_beam_attends_to_its_own_path(
            rows in 1usize..6, heads in 1usize..20, hd in 1usize..40, steps in 0usize..5, biased: bool, seed: u32,
        ) {
            let width = heads * hd;
            let numbers = |count: usize, seed: u32| -> Vec<f32> { (0..count).map(|at| number(at, seed)).collect() };
            let past: Vec<Vec<f32>> = (0..steps).map(|t| numbers(rows * 2 * width, seed ^ (t as u32 + 1))).collect();
            let ancestors: Vec<u32> = (0..rows * steps).map(|at| (at as u32 ^ seed) % rows as u32).collect();
            let projected = numbers(rows * 3 * width, !seed);
            let bias = Bias { table: numbers(heads * 7, !seed ^ 1), distances: 7, zero: 5 };
            let bias = biased.then_some(&bias);
            everywhere(|run| {
                let (mut new, mut mixed) = (vec![9.0; rows * 2 * width], vec![9.0; rows * width]);
                let share = Share { new: &mut new, past: &past, ancestors: &ancestors, memory: None };
                let mut weights_of_all = vec![f32::NAN; OwnPath::room(heads, steps + 1)];
                run(Job::OwnPath(OwnPath {
                    heads, head_dim: hd, bias, projected: &projected, share, mixed: &mut mixed, weights: &mut weights_of_all,
                }));
                for (row, mixed) in mixed.chunks(width).enumerate() {
                    let own = &projected[row * 3 * width..][..3 * width];
                    assert_eq!(&new[row * 2 * width..][..2 * width], &own[width..]);
                    let path: Vec<&[f32]> = (0..=steps).map(|t| match past.get(t) {
                        Some(past) => &past[ancestors[row * steps + t] as usize * 2 * width..][..2 * width],
                        None => &own[width..],
                    }).collect();
                    for head in 0..heads {
                        let of = |numbers: &[f32], at: usize| f64::from(numbers[head * hd + at]);
                        let scores = path.iter().enumerate().map(|(t, position)| {
                            let bias = bias.map_or(0.0, |b| f64::from(b.table[head * b.distances + b.zero + t - steps]));
                            (0..hd).map(|at| of(own, at) * of(position, at)).sum::<f64>() + bias
                        });
                        let weights = weights(&scores.collect::<Vec<_>>());
                        for at in 0..hd {
                            let want: f64 = path.iter().zip(&weights).map(|(p, w)| w * of(&p[width..], at)).sum();
                            assert!((of(mixed, at) - want).abs() < 1e-5, "{} {want}", of(mixed, at));
                        }
                    }
                }
            });
        }
    }
}
