//! `AdamW` on one flat vector, with the gradients of several shards.
//!
//! Paper: Loshchilov and Hutter 2019, alg. 2; Kingma and Ba 2015 for the betas and epsilon.

use crate::AdamWConfig;
use rayon::prelude::*;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
const CHUNK: usize = 1 << 14;

/// Moments of every parameter.
#[derive(Debug)]
pub(super) struct AdamW {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
    weight_decay: f32,
}

impl AdamW {
    pub(super) fn new(parameters: usize, weight_decay: f32) -> Self {
        Self { first: vec![0.0; parameters], second: vec![0.0; parameters], step: 0, weight_decay }
    }

    /// The same numbers for who does it elsewhere.
    pub(super) fn config(weight_decay: f32) -> AdamWConfig {
        AdamWConfig {
            beta1: BETA1.into(),
            beta2: BETA2.into(),
            epsilon: EPSILON.into(),
            weight_decay: weight_decay.into(),
            clip_norm: 0.0,
        }
    }

    /// One update with the sum of `shards`, added in their order: each (parameters,).
    pub(super) fn step(&mut self, params: &mut [f32], shards: &[&[f32]], learning_rate: f32) {
        self.step = self.step.saturating_add(1);
        let correction1 = 1.0 / (1.0 - BETA1.powi(self.step));
        let correction2 = 1.0 / (1.0 - BETA2.powi(self.step));
        let keep = 1.0 - learning_rate * self.weight_decay;
        let moments = self.first.par_chunks_mut(CHUNK).zip(self.second.par_chunks_mut(CHUNK));
        params.par_chunks_mut(CHUNK).zip(moments).enumerate().for_each_init(
            || vec![0.0; CHUNK],
            |sum, (chunk, (params, (first, second)))| {
                let sum = &mut sum[..params.len()];
                let range = chunk * CHUNK..chunk * CHUNK + params.len();
                sum.copy_from_slice(&shards[0][range.clone()]);
                for shard in &shards[1..] {
                    sum.iter_mut().zip(&shard[range.clone()]).for_each(|(sum, g)| *sum += g);
                }
                for (((p, m), v), g) in params.iter_mut().zip(first).zip(second).zip(sum) {
                    *m = BETA1 * *m + (1.0 - BETA1) * *g;
                    *v = BETA2 * *v + (1.0 - BETA2) * *g * *g;
                    let update = *m * correction1 / ((*v * correction2).sqrt() + EPSILON);
                    *p = *p * keep - learning_rate * update;
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_steps_on_paper() {
        let mut params = vec![1.0, 1.0];
        let mut optim = AdamW::new(2, 0.5);
        optim.step(&mut params, &[&[2.0, 1.0], &[1.0, -4.0]], 0.1);
        // The first update is the sign of the gradient times the learning rate, after the decay of 5 %.
        assert!((params[0] - 0.85).abs() < 1e-5 && (params[1] - 1.05).abs() < 1e-5, "{params:?}");
        optim.step(&mut params, &[&[3.0, -3.0], &[0.0, 0.0]], 0.1);
        assert!((params[0] - (0.85 * 0.95 - 0.1)).abs() < 1e-5, "{params:?}");
    }
}
