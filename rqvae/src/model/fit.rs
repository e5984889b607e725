//! Training of the RQ-VAE.
//!
//! Codebooks start from k-means, level by level on residuals. While they form, codes without an item are set to
//! residuals of random items; afterwards the weights with most distinct code tuples are kept, then those with the
//! least error.

use super::config::RqVaeConfig;
use super::optim::AdamW;
use super::rqvae::{RqVae, SHARD, Shard};
use crate::cluster::{KmeansConfig, lloyd, squared_norms};
use crate::quantize::{FitProgress, QuantizerConfig, ResidualQuantizer};
use crate::{Error, Result, SeededRng, SidStats};
use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;

const STAGE: &str = "rqvae";
const INIT_ITERATIONS: usize = 20;

/// Fits a network to standardised content (items, dim).
pub(super) fn fit(
    config: &QuantizerConfig,
    content: &[f32],
    dim: usize,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<RqVae> {
    let rng = SeededRng::new(config.seed);
    let (options, levels, size) = (&config.rqvae, config.levels, config.codebook_size as usize);
    let items = content.len() / dim;
    let mut model = RqVae::new(options, dim, levels, size, &rng);
    init_codebooks(&mut model, config, content, &rng);

    let mut optim = AdamW::new(model.params.len(), options.weight_decay);
    let mut shards: Vec<Shard> = Vec::new();
    shards.resize_with(options.batch_size.min(items).div_ceil(SHARD), Shard::default);
    let mut order: Vec<u32> = (0..items as u32).collect();
    let last_reset = (options.epochs as f64 * options.reset_until) as usize;
    let mut best: Option<(usize, f64, Vec<f32>)> = None;
    for epoch in 0..options.epochs {
        order.shuffle(&mut rng.stream_at("shuffle", epoch as u64));
        let learning_rate = learning_rate(options, epoch);
        let mut used = vec![vec![false; size]; levels];
        let mut loss = 0.0;
        for batch in order.chunks(options.batch_size) {
            let norms: Vec<Vec<f32>> = (0..levels)
                .map(|level| squared_norms(&model.params[model.codebook(level)], model.latent_dim()))
                .collect();
            let scale = 1.0 / batch.len() as f32;
            let active = &mut shards[..batch.len().div_ceil(SHARD)];
            active.par_iter_mut().zip(batch.par_chunks(SHARD)).for_each(|(shard, rows)| {
                shard.x.clear();
                rows.iter().for_each(|&i| shard.x.extend_from_slice(&content[i as usize * dim..][..dim]));
                model.backward(shard, &norms, scale);
            });
            let batch_loss: f64 = active.iter().map(|shard| shard.loss).sum();
            if !batch_loss.is_finite() {
                return Err(Error::NonFinite { what: "loss of the RQ-VAE".into(), step: epoch as u64 });
            }
            loss += batch_loss;
            for shard in &*active {
                for (used, codes) in used.iter_mut().zip(&shard.codes) {
                    codes.iter().for_each(|&code| used[usize::from(code)] = true);
                }
            }
            let grads: Vec<&[f32]> = active.iter().map(|shard| &shard.grads[..]).collect();
            optim.step(&mut model.params, &grads, learning_rate);
        }
        let done = epoch + 1;
        let resets = options.reset_every > 0 && done.is_multiple_of(options.reset_every) && done <= last_reset;
        if resets {
            revive(&mut model, &mut optim, &used, &shards[0], &mut rng.stream_at("revive", epoch as u64));
        }
        let judge = done > last_reset && (done - last_reset).is_multiple_of(options.check_every);
        if judge || done == options.epochs {
            let (unique, error) = judgement(&model, content);
            tracing::debug!(epoch = done, unique, error, dead = dead(&used), "RQ-VAE judged");
            if best.as_ref().is_none_or(|(u, e, _)| (unique, -error) > (*u, -*e)) {
                best = Some((unique, error, model.params.clone()));
            }
        }
        let loss = Some(loss / items as f64);
        progress(FitProgress { stage: STAGE, done, total: options.epochs, loss });
    }
    if let Some((.., params)) = best {
        model.params = params;
    }
    Ok(model)
}

/// Constant for two thirds of the epochs, then half a cosine down to a hundredth.
fn learning_rate(options: &RqVaeConfig, epoch: usize) -> f32 {
    let part = epoch as f32 / options.epochs as f32;
    let fall = ((part - 2.0 / 3.0) * 3.0).max(0.0);
    options.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + (std::f32::consts::PI * fall).cos()))
}

fn init_codebooks(model: &mut RqVae, config: &QuantizerConfig, content: &[f32], rng: &SeededRng) {
    let limit = config.rkmeans.items_per_code.max(1).saturating_mul(config.codebook_size as usize);
    let dim = model.content_dim();
    // Rows come in an order that a hash of their content decides, so the first ones are a random draw.
    let mut residuals = model.encode(&content[..content.len().min(limit * dim)]);
    for level in 0..config.levels {
        let config = KmeansConfig {
            k: config.codebook_size as usize,
            iterations: INIT_ITERATIONS,
            tolerance: 1e-3,
            seed: rng.key("codebook", level as u64),
        };
        let (centroids, _) = lloyd(&residuals, model.latent_dim(), &config);
        let range = model.codebook(level);
        model.params[range].copy_from_slice(&centroids);
        residuals = ResidualQuantizer::new(model.latent_dim(), vec![centroids]).quantize(&residuals).1;
    }
}

/// Sets every code that no item took to the residual of a random row of `shard`.
fn revive(model: &mut RqVae, optim: &mut AdamW, used: &[Vec<bool>], shard: &Shard, rng: &mut impl Rng) {
    let dim = model.latent_dim();
    for (level, (used, residuals)) in used.iter().zip(&shard.residuals).enumerate() {
        for code in (0..used.len()).filter(|&code| !used[code]) {
            let row = rng.random_range(0..residuals.len() / dim);
            let range = model.codeword(level, code);
            model.params[range.clone()].copy_from_slice(&residuals[row * dim..][..dim]);
            optim.forget(range);
        }
    }
}

fn dead(used: &[Vec<bool>]) -> usize {
    used.iter().flatten().filter(|used| !**used).count()
}

/// Distinct code tuples, and mean squared error of the reconstruction per item.
fn judgement(model: &RqVae, content: &[f32]) -> (usize, f64) {
    let (codes, reconstruction) = model.round_trip(content);
    let squares = reconstruction.iter().zip(content).map(|(y, x)| f64::from(y - x).powi(2));
    let error = squares.sum::<f64>() / codes.rows() as f64;
    (SidStats::of(&codes, &[]).unique_prefixes, error)
}
