//! One pass over a shard of a batch: the loss and all its gradients, by hand.
//!
//! Towers and what lies between them are apart: [`RqVae::quantize`] takes latents to their quantised selves, and
//! [`RqVae::through`] takes the gradient of these back to that of the latents, whoever computes the towers.
//!
//! Loss: |x - x_hat|^2 + sum_l beta |r_l - sg(e_l)|^2, summed over dimensions, mean over rows; where codewords learn by
//! gradient, |sg(r_l) - e_l|^2 too. With progressive depths, level l counts for rows whose depth is above l, in the sum
//! of codewords as in the loss. Contrast with items of the same sessions and with collaborative vectors adds to it, on
//! the sum of codewords.
//!
//! Papers: Rajput et al. 2023 (TIGER), sec. 3.1; van den Oord et al. 2017 for the straight-through gradient; He et al.
//! 2025 (PLUM), sec. 3.1 for depths and sessions; Wang et al. 2024 (LETTER), sec. 3.2 for collaborative vectors.
//! Deviations: unless configured otherwise, the codewords e_l follow moving averages of their residuals.

use super::contrast::contrast;
use super::estimator::{CodebookUpdate, Estimator, Soft, rotate_back, sinkhorn};
use super::rqvae::RqVae;
use super::towers::TowerTape;
use crate::Code;
use crate::cluster::nearest_in_block;

/// Rows of a shard and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Standardised content: (rows, `content_dim`).
    pub(super) x: Vec<f32>,
    /// Item of each row: (rows,).
    pub(super) items: Vec<u32>,
    /// How many levels count for each row: (rows,); empty where all do.
    pub(super) depths: Vec<usize>,
    /// Rows of items of the same sessions: anchor and key.
    pub(super) pairs: Vec<(usize, usize)>,
    /// Collaborative vectors: (rows, `latent_dim`), zeros for an item without one; empty where none is used.
    pub(super) collaborative: Vec<f32>,
}

/// Parts of the loss, each summed over rows and before its weight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Terms {
    pub(super) reconstruction: f64,
    pub(super) commitment: f64,
    pub(super) codebook: f64,
    pub(super) contrast: f64,
    pub(super) alignment: f64,
}

/// What holds for all shards of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    /// Squared norms of all codewords.
    pub(super) norms: &'a [f32],
    /// 1 over the rows of the batch.
    pub(super) scale: f32,
    /// Temperature of Gumbel-softmax.
    pub(super) temperature: f32,
}

/// Rows, results and buffers of one shard of a training step.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) rows: Rows,
    encoded: TowerTape,
    decoded: TowerTape,
    /// Output of the encoder: (rows, `latent_dim`).
    pub(super) latent: Vec<f32>,
    /// Sums of codewords: (rows, `latent_dim`).
    pub(super) quantized: Vec<f32>,
    /// Gradient of the commitment: (rows, `latent_dim`).
    commitment: Vec<f32>,
    soft: Vec<Soft>,
    pub(super) residuals: Vec<Vec<f32>>,
    pub(super) codes: Vec<Vec<Code>>,
    scores: Vec<f32>,
    /// The gradient on its way from the reconstruction to the content.
    pub(super) flow: Vec<f32>,
    spare: Vec<f32>,
    pub(super) grads: Vec<f32>,
    /// How many rows chose each codeword, and the sums of their residuals: (codewords,) and (codewords, dim).
    pub(super) counts: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// Gradients of the codewords where they learn by gradient: (codewords, dim).
    pub(super) book: Vec<f32>,
    pub(super) terms: Terms,
}

impl RqVae {
    /// The loss of `terms`, summed over rows.
    pub(super) fn loss(&self, terms: &Terms) -> f64 {
        let config = &self.config;
        let codebook = if config.codebook_update == CodebookUpdate::Gradient { terms.codebook } else { 0.0 };
        terms.reconstruction
            + f64::from(config.beta) * terms.commitment
            + codebook
            + f64::from(config.contrast_weight) * terms.contrast
            + f64::from(config.align_weight) * terms.alignment
    }

