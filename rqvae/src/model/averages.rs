//! Codebooks as exponential moving averages of the residuals that chose them.
//!
//! Shapes: codebooks of all levels, one after the other: (levels * size, `latent_dim`).
//! Paper: van den Oord et al. 2017, app. A.1. On Beauty's `MiniLM` vectors gradients instead leave fewer distinct
//! code tuples at equal error, .955 against .972.

/// Below this count a codeword stays where it is.
const LEAST: f32 = 1e-2;

/// Averages behind every codeword.
#[derive(Debug)]
pub(super) struct Averages {
    decay: f32,
    counts: Vec<f32>,
    sums: Vec<f32>,
}

impl Averages {
    /// Averages that give back `codebooks`.
    pub(super) fn new(decay: f32, codebooks: &[f32], dim: usize) -> Self {
        Self { decay, counts: vec![1.0; codebooks.len() / dim], sums: codebooks.to_vec() }
    }

    /// One update with the residuals of several shards, added in their order: how many chose each codeword
    /// (codewords,) and their sums (codewords, dim).
    pub(super) fn update(&mut self, codebooks: &mut [f32], shards: &[(&[f32], &[f32])]) {
        let dim = self.sums.len() / self.counts.len();
        let keep = self.decay;
        for (i, count) in self.counts.iter_mut().enumerate() {
            let range = i * dim..(i + 1) * dim;
            let (sum, codeword) = (&mut self.sums[range.clone()], &mut codebooks[range.clone()]);
            *count *= keep;
            sum.iter_mut().for_each(|sum| *sum *= keep);
            for (counts, sums) in shards {
                *count += (1.0 - keep) * counts[i];
                sum.iter_mut().zip(&sums[range.clone()]).for_each(|(sum, x)| *sum += (1.0 - keep) * x);
            }
            if *count > LEAST {
                codeword.iter_mut().zip(&*sum).for_each(|(e, sum)| *e = sum / *count);
            }
        }
    }

    /// Codeword `i` starts anew as `codeword` (dim,).
    pub(super) fn restart(&mut self, i: usize, codeword: &[f32]) {
        self.counts[i] = 1.0;
        self.sums[i * codeword.len()..][..codeword.len()].copy_from_slice(codeword);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_on_paper() {
        let mut codebooks = vec![4.0, 0.0, 1.0, 1.0];
        let mut averages = Averages::new(0.5, &codebooks, 2);
        averages.update(&mut codebooks, &[(&[2.0, 0.0], &[1.0, 3.0, 0.0, 0.0]), (&[1.0, 0.0], &[1.0, 0.0, 0.0, 0.0])]);
        // counts .5 + 1.5, sums (2 + 1, 0 + 1.5); the second codeword was not chosen and stays.
        assert_eq!(codebooks, [1.5, 0.75, 1.0, 1.0]);
        averages.restart(0, &[7.0, 8.0]);
        averages.update(&mut codebooks, &[(&[0.0, 0.0], &[0.0; 4])]);
        assert_eq!(codebooks, [7.0, 8.0, 1.0, 1.0]);
    }
}
