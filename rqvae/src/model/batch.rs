//! Rows of a training batch: items, and with a contrast a partner for each, an item of the same sessions.

use super::config::RqVaeConfig;
use super::pass::Rows;
use super::rqvae::SHARD;
use crate::quantize::Behavior;
use crate::{Error, Result, SeededRng, Vectors};
use rand::Rng;

/// Content and what behaviour says, all in the order of the training.
#[derive(Debug)]
pub(super) struct Source<'a> {
    content: &'a [f32],
    dim: usize,
    behavior: Option<&'a Behavior>,
    collaborative: Option<Vectors>,
    /// Levels of an item, where their number is drawn.
    levels: Option<usize>,
    rng: SeededRng,
}

impl<'a> Source<'a> {
    /// # Errors
    /// The configuration asks for what `behavior` does not say.
    pub(super) fn new(
        config: &RqVaeConfig,
        levels: usize,
        content: &'a [f32],
        dim: usize,
        behavior: &'a Behavior,
        seed: u64,
    ) -> Result<Self> {
        behavior.check(content.len() / dim)?;
        if config.contrast_weight > 0.0 && behavior.connected() == 0 {
            let expected = "0 where no two items occur together in a history";
            return Err(Error::config("rqvae.contrast_weight", config.contrast_weight, expected));
        }
        if config.align_weight > 0.0 && behavior.is_empty() {
            let expected = "0 without histories or collaborative vectors";
            return Err(Error::config("rqvae.align_weight", config.align_weight, expected));
        }
        let collaborative =
            (config.align_weight > 0.0).then(|| behavior.collaborative(config.latent_dim, seed)).transpose()?;
        Ok(Self {
            content,
            dim,
            behavior: (config.contrast_weight > 0.0).then_some(behavior),
            collaborative,
            levels: config.progressive.then_some(levels),
            rng: SeededRng::new(seed),
        })
    }

    /// Items of a batch that make up one shard.
    pub(super) fn items_per_shard(&self) -> usize {
        if self.behavior.is_some() { SHARD / 2 } else { SHARD }
    }

    /// Rows that the items of a batch make up.
    pub(super) fn count(&self, items: &[u32]) -> usize {
        let partners = |behavior: &Behavior| items.iter().filter(|i| behavior.has_neighbours(**i as usize)).count();
        items.len() + self.behavior.map_or(0, partners)
    }

    /// Most rows that so many items make up.
    pub(super) fn most_rows(&self, items: usize) -> usize {
        if self.behavior.is_some() { 2 * items } else { items }
    }

    /// Fills `rows` for `items`, draws following from `counter`.
    pub(super) fn fill(&self, rows: &mut Rows, items: &[u32], counter: u64) {
        rows.items.clear();
        rows.items.extend(items);
        rows.pairs.clear();
        if let Some(behavior) = self.behavior {
            let mut rng = self.rng.stream_at("partners", counter);
            for (row, &item) in items.iter().enumerate() {
                if let Some(partner) = behavior.draw(item as usize, &mut rng) {
                    rows.pairs.push((row, rows.items.len()));
                    rows.items.push(partner);
                }
            }
        }
        rows.x.clear();
        rows.collaborative.clear();
        for &item in &rows.items {
            rows.x.extend_from_slice(&self.content[item as usize * self.dim..][..self.dim]);
            if let Some(vectors) = &self.collaborative {
                rows.collaborative.extend_from_slice(vectors.row(item as usize));
            }
        }
        rows.depths.clear();
        if let Some(levels) = self.levels {
            let mut rng = self.rng.stream_at("depths", counter);
            rows.depths.extend((0..rows.items.len()).map(|_| rng.random_range(1..=levels)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemIdx;

    #[test]
    fn partners_follow_the_items_and_depths_are_drawn() {
        let history = [ItemIdx(0), ItemIdx(2)];
        let behavior = Behavior::of_histories(3, [&history[..]], 1);
        let content = [0.0, 1.0, 2.0];
        let config = RqVaeConfig { contrast_weight: 1.0, progressive: true, latent_dim: 2, ..RqVaeConfig::default() };
        let source = Source::new(&config, 3, &content, 1, &behavior, 5).unwrap();
        let mut rows = Rows::default();
        source.fill(&mut rows, &[2, 1, 0], 7);
        assert_eq!((source.count(&[2, 1, 0]), &rows.items[..]), (5, &[2, 1, 0, 0, 2][..]));
        assert_eq!(rows.pairs, [(0, 3), (2, 4)]);
        assert_eq!(rows.x, [2.0, 1.0, 0.0, 0.0, 2.0]);
        let mut seen = [0; 4];
        for counter in 0..200 {
            source.fill(&mut rows, &[0, 1], counter);
            rows.depths.iter().for_each(|&depth| seen[depth] += 1);
        }
        assert!(seen[0] == 0 && seen[1..].iter().all(|n| (150..260).contains(n)), "{seen:?}");
    }

    #[test]
    fn what_behaviour_does_not_say_is_refused() {
        let none = Behavior::default();
        for config in [
            RqVaeConfig { contrast_weight: 1.0, ..RqVaeConfig::default() },
            RqVaeConfig { align_weight: 1.0, ..RqVaeConfig::default() },
        ] {
            let error = Source::new(&config, 3, &[0.0], 1, &none, 0).unwrap_err();
            assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
        }
    }
}
