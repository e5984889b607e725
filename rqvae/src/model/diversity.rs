//! Diversity: codewords of a group draw together, and away from all others, so that items spread over them.
//!
//! Loss: mean over items of `-log exp(<e, e+>) / sum_(j != e) exp(<e, e_j>)`, e+ another codeword of the group of e.
//!
//! Shapes: codebook (size, dim).
//! Paper: Wang et al. 2024 (LETTER), sec. 3.3.
//! Deviations: e+ is drawn once per codeword and step, not per item; groups of nearly equal size come from balanced
//! k-means.

use crate::cluster::{KmeansConfig, Matrix, Points, balanced_lloyd, matmul, squared_norms};
use crate::{Code, Result};
use rand::Rng;

/// Groups of one codebook.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    group: Vec<Code>,
    members: Vec<Vec<Code>>,
}

impl Groups {
    /// At most `groups` of nearly equal size.
    ///
    /// # Errors
    /// None: all is done by the host.
    pub(super) fn of(codebook: &[f32], dim: usize, groups: usize, seed: u64) -> Result<Self> {
        let k = groups.min(codebook.len() / dim);
        let config = KmeansConfig { k, iterations: 10, seed, ..KmeansConfig::default() };
        let mut codewords = Points::here(codebook, dim);
        let found = balanced_lloyd(&mut codewords, &config)?;
        let mut priced = squared_norms(&found.centroids, dim);
        priced.iter_mut().zip(&found.prices).for_each(|(norm, price)| *norm += price);
        let group = codewords.nearest_priced(&found.centroids, &priced)?;
        let mut members = vec![Vec::new(); k];
        group.iter().enumerate().for_each(|(code, &group)| members[usize::from(group)].push(code as Code));
        Ok(Self { group, members })
    }

    /// Another codeword of the group of each, the codeword itself where it is alone.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> Vec<Code> {
        let other = |(code, group): (usize, &Code)| {
            let members = &self.members[usize::from(*group)];
            if members.len() < 2 {
                return code as Code;
            }
            let drawn = members[rng.random_range(0..members.len() - 1)];
            if usize::from(drawn) == code { members[members.len() - 1] } else { drawn }
        };
        self.group.iter().enumerate().map(other).collect()
    }
}

/// Loss summed over items, `counts` (size,) of which chose each codeword whose partner is in `partners` (size,); `weight`
/// times its gradient is added to `grad` (size, dim). A codeword that is its own partner is left out.
pub(super) fn diversity(
    codebook: &[f32],
    dim: usize,
    counts: &[f32],
    partners: &[Code],
    weight: f32,
    grad: &mut [f32],
) -> f64 {
    let size = counts.len();
    let e = Matrix::new(codebook, size, dim);
    let mut scores = vec![0.0; size * size];
    matmul(&mut scores, e, e.t());
    let mut loss = 0.0;
    for (i, row) in scores.chunks_exact_mut(size).enumerate() {
        let partner = usize::from(partners[i]);
        if counts[i] == 0.0 || partner == i {
            row.fill(0.0);
            continue;
        }
        row[i] = f32::NEG_INFINITY;
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = row[partner] - most;
        row.iter_mut().for_each(|score| *score = (*score - most).exp());
        let sum: f32 = row.iter().sum();
        loss += f64::from(counts[i] * (sum.ln() - own));
        row.iter_mut().for_each(|share| *share *= weight * counts[i] / sum);
        row[partner] -= weight * counts[i];
    }
    let scores = Matrix::new(&scores, size, size);
    for matrix in [scores, scores.t()] {
        let mut part = vec![0.0; size * dim];
        matmul(&mut part, matrix, e);
        grad.iter_mut().zip(&part).for_each(|(g, x)| *g += x);
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRng;

    #[test]
    fn groups_are_even_and_partners_are_others_of_the_group() {
        let mut rng = SeededRng::new(5).stream("diversity");
        let codebook: Vec<f32> = (0..40 * 3).map(|_| rng.random::<f32>()).collect();
        let groups = Groups::of(&codebook, 3, 5, 1).unwrap();
        assert!(groups.members.iter().all(|members| (4..=12).contains(&members.len())), "{groups:?}");
        for _ in 0..5 {
            for (code, partner) in groups.draw(&mut rng).into_iter().enumerate() {
                assert_ne!(code, usize::from(partner));
                assert_eq!(groups.group[code], groups.group[usize::from(partner)]);
            }
        }
        let alone = Groups::of(&codebook, 3, 40, 1).unwrap().draw(&mut rng);
        assert!(alone.iter().enumerate().filter(|(i, p)| *i == usize::from(**p)).count() > 30);
    }

    #[test]
    fn gradients_equal_central_differences() {
        let mut rng = SeededRng::new(6).stream("diversity");
        let (size, dim) = (5, 2);
        let codebook: Vec<f32> = (0..size * dim).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let (counts, partners) = ([3.0, 0.0, 1.0, 2.0, 1.0], [2, 0, 0, 4, 4]);
        let value = |e: &[f32]| diversity(e, dim, &counts, &partners, 0.0, &mut [0.0; 10]);
        let mut grad = [0.0; 10];
        diversity(&codebook, dim, &counts, &partners, 0.5, &mut grad);
        for at in 0..size * dim {
            let (mut up, mut down) = (codebook.clone(), codebook.clone());
            (up[at], down[at]) = (codebook[at] + 2e-3, codebook[at] - 2e-3);
            let expected = 0.5 * (value(&up) - value(&down)) / 4e-3;
            assert!((f64::from(grad[at]) - expected).abs() < 5e-3, "{at}: {} {expected}", grad[at]);
        }
    }
}
