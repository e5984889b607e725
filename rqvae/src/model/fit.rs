//! Training of the RQ-VAE.
//!
//! Codebooks start from k-means, level by level on residuals. While they form, codes without an item are set to
//! residuals of random items. In the second half the weights are judged now and then, and the best are kept.

use super::averages::Averages;
use super::batch::Source;
use super::config::RqVaeConfig;
use super::diversity::{Groups, diversity};
use super::engine::Engine;
use super::estimator::CodebookUpdate;
use super::optim::AdamW;
use super::pass::{Shard, Step};
use super::rqvae::RqVae;
use crate::cluster::{KmeansConfig, Points, lloyd, squared_norms};
use crate::quantize::{Behavior, FitProgress, QuantizerConfig, ResidualQuantizer};
use crate::{Accelerator, Error, Result, SeededRng, SidStats};
use rand::Rng;
use rand::seq::SliceRandom;

const STAGE: &str = "rqvae";
const INIT_ITERATIONS: usize = 20;

/// Fits a network to standardised content (items, dim), whose rows come in the order of a hash of their content, as do
/// those of `behavior`. With `device` the towers are computed there; what that computes is compared with the host before
/// anything is learned from it.
pub(super) fn fit(
    config: &QuantizerConfig,
    content: &[f32],
    dim: usize,
    behavior: &Behavior,
    device: Option<&dyn Accelerator>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<RqVae> {
    let options = &config.rqvae;
    let items = content.len() / dim;
    let total = options.epochs_over(items);
    let mut fitting = Fitting::new(config, content, dim, behavior, device)?;
    let mut order: Vec<u32> = (0..items as u32).collect();
    if device.is_some() {
        fitting.agree(&order, options.temperature_at(1, total))?;
    }
    let last_reset = (total as f64 * options.reset_until) as usize;
    let mut best: Option<(Judgement, RqVae)> = None;
    for done in 1..=total {
        order.shuffle(&mut fitting.rng.stream_at("shuffle", done as u64));
        let learning_rate = learning_rate(options, done - 1, total);
        let temperature = options.temperature_at(done, total);
        let groups = groups(&fitting.model, options, &fitting.rng, done)?;
        let mut used = vec![false; fitting.model.codewords()];
        let (mut loss, mut seen) = (0.0, 0);
        for batch in order.chunks(options.batch_size) {
            let (batch_loss, rows) = fitting.pass(batch, temperature, groups.as_deref())?;
            if !batch_loss.is_finite() {
                return Err(Error::NonFinite { what: "loss of the RQ-VAE".into(), step: done as u64 });
            }
            loss += batch_loss;
            seen += rows;
            for shard in fitting.active() {
                used.iter_mut().zip(&shard.counts).for_each(|(used, count)| *used |= *count > 0.0);
            }
            fitting.update(learning_rate)?;
        }
        if options.reset_every > 0 && done.is_multiple_of(options.reset_every) && done <= last_reset {
            fitting.revive(&used, done as u64);
        }
        if done == total || (done >= total.div_ceil(2) && done.is_multiple_of(options.check_every)) {
            let judgement = Judgement::of(&mut fitting, content, options.unique_target)?;
            let dead = used.iter().filter(|used| !**used).count();
            tracing::debug!(epoch = done, unique = judgement.unique, error = judgement.error, dead, "judged");
            if best.as_ref().is_none_or(|(best, _)| judgement.beats(best)) {
                fitting.fetch()?;
                best = Some((judgement, fitting.model.clone()));
            }
        }
        progress(FitProgress { stage: STAGE, done, total, loss: Some(loss / seen as f64) });
    }
    Ok(best.map_or(fitting.model, |(_, model)| model))
}

/// A network while it learns.
pub(super) struct Fitting<'a> {
    pub(super) model: RqVae,
    source: Source<'a>,
    pub(super) engine: Engine,
    rng: SeededRng,
    averages: Averages,
    /// Of the codewords, where they learn by gradient.
    book_optim: AdamW,
    shards: Vec<Shard>,
    /// How many of the shards the last batch took.
    filled: usize,
    /// Gradient of the codewords by diversity, where there is one.
    spread: Option<Vec<f32>>,
    /// Batches so far.
    pub(super) step: u64,
}

