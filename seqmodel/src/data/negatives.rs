//! Which items a sampled loss is taken against, and how often each is to be expected among them.
//!
//! Paper: Yi et al. 2019, Sampling-Bias-Corrected Neural Modeling, alg. 2 (streaming frequencies); Yang et al. 2020,
//! Mixed Negative Sampling (targets of the batch beside uniform draws).

use crate::Result;
use candle_core::{Device, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::mix;
use std::collections::HashMap;

/// Items drawn for a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Negatives {
    /// Drawn items; one may be drawn more than once.
    pub items: Vec<u32>,
    /// How often each of them is to be expected in such a draw, above 0.
    pub expected: Vec<f32>,
    /// The same of each target.
    pub of_targets: Vec<f32>,
}

impl Negatives {
    /// `draws` items of `0..items`, uniform, keyed by `key`.
    pub fn uniform(items: usize, targets: &[u32], draws: usize, key: u64) -> Self {
        let each = draws as f32 / items.max(1) as f32;
        Self {
            items: uniform(items, draws, key).collect(),
            expected: vec![each; draws],
            of_targets: vec![each; targets.len()],
        }
    }

    /// log(1 - Q(p)) - log N + log(all draws) of each target p, with Q a share of all draws and N those that are not p: what
    /// the corrected form adds to the scores of all that was drawn.
    pub fn offsets(&self, targets: &[u32]) -> Vec<f32> {
        let draws = self.items.len();
        let mut times: HashMap<u32, usize> = HashMap::new();
        self.items.iter().for_each(|item| *times.entry(*item).or_default() += 1);
        let offset = |(target, of_target): (&u32, &f32)| {
            let others = (draws - times.get(target).copied().unwrap_or(0)).max(1) as f32;
            ((1.0 - of_target / draws as f32).max(1e-6) * draws as f32 / others).ln()
        };
        targets.iter().zip(&self.of_targets).map(offset).collect()
    }

    /// The distinct targets of the batch and `draws` uniform ones besides. An item is expected with the share of batches
    /// that it is a target in, by `frequency`, and with its share of the uniform draws.
    pub fn mixed(frequency: &[f32], targets: &[u32], draws: usize, key: u64) -> Self {
        let items = frequency.len();
        let each = draws as f32 / items.max(1) as f32;
        let mut drawn = targets.to_vec();
        drawn.sort_unstable();
        drawn.dedup();
        drawn.extend(uniform(items, draws, key));
        let expected = |item: &u32| frequency[*item as usize] + each;
        Self {
            expected: drawn.iter().map(expected).collect(),
            of_targets: targets.iter().map(expected).collect(),
            items: drawn,
        }
    }
}

fn uniform(items: usize, draws: usize, key: u64) -> impl Iterator<Item = u32> {
    (0..draws as u64).map(move |at| (mix(key ^ mix(at)) % items.max(1) as u64) as u32)
}

/// Share of the batches that an item is a target in, from the gaps between its sights: recent ones count more.
///
/// Kept among the parameters of a model, without a gradient: a run that is resumed goes on with the same estimates.
#[derive(Debug, Clone)]
pub struct ItemFrequency {
    /// A: step of the last sight, 0 for none: (items,).
    last: Tensor,
    /// B: mean gap between sights, 0 for none: (items,).
    gap: Tensor,
    /// Steps so far: (1,).
    step: Tensor,
    rate: f32,
}

impl ItemFrequency {
    /// Of `items` items; a gap moves by `rate` towards the newest one.
    pub fn new(items: usize, rate: f32, vb: &VarBuilder) -> Result<Self> {
        let zeros = |rows: usize, name: &str| vb.get_with_hints(rows, name, Init::Const(0.0));
        Ok(Self { last: zeros(items, "last")?, gap: zeros(items, "gap")?, step: zeros(1, "step")?, rate })
    }

    /// A batch with these targets has come: B <- (1 - a) B + a (t - A), A <- t.
    pub fn observe(&self, targets: &[u32]) -> Result<()> {
        let (mut last, mut gap) = (self.last.to_vec1::<f32>()?, self.gap.to_vec1::<f32>()?);
        let now = self.step.to_vec1::<f32>()?[0] + 1.0;
        for target in targets {
            let (last, gap) = (&mut last[*target as usize], &mut gap[*target as usize]);
            // Once a batch, however often it is a target in it.
            if *last < now {
                let new = now - *last;
                *gap = if *gap > 0.0 { (1.0 - self.rate) * *gap + self.rate * new } else { new };
                *last = now;
            }
        }
        let set = |tensor: &Tensor, values: Vec<f32>| -> Result<()> {
            let rows = values.len();
            Ok(Var::from_tensor(tensor)?.set(&Tensor::from_vec(values, rows, &Device::Cpu)?)?)
        };
        set(&self.last, last)?;
        set(&self.gap, gap)?;
        set(&self.step, vec![now])
    }

    /// 1 / B, at most 1; 0 for what was never seen: (items,).
    pub fn shares(&self) -> Result<Vec<f32>> {
        let share = |gap: f32| if gap > 0.0 { (1.0 / gap).min(1.0) } else { 0.0 };
        Ok(self.gap.to_vec1::<f32>()?.into_iter().map(share).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Parameters;

    #[test]
    fn frequencies_find_the_rate_of_each_item() {
        let params = Parameters::new(0);
        let frequency = ItemFrequency::new(4, 0.05, &params.builder()).unwrap();
        for step in 0..2000u64 {
            let due = |every: u64, salt: u64| mix(step ^ (salt << 32)).is_multiple_of(every);
            let targets: Vec<u32> = [(1, 0), (4, 1), (20, 2)]
                .iter()
                .filter(|(every, item)| due(*every, *item))
                .flat_map(|(_, item)| [*item as u32; 2])
                .collect();
            frequency.observe(&targets).unwrap();
        }
        let shares = frequency.shares().unwrap();
        for (share, want) in shares.iter().zip([1.0, 0.25, 0.05, 0.0]) {
            assert!((share - want).abs() <= 0.35 * want, "{shares:?}");
        }
        // Estimates are part of the checkpoint.
        assert_eq!(params.all().len(), 3);
    }

    #[test]
    fn draws_repeat_and_are_expected_as_often_as_they_come() {
        let shares = [0.5, 0.0, 0.25, 0.0, 1.0];
        let drawn = Negatives::mixed(&shares, &[4, 0, 4], 10, 7);
        assert_eq!(drawn, Negatives::mixed(&shares, &[4, 0, 4], 10, 7));
        assert_eq!((&drawn.items[..2], drawn.items.len()), (&[0, 4][..], 12));
        assert_eq!(drawn.of_targets, [3.0, 2.5, 3.0]);
        let mut counts = [0f32; 5];
        for key in 0..2000 {
            Negatives::uniform(5, &[1], 10, mix(key))
                .items
                .iter()
                .for_each(|item| counts[*item as usize] += 1.0 / 2000.0);
        }
        assert!(counts.iter().all(|count| (count - 2.0).abs() < 0.15), "{counts:?}");
    }
}