    /// Loss of the rows in `shard`, what they add to the averages of the codewords, and gradients of the weights, scaled
    /// by that of `step`; `noise` gives numbers of the Gumbel distribution where they are needed.
    pub(super) fn backward(&self, shard: &mut Shard, step: &Step, noise: &mut dyn FnMut() -> f32) {
        let n = shard.rows.x.len() / self.content_dim();
        shard.grads.resize(self.params.len(), 0.0);
        let latent = self.encoder.forward(&self.params, &shard.rows.x, n, &mut shard.encoded);
        shard.latent.clear();
        shard.latent.extend_from_slice(latent);
        self.quantize(shard, step, noise);
        let Shard { rows, decoded, quantized, flow, spare, grads, terms, .. } = shard;
        let reconstruction = self.decoder.forward(&self.params, quantized, n, decoded);
        flow.clear();
        flow.extend(reconstruction.iter().zip(&rows.x).map(|(y, x)| {
            terms.reconstruction += f64::from((y - x) * (y - x));
            2.0 * step.scale * (y - x)
        }));
        self.decoder.backward(&self.params, quantized, n, decoded, flow, spare, grads);
        self.through(shard, step);
        let Shard { rows, encoded, flow, spare, grads, .. } = shard;
        self.encoder.backward(&self.params, &rows.x, n, encoded, flow, spare, grads);
    }

    /// From the latents in `shard` to their sums of codewords, with the commitment and what the codewords learn from.
    pub(super) fn quantize(&self, shard: &mut Shard, step: &Step, noise: &mut dyn FnMut() -> f32) {
        let (dim, levels, config) = (self.latent_dim(), self.levels(), &self.config);
        let scale = step.scale;
        let n = shard.latent.len() / dim;
        let Shard { rows, latent, quantized, commitment, soft, residuals, codes, scores, .. } = shard;
        let Shard { counts, sums, terms, .. } = shard;
        counts.clear();
        counts.resize(self.codewords(), 0.0);
        sums.clear();
        sums.resize(self.codebooks.len(), 0.0);
        residuals.resize_with(levels, Vec::new);
        codes.resize_with(levels, Vec::new);
        soft.clear();
        *terms = Terms::default();
        let mut running = latent.clone();
        commitment.clear();
        commitment.resize(n * dim, 0.0);
        quantized.clear();
        quantized.resize(n * dim, 0.0);
        for level in 0..levels {
            let (codebook, places) = (&self.codebooks[self.codebook(level)], self.places(level));
            let codes = &mut codes[level];
            codes.resize(n, 0);
            residuals[level].clone_from(&running);
            if config.estimator == Estimator::GumbelSoftmax {
                let mixture = Soft::forward(&running, codebook, dim, step.temperature, noise);
                mixture.codes(codes);
                soft.push(mixture);
            } else if config.sinkhorn_epsilon > 0.0 && (config.sinkhorn_all_levels || level + 1 == levels) {
                sinkhorn(&running, codebook, dim, config.sinkhorn_epsilon, codes);
            } else {
                nearest_in_block(&running, dim, codebook, &step.norms[places.clone()], scores, codes);
            }
            let mixture = soft.last();
            let vectors = running.chunks_exact_mut(dim).zip(commitment.chunks_exact_mut(dim));
            for (row, (&code, (r, c))) in codes.iter().zip(vectors).enumerate() {
                let chosen = match mixture {
                    Some(mixture) => &mixture.mixed[row * dim..][..dim],
                    None => &codebook[usize::from(code) * dim..][..dim],
                };
                if rows.depths.get(row).is_some_and(|&depth| depth <= level) {
                    r.iter_mut().zip(chosen).for_each(|(r, e)| *r -= e);
                    continue;
                }
                let place = places.start + usize::from(code);
                counts[place] += 1.0;
                let sum = &mut sums[place * dim..][..dim];
                let q = &mut quantized[row * dim..][..dim];
                for ((((r, e), sum), c), q) in r.iter_mut().zip(chosen).zip(sum).zip(c).zip(q) {
                    *sum += *r;
                    *r -= e; // r_l - e_l, the residual of the next level
                    *q += e;
                    *c += 2.0 * scale * config.beta * *r;
                    terms.commitment += f64::from(*r * *r);
                }
            }
        }
        terms.codebook = terms.commitment;
    }

    /// From the gradient of the sums of codewords, in the `flow` of `shard`, to that of the latents, left there; adds the
    /// contrasts, and fills the gradients of codewords that learn by gradient.
    pub(super) fn through(&self, shard: &mut Shard, step: &Step) {
        let (dim, config, scale) = (self.latent_dim(), &self.config, step.scale);
        let Shard { rows, latent, quantized, commitment, soft, flow, counts, sums, book, terms, .. } = shard;
        self.contrasts(rows, quantized, scale, flow, terms);
        book.clear();
        if config.codebook_update == CodebookUpdate::Gradient {
            // |sg(r) - e|^2 over the rows that chose e: 2 (n e - sum of r).
            let of = |(at, e): (usize, &f32)| 2.0 * scale * (counts[at / dim] * e - sums[at]);
            book.extend(self.codebooks.iter().enumerate().map(of));
        }
        match config.estimator {
            // The latent gets the gradient of its quantised self.
            Estimator::StraightThrough => flow.iter_mut().zip(&*commitment).for_each(|(g, c)| *g += c),
            Estimator::RotationTrick => {
                rotate_back(flow, latent, quantized, dim);
                flow.iter_mut().zip(&*commitment).for_each(|(g, c)| *g += c);
            }
            Estimator::GumbelSoftmax => self.soft_backward(soft, &rows.depths, flow, book, scale),
        }
    }