impl<'a> Fitting<'a> {
    pub(super) fn new(
        config: &QuantizerConfig,
        content: &'a [f32],
        dim: usize,
        behavior: &'a Behavior,
        device: Option<&dyn Accelerator>,
    ) -> Result<Self> {
        let rng = SeededRng::new(config.seed);
        let options = &config.rqvae;
        let items = content.len() / dim;
        let source = Source::new(options, config.levels, content, dim, behavior, config.seed)?;
        let mut model = RqVae::new(options, dim, &config.sizes(), &rng)?;
        init_codebooks(&mut model, config, content, &rng)?;
        let largest = options.batch_size.min(items);
        let engine = Engine::new(&model, source.most_rows(largest), device)?;
        let by_gradient = options.codebook_update == CodebookUpdate::Gradient;
        let book_optim = AdamW::new(if by_gradient { model.codebooks.len() } else { 0 }, 0.0);
        let averages = Averages::new(options.decay, &model.codebooks, options.latent_dim);
        let mut shards: Vec<Shard> = Vec::new();
        shards.resize_with(largest.div_ceil(source.items_per_shard()), Shard::default);
        let (filled, spread, step) = (0, None, 0);
        Ok(Self { model, source, engine, rng, averages, book_optim, shards, filled, spread, step })
    }

    /// Loss of a batch, summed over its rows, and their number; gradients are left where [`Fitting::update`] finds them.
    pub(super) fn pass(&mut self, batch: &[u32], temperature: f32, groups: Option<&[Groups]>) -> Result<(f64, usize)> {
        let Self { model, source, engine, rng, shards, .. } = self;
        let (rows, per_shard) = (source.count(batch), source.items_per_shard());
        self.step += 1;
        self.filled = batch.len().div_ceil(per_shard);
        let active = &mut shards[..self.filled];
        let norms = squared_norms(&model.codebooks, model.latent_dim());
        let now = Step { norms: &norms, scale: 1.0 / rows as f32, temperature };
        let step = self.step;
        let counter = |at: usize| (step << 20) + at as u64;
        engine.pass(model, active, &now, &|at, rows| {
            let items = &batch[at * per_shard..batch.len().min((at + 1) * per_shard)];
            source.fill(rows, items, counter(at));
            rng.stream_at("noise", counter(at))
        })?;
        let mut loss: f64 = active.iter().map(|shard| model.loss(&shard.terms)).sum();
        self.spread = groups.map(|groups| {
            let mut draw = rng.stream_at("diversity", step);
            let (part, book) = spread_codes(model, active, groups, now.scale, &mut draw);
            loss += part;
            book
        });
        Ok((loss, rows))
    }

    /// The shards of the last batch.
    fn active(&self) -> &[Shard] {
        &self.shards[..self.filled]
    }

    /// Gradients of all parameters in the last batch.
    pub(super) fn gradients(&mut self) -> Result<Vec<f32>> {
        self.engine.gradients(&self.shards[..self.filled])
    }

    /// What the last batch has to say to weights and codewords.
    pub(super) fn update(&mut self, learning_rate: f32) -> Result<()> {
        let active = &self.shards[..self.filled];
        self.engine.update(&mut self.model, active, learning_rate)?;
        if self.model.config.codebook_update == CodebookUpdate::Gradient {
            let mut books: Vec<&[f32]> = active.iter().map(|shard| &shard.book[..]).collect();
            books.extend(self.spread.as_deref());
            self.book_optim.step(&mut self.model.codebooks, &books, learning_rate);
        } else {
            let chosen: Vec<_> = active.iter().map(|shard| (&shard.counts[..], &shard.sums[..])).collect();
            self.averages.update(&mut self.model.codebooks, &chosen);
        }
        Ok(())
    }

    /// Brings the weights of now to the model, wherever they are.
    pub(super) fn fetch(&mut self) -> Result<()> {
        self.engine.fetch(&mut self.model)
    }

    /// Sets every codeword that no item took in epoch `epoch` to a random residual of its level.
    fn revive(&mut self, used: &[bool], epoch: u64) {
        let mut draw = self.rng.stream_at("revive", epoch);
        revive(&mut self.model, &mut self.averages, used, &self.shards[0].residuals, &mut draw);
    }
}

/// Groups of the codewords of every level, where diversity asks for them.
fn groups(model: &RqVae, options: &RqVaeConfig, rng: &SeededRng, epoch: usize) -> Result<Option<Vec<Groups>>> {
    let of = |level: usize| {
        let seed = rng.key("groups", (epoch as u64) << 8 | level as u64);
        Groups::of(&model.codebooks[model.codebook(level)], options.latent_dim, options.diversity_groups, seed)
    };
    (options.diversity_weight > 0.0).then(|| (0..model.levels()).map(of).collect()).transpose()
}

