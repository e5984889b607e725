//! Contrast: a row's quantised latent is to be told from others by its own key.
//!
//! Loss: sum over anchors of `-log exp(s_ii / t) / sum_j exp(s_ij / t)`, `s_ij` the cosine of anchor i and key j.
//!
//! Shapes: anchors and keys (n, dim), row i of one belonging to row i of the other.
//! Papers: van den Oord et al. 2018, eq. 4; He et al. 2025 (PLUM), sec. 3.1, keys being items of the same sessions;
//! Wang et al. 2024 (LETTER), sec. 3.2, keys being collaborative vectors.
//! Deviations: cosines with a temperature where LETTER has inner products, whose scale depends on the encoder's; the
//! other keys are those of the shard, not of the whole batch.

use crate::cluster::{Matrix, matmul};

/// Loss of `anchors` and `keys`; `weight` times its gradients is added to `to_anchors` and, where asked for, `to_keys`.
/// Keys that `same` as an anchor's own (row of the anchor, row of the key) are not held against it.
#[expect(clippy::too_many_arguments, reason = "two sides and their gradients")]
pub(super) fn contrast(
    anchors: &[f32],
    keys: &[f32],
    dim: usize,
    temperature: f32,
    same: &dyn Fn(usize, usize) -> bool,
    weight: f32,
    to_anchors: &mut [f32],
    to_keys: Option<&mut [f32]>,
) -> f64 {
    let n = anchors.len() / dim;
    let (u, u_norms) = units(anchors, dim);
    let (v, v_norms) = units(keys, dim);
    let mut scores = vec![0.0; n * n];
    matmul(&mut scores, Matrix::new(&u, n, dim), Matrix::new(&v, n, dim).t());
    let mut loss = 0.0;
    for (i, row) in scores.chunks_exact_mut(n).enumerate() {
        for (j, score) in row.iter_mut().enumerate() {
            *score = if i != j && same(i, j) { f32::NEG_INFINITY } else { *score / temperature };
        }
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = row[i] - most;
        row.iter_mut().for_each(|score| *score = (*score - most).exp());
        let sum: f32 = row.iter().sum();
        loss += f64::from(sum.ln() - own);
        // From here on the gradient of the cosines.
        row.iter_mut().for_each(|share| *share *= weight / (sum * temperature));
        row[i] -= weight / temperature;
    }
    let scores = Matrix::new(&scores, n, n);
    let mut turned = vec![0.0; n * dim];
    matmul(&mut turned, scores, Matrix::new(&v, n, dim));
    add_through_norm(to_anchors, &turned, &u, &u_norms, dim);
    if let Some(to_keys) = to_keys {
        matmul(&mut turned, scores.t(), Matrix::new(&u, n, dim));
        add_through_norm(to_keys, &turned, &v, &v_norms, dim);
    }
    loss
}

/// Rows of length 1 and the lengths they had; rows of next to no length become zeros.
fn units(rows: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let mut units = rows.to_vec();
    let norms = units
        .chunks_exact_mut(dim)
        .map(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x = if norm > 1e-12 { *x / norm } else { 0.0 });
            norm
        })
        .collect();
    (units, norms)
}

/// Adds to `out` the gradient of rows from that of their unit vectors: (g - u (u g)) / |x|.
fn add_through_norm(out: &mut [f32], gradient: &[f32], units: &[f32], norms: &[f32], dim: usize) {
    let rows = out.chunks_exact_mut(dim).zip(gradient.chunks_exact(dim)).zip(units.chunks_exact(dim));
    for (((out, g), u), norm) in rows.zip(norms).filter(|(_, norm)| **norm > 1e-12) {
        let along: f32 = g.iter().zip(u).map(|(g, u)| g * u).sum();
        for ((out, g), u) in out.iter_mut().zip(g).zip(u) {
            *out += (g - u * along) / norm;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;
    use rand::Rng;

    #[test]
    fn two_opposite_rows_on_paper() {
        // Cosines 1 on the diagonal and -1 beside it: each anchor loses ln(1 + e^-2).
        let rows = [2.0, 0.0, -3.0, 0.0];
        let loss = contrast(&rows, &rows, 2, 1.0, &|_, _| false, 1.0, &mut [0.0; 4], None);
        assert!((loss - 2.0 * (1.0 + (-2f64).exp()).ln()).abs() < 1e-6);
        let nothing_else = contrast(&rows, &rows, 2, 1.0, &|_, _| true, 1.0, &mut [0.0; 4], None);
        assert!(nothing_else.abs() < 1e-6);
    }

    #[test]
    fn gradients_equal_central_differences() {
        let (n, dim) = (4, 3);
        let mut draw = SeededRng::new(3).stream("contrast");
        let mut random = || (0..n * dim).map(|_| draw.random::<f32>() * 2.0 - 1.0).collect::<Vec<f32>>();
        let (anchors, keys) = (random(), random());
        let same = |i: usize, j: usize| (i, j) == (1, 2);
        let value = |a: &[f32], k: &[f32]| contrast(a, k, dim, 0.5, &same, 0.0, &mut [0.0; 12], None);
        let (mut to_anchors, mut to_keys) = ([0.0; 12], [0.0; 12]);
        contrast(&anchors, &keys, dim, 0.5, &same, 2.0, &mut to_anchors, Some(&mut to_keys));
        for at in 0..n * dim {
            let moved = |x: &[f32], delta: f32| {
                x.iter().enumerate().map(|(i, x)| x + if i == at { delta } else { 0.0 }).collect::<Vec<f32>>()
            };
            let a = (value(&moved(&anchors, 2e-3), &keys) - value(&moved(&anchors, -2e-3), &keys)) / 4e-3;
            let k = (value(&anchors, &moved(&keys, 2e-3)) - value(&anchors, &moved(&keys, -2e-3))) / 4e-3;
            assert!((f64::from(to_anchors[at]) - 2.0 * a).abs() < 5e-3, "{at}: {} {a}", to_anchors[at]);
            assert!((f64::from(to_keys[at]) - 2.0 * k).abs() < 5e-3, "{at}: {} {k}", to_keys[at]);
        }
    }
}