    /// Adds both contrasts to `terms`, and their gradients to `flow`, that of the sums of codewords.
    fn contrasts(&self, rows: &Rows, quantized: &[f32], scale: f32, flow: &mut [f32], terms: &mut Terms) {
        let (dim, config) = (self.latent_dim(), &self.config);
        let gather = |x: &[f32], of: &mut dyn Iterator<Item = usize>| -> Vec<f32> {
            of.flat_map(|row| x[row * dim..][..dim].iter().copied()).collect()
        };
        let mut scatter = |part: &[f32], of: &mut dyn Iterator<Item = usize>| {
            for (row, part) in of.zip(part.chunks_exact(dim)) {
                flow[row * dim..][..dim].iter_mut().zip(part).for_each(|(g, x)| *g += x);
            }
        };
        if config.contrast_weight > 0.0 && !rows.pairs.is_empty() {
            let (anchor, key) = (|i: usize| rows.pairs[i].0, |i: usize| rows.pairs[i].1);
            let all = 0..rows.pairs.len();
            let anchors = gather(quantized, &mut all.clone().map(anchor));
            let keys = gather(quantized, &mut all.clone().map(key));
            let (mut to_anchors, mut to_keys) = (vec![0.0; anchors.len()], vec![0.0; keys.len()]);
            let item = |row: usize| rows.items[row];
            let same = |i: usize, j: usize| item(key(j)) == item(key(i)) || item(key(j)) == item(anchor(i));
            let (weight, temperature) = (config.contrast_weight * scale, config.contrast_temperature);
            let keys_too = Some(&mut to_keys[..]);
            terms.contrast = contrast(&anchors, &keys, dim, temperature, &same, weight, &mut to_anchors, keys_too);
            scatter(&to_anchors, &mut all.clone().map(anchor));
            scatter(&to_keys, &mut all.map(key));
        }
        if config.align_weight > 0.0 && !rows.collaborative.is_empty() {
            let vector = |row: usize| &rows.collaborative[row * dim..][..dim];
            let known: Vec<usize> =
                (0..rows.items.len()).filter(|&row| vector(row).iter().any(|x| *x != 0.0)).collect();
            if known.is_empty() {
                return;
            }
            let anchors = gather(quantized, &mut known.iter().copied());
            let keys = gather(&rows.collaborative, &mut known.iter().copied());
            let mut to_anchors = vec![0.0; anchors.len()];
            let same = |i: usize, j: usize| rows.items[known[i]] == rows.items[known[j]];
            let (weight, temperature) = (config.align_weight * scale, config.contrast_temperature);
            terms.alignment = contrast(&anchors, &keys, dim, temperature, &same, weight, &mut to_anchors, None);
            scatter(&to_anchors, &mut known.iter().copied());
        }
    }

    /// From the gradient of the quantised latents in `flow` to that of the latents, through all levels at once, and that
    /// of the codebooks, left in `book`.
    fn soft_backward(&self, soft: &[Soft], depths: &[usize], flow: &mut [f32], book: &mut [f32], scale: f32) {
        let dim = self.latent_dim();
        let beta = self.config.beta;
        book.fill(0.0);
        // Gradient of the residual that the level hands on; the last one goes nowhere.
        let mut handed_on = vec![0.0; flow.len()];
        for (level, soft) in soft.iter().enumerate().rev() {
            let range = self.codebook(level);
            let counts = |at: usize| depths.get(at / dim).is_none_or(|&depth| depth > level);
            let left = |at: usize| soft.residuals[at] - soft.mixed[at];
            let mixed = |at: usize| flow[at] - handed_on[at] - 2.0 * scale * left(at);
            let mixed: Vec<f32> = (0..flow.len()).map(|at| if counts(at) { mixed(at) } else { 0.0 }).collect();
            let through = soft.backward(&mixed, &self.codebooks[range.clone()], dim, &mut book[range]);
            for (at, h) in handed_on.iter_mut().enumerate().filter(|(at, _)| counts(*at)) {
                *h += through[at] + 2.0 * scale * beta * left(at);
            }
        }
        flow.copy_from_slice(&handed_on);
    }
}