/// Loss of diversity over the rows of `shards`, summed and weighted, and its gradient for all codebooks.
fn spread_codes(model: &RqVae, shards: &[Shard], groups: &[Groups], scale: f32, rng: &mut impl Rng) -> (f64, Vec<f32>) {
    let weight = model.config.diversity_weight;
    let mut grad = vec![0.0; model.codebooks.len()];
    let mut loss = 0.0;
    for (level, groups) in groups.iter().enumerate() {
        let (places, range) = (model.places(level), model.codebook(level));
        let mut counts = vec![0.0; places.len()];
        for shard in shards {
            counts.iter_mut().zip(&shard.counts[places.clone()]).for_each(|(sum, count)| *sum += count);
        }
        let (codebook, partners) = (&model.codebooks[range.clone()], groups.draw(rng));
        loss += diversity(codebook, model.latent_dim(), &counts, &partners, weight * scale, &mut grad[range]);
    }
    (f64::from(weight) * loss, grad)
}

/// Constant for two thirds of the epochs, then half a cosine down to a hundredth.
fn learning_rate(options: &RqVaeConfig, epoch: usize, total: usize) -> f32 {
    let fall = ((epoch as f32 / total as f32 - 2.0 / 3.0) * 3.0).max(0.0);
    options.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * fall).cos()))
}

/// On the host wherever the towers are, so that both begin at the same place.
fn init_codebooks(model: &mut RqVae, config: &QuantizerConfig, content: &[f32], rng: &SeededRng) -> Result<()> {
    let sizes = config.sizes();
    let largest = sizes.iter().copied().max().unwrap_or(1) as usize;
    let limit = config.rkmeans.items_per_code.max(1).saturating_mul(largest);
    let limit = limit.saturating_mul(model.content_dim()).min(content.len());
    // Rows come in the order of a hash, so the first ones are a random draw.
    let mut residuals = model.encode(&content[..limit]);
    for (level, &size) in sizes.iter().enumerate() {
        let kmeans = KmeansConfig {
            k: size as usize,
            iterations: INIT_ITERATIONS,
            tolerance: 1e-3,
            seed: rng.key("codebook", level as u64),
        };
        let (centroids, _) = lloyd(&mut Points::here(&residuals, model.latent_dim()), &kmeans)?;
        let range = model.codebook(level);
        model.codebooks[range].copy_from_slice(&centroids);
        residuals = ResidualQuantizer::new(model.latent_dim(), vec![centroids]).quantize(&residuals).1;
    }
    Ok(())
}

/// Sets every codeword that no item took to a random one of `residuals`, per level (rows, dim).
fn revive(model: &mut RqVae, averages: &mut Averages, used: &[bool], residuals: &[Vec<f32>], rng: &mut impl Rng) {
    let dim = model.latent_dim();
    for (level, residuals) in residuals.iter().enumerate() {
        for place in model.places(level).filter(|&place| !used[place]) {
            let row = rng.random_range(0..residuals.len() / dim);
            let residual = &residuals[row * dim..][..dim];
            model.codebooks[place * dim..][..dim].copy_from_slice(residual);
            averages.restart(place, residual);
        }
    }
}

/// How good weights are.
#[derive(Debug, Clone, Copy)]
struct Judgement {
    /// Distinct code tuples.
    unique: usize,
    /// Mean squared error of the reconstruction per item.
    error: f64,
    enough: bool,
}

impl Judgement {
    fn of(fitting: &mut Fitting, content: &[f32], target: f64) -> Result<Self> {
        let (codes, squares) = fitting.engine.round_trip(&fitting.model, content)?;
        let error = squares / codes.rows() as f64;
        let SidStats { unique_prefixes: unique, unique_fraction, .. } = SidStats::of(&codes, &[]);
        Ok(Self { unique, error, enough: unique_fraction >= target })
    }

    fn beats(&self, other: &Self) -> bool {
        match (self.enough, other.enough) {
            (true, true) => self.error < other.error,
            (true, false) => true,
            (false, true) => false,
            (false, false) => (self.unique, -self.error) > (other.unique, -other.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_distinct_codes_first_then_the_least_error() {
        let judged = |unique, error, enough| Judgement { unique, error, enough };
        assert!(judged(97, 5.0, true).beats(&judged(99, 6.0, true)));
        assert!(judged(97, 9.0, true).beats(&judged(96, 1.0, false)));
        assert!(!judged(96, 1.0, false).beats(&judged(97, 9.0, true)));
        assert!(judged(95, 9.0, false).beats(&judged(94, 1.0, false)));
        assert!(judged(95, 1.0, false).beats(&judged(95, 9.0, false)));
    }

    #[test]
    fn the_learning_rate_falls_in_the_last_third() {
        let options = RqVaeConfig::default();
        let at = |epoch| learning_rate(&options, epoch, 90) / options.learning_rate;
        assert!((at(0) - 1.0).abs() < 1e-6 && (at(60) - 1.0).abs() < 1e-6);
        assert!(at(75) < 0.6 && at(89) < 0.02);
    }
}
