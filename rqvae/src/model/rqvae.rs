//! Encoder, residual quantiser, decoder, and the gradients of their loss.
//!
//! Shapes: content (rows, `content_dim`) -> latent (rows, `latent_dim`) -> codes (rows, levels), reconstruction.
//! Loss: |x - x_hat|^2 + sum_l beta |r_l - sg(e_l)|^2, summed over dimensions, mean over rows; where codewords learn by
//! gradient, |sg(r_l) - e_l|^2 too.
//! Paper: Rajput et al. 2023 (TIGER), sec. 3.1; van den Oord et al. 2017 for the straight-through gradient.
//! Deviations: unless configured otherwise, the codewords e_l follow moving averages of their residuals.

use super::config::RqVaeConfig;
use super::estimator::{CodebookUpdate, Estimator, Soft, rotate_back, sinkhorn};
use super::mlp::{Mlp, Tape};
use crate::cluster::nearest_in_block;
use crate::quantize::ResidualQuantizer;
use crate::{Artefact, ArtefactWriter, Code, CodeMatrix, Error, Result, SeededRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::ops::Range;

/// Rows that one thread works on at a time: a shard.
pub(super) const SHARD: usize = crate::cluster::BLOCK;

/// The network: the weights of both towers in one flat vector, the codebooks of all levels in another.
#[derive(Debug, Clone)]
pub struct RqVae {
    content_dim: usize,
    latent_dim: usize,
    levels: usize,
    codebook_size: usize,
    beta: f32,
    estimator: Estimator,
    update: CodebookUpdate,
    /// Entropy of Sinkhorn's iterations, 0 without, and the first level that has them.
    sinkhorn: (f32, usize),
    encoder: Mlp,
    decoder: Mlp,
    pub(super) params: Vec<f32>,
    pub(super) codebooks: Vec<f32>,
}

/// Buffers of one shard of a training step.
#[derive(Debug, Default)]
pub(super) struct Shard {
    pub(super) x: Vec<f32>,
    encoded: Tape,
    decoded: Tape,
    quantized: Vec<f32>,
    pub(super) residuals: Vec<Vec<f32>>,
    pub(super) codes: Vec<Vec<Code>>,
    scores: Vec<f32>,
    flow: Vec<f32>,
    spare: Vec<f32>,
    pub(super) grads: Vec<f32>,
    /// How many rows chose each codeword, and the sums of their residuals: (codewords,) and (codewords, dim).
    pub(super) counts: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// Gradients of the codewords where they learn by gradient: (codewords, dim).
    pub(super) book: Vec<f32>,
    /// Sum over rows.
    pub(super) loss: f64,
}

impl RqVae {
    /// A network with drawn weights and codebooks of zeros.
    pub(super) fn new(config: &RqVaeConfig, content_dim: usize, levels: usize, size: usize, rng: &SeededRng) -> Self {
        let mut widths = vec![content_dim];
        widths.extend(&config.hidden);
        widths.push(config.latent_dim);
        let mut offset = 0;
        let encoder = Mlp::new(&widths, &mut offset);
        widths.reverse();
        let decoder = Mlp::new(&widths, &mut offset);
        let mut params = vec![0.0; offset];
        let codebooks = vec![0.0; levels * size * config.latent_dim];
        encoder.init(&mut params, &mut rng.stream("encoder"));
        decoder.init(&mut params, &mut rng.stream("decoder"));
        let RqVaeConfig { latent_dim, beta, estimator, codebook_update: update, .. } = *config;
        let sinkhorn = (config.sinkhorn_epsilon, if config.sinkhorn_all_levels { 0 } else { levels - 1 });
        Self {
            content_dim,
            latent_dim,
            levels,
            codebook_size: size,
            beta,
            estimator,
            update,
            sinkhorn,
            encoder,
            decoder,
            params,
            codebooks,
        }
    }

    /// Width of the content.
    pub fn content_dim(&self) -> usize {
        self.content_dim
    }

    /// Width of the latent.
    pub fn latent_dim(&self) -> usize {
        self.latent_dim
    }

    /// Number of parameters, codebooks included.
    pub fn parameters(&self) -> usize {
        self.params.len() + self.codebooks.len()
    }

    /// Place of the codebook of `level` among the codebooks.
    pub(super) fn codebook(&self, level: usize) -> Range<usize> {
        let len = self.codebook_size * self.latent_dim;
        level * len..(level + 1) * len
    }

    /// The codebooks as a stack.
    pub(crate) fn quantizer(&self) -> ResidualQuantizer {
        let codebooks = (0..self.levels).map(|level| self.codebooks[self.codebook(level)].to_vec()).collect();
        ResidualQuantizer::new(self.latent_dim, codebooks)
    }

    /// Latents of standardised content: (items, `content_dim`) -> (items, `latent_dim`).
    pub(crate) fn encode(&self, x: &[f32]) -> Vec<f32> {
        self.tower(&self.encoder, x, self.content_dim, self.latent_dim)
    }

    /// Standardised content from quantised latents: (items, `latent_dim`) -> (items, `content_dim`).
    pub(crate) fn decode(&self, quantized: &[f32]) -> Vec<f32> {
        self.tower(&self.decoder, quantized, self.latent_dim, self.content_dim)
    }

    fn tower(&self, tower: &Mlp, x: &[f32], input: usize, output: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / input * output];
        out.par_chunks_mut(SHARD * output).zip(x.par_chunks(SHARD * input)).for_each_init(
            Tape::new,
            |tape, (out, x)| {
                // Always a full block: the output of a row depends neither on its place nor on its neighbours.
                let mut block = x.to_vec();
                block.resize(SHARD * input, 0.0);
                tower.forward(&self.params, &block, SHARD, tape);
                if let Some(last) = tape.last() {
                    out.copy_from_slice(&last[..out.len()]);
                }
            },
        );
        out
    }

    /// Loss of the rows in `shard.x`, what they add to the averages of the codewords, and gradients of the weights,
    /// scaled by `scale` (1 over the rows of the batch). `norms` are the squared norms of all codewords; noise, where
    /// there is any, comes from `rng`.
    pub(super) fn backward(&self, shard: &mut Shard, norms: &[f32], scale: f32, rng: &mut ChaCha8Rng) {
        let (dim, size) = (self.latent_dim, self.codebook_size);
        let rows = shard.x.len() / self.content_dim;
        let Shard {
            x,
            encoded,
            decoded,
            quantized,
            residuals,
            codes,
            scores,
            flow,
            spare,
            grads,
            counts,
            sums,
            book,
            loss,
        } = shard;
        grads.resize(self.params.len(), 0.0);
        counts.clear();
        counts.resize(norms.len(), 0.0);
        sums.clear();
        sums.resize(self.codebooks.len(), 0.0);
        residuals.resize_with(self.levels, Vec::new);
        codes.resize_with(self.levels, Vec::new);
        book.clear();
        let by_gradient = self.update == CodebookUpdate::Gradient;
        let codebook_loss = f32::from(u8::from(by_gradient));
        let mut soft: Vec<Soft> = Vec::new();
        *loss = 0.0;

        self.encoder.forward(&self.params, x, rows, encoded);
        let latent = encoded.last().map_or(&[][..], Vec::as_slice);
        let mut running = latent.to_vec();
        let mut commitment = vec![0.0; rows * dim];
        for level in 0..self.levels {
            let codebook = &self.codebooks[self.codebook(level)];
            let codes = &mut codes[level];
            codes.resize(rows, 0);
            residuals[level].clone_from(&running);
            if let Estimator::GumbelSoftmax { temperature } = self.estimator {
                let mixture = Soft::forward(&running, codebook, dim, temperature, rng);
                mixture.codes(codes);
                for &code in &*codes {
                    counts[level * size + usize::from(code)] += 1.0;
                }
                for ((r, q), c) in running.iter_mut().zip(&mixture.mixed).zip(&mut commitment) {
                    *r -= q;
                    *c += 2.0 * scale * self.beta * *r;
                    *loss += f64::from((self.beta + codebook_loss) * *r * *r);
                }
                soft.push(mixture);
                continue;
            }
            if self.sinkhorn.0 > 0.0 && level >= self.sinkhorn.1 {
                sinkhorn(&running, codebook, dim, self.sinkhorn.0, codes);
            } else {
                nearest_in_block(&running, dim, codebook, &norms[level * size..][..size], scores, codes);
            }
            let vectors = running.chunks_exact_mut(dim).zip(commitment.chunks_exact_mut(dim));
            for (&code, (r, c)) in codes.iter().zip(vectors) {
                let codeword = &codebook[usize::from(code) * dim..][..dim];
                let place = level * size + usize::from(code);
                counts[place] += 1.0;
                let sum = &mut sums[place * dim..][..dim];
                for (((r, e), sum), c) in r.iter_mut().zip(codeword).zip(sum).zip(c) {
                    *sum += *r;
                    *r -= e; // r_l - e_l, the residual of the next level
                    *c += 2.0 * scale * self.beta * *r;
                    *loss += f64::from((self.beta + codebook_loss) * *r * *r);
                }
            }
        }
        quantized.clear();
        quantized.extend(latent.iter().zip(&running).map(|(z, r)| z - r));
        self.decoder.forward(&self.params, quantized, rows, decoded);
        let reconstruction = decoded.last().map_or(&[][..], Vec::as_slice);
        flow.clear();
        flow.extend(reconstruction.iter().zip(&*x).map(|(y, x)| {
            *loss += f64::from((y - x) * (y - x));
            2.0 * scale * (y - x)
        }));
        self.decoder.backward(&self.params, quantized, rows, decoded, flow, spare, grads, true);
        if by_gradient {
            // |sg(r) - e|^2 over the rows that chose e: 2 (n e - sum of r).
            let of = |(at, e): (usize, &f32)| 2.0 * scale * (counts[at / dim] * e - sums[at]);
            book.extend(self.codebooks.iter().enumerate().map(of));
        }
        match self.estimator {
            // The latent gets the gradient of its quantised self.
            Estimator::StraightThrough => flow.iter_mut().zip(&commitment).for_each(|(g, c)| *g += c),
            Estimator::RotationTrick => {
                rotate_back(flow, latent, quantized, dim);
                flow.iter_mut().zip(&commitment).for_each(|(g, c)| *g += c);
            }
            Estimator::GumbelSoftmax { .. } => self.soft_backward(&soft, flow, book, scale),
        }
        self.encoder.backward(&self.params, x, rows, encoded, flow, spare, grads, false);
    }

    /// From the gradient of the quantised latents in `flow` to that of the latents, through all levels at once, and that
    /// of the codebooks, left in `book`.
    fn soft_backward(&self, soft: &[Soft], flow: &mut [f32], book: &mut [f32], scale: f32) {
        let dim = self.latent_dim;
        book.fill(0.0);
        // Gradient of the residual that the level hands on; the last one goes nowhere.
        let mut handed_on = vec![0.0; flow.len()];
        for (level, soft) in soft.iter().enumerate().rev() {
            let range = self.codebook(level);
            let left = || soft.residuals.iter().zip(&soft.mixed).map(|(r, q)| r - q);
            let mixed: Vec<f32> =
                flow.iter().zip(&handed_on).zip(left()).map(|((g, h), left)| g - h - 2.0 * scale * left).collect();
            let through = soft.backward(&mixed, &self.codebooks[range.clone()], dim, &mut book[range]);
            for ((h, x), left) in handed_on.iter_mut().zip(&through).zip(left()) {
                *h += x + 2.0 * scale * self.beta * left;
            }
        }
        flow.copy_from_slice(&handed_on);
    }

    fn layout(&self) -> Vec<(String, Vec<usize>, usize)> {
        let mut layout = self.encoder.parameters("encoder");
        layout.extend(self.decoder.parameters("decoder"));
        layout
    }

    pub(crate) fn save(&self, writer: &mut ArtefactWriter) -> Result<()> {
        for (name, shape, at) in self.layout() {
            let len = shape.iter().product::<usize>();
            writer.f32s(&name, &shape, &self.params[at..at + len])?;
        }
        self.quantizer().save(writer)
    }

    pub(crate) fn load(artefact: &Artefact, config: &RqVaeConfig, content_dim: usize) -> Result<Self> {
        let stack = ResidualQuantizer::load(artefact, config.latent_dim)?;
        let sizes = stack.sizes();
        let size = sizes[0] as usize;
        if sizes.iter().any(|&s| s as usize != size) {
            return Err(Error::corrupt(artefact.path(), format!("codebooks of different sizes: {sizes:?}")));
        }
        let mut model = Self::new(config, content_dim, sizes.len(), size, &SeededRng::new(0));
        for (name, expected, at) in model.layout() {
            let (shape, data) = artefact.f32s(&name)?;
            if shape != expected || data.iter().any(|x| !x.is_finite()) {
                let reason = format!("`{name}` is not finite or has shape {shape:?}, expected {expected:?}");
                return Err(Error::corrupt(artefact.path(), reason));
            }
            model.params[at..at + data.len()].copy_from_slice(&data);
        }
        for level in 0..sizes.len() {
            let range = model.codebook(level);
            model.codebooks[range].copy_from_slice(&artefact.f32s(&format!("codebook.{level}"))?.1);
        }
        Ok(model)
    }

    /// Codes and reconstruction of standardised content: (items, `content_dim`) -> (items, levels), and as it came.
    pub(crate) fn round_trip(&self, x: &[f32]) -> (CodeMatrix, Vec<f32>) {
        let stack = self.quantizer();
        let (codes, _) = stack.quantize(&self.encode(x));
        let reconstruction = self.decode(&stack.lookup(&codes));
        (codes, reconstruction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::squared_norms;
    use rand::Rng;

    const CONTENT: usize = 5;
    const LATENT: usize = 3;
    const ROWS: usize = 60;

    fn tiny() -> (RqVae, Vec<f32>) {
        let config = RqVaeConfig { hidden: vec![7, 6], latent_dim: LATENT, beta: 0.4, ..RqVaeConfig::default() };
        let rng = SeededRng::new(11);
        let mut model = RqVae::new(&config, CONTENT, 2, 4, &rng);
        let mut draw = rng.stream("test");
        model.codebooks.iter_mut().for_each(|e| *e = draw.random::<f32>() - 0.5);
        let x = (0..CONTENT * ROWS).map(|_| draw.random::<f32>() * 2.0 - 1.0).collect();
        (model, x)
    }

    fn pass(model: &RqVae, x: &[f32]) -> Shard {
        let mut shard = Shard { x: x.to_vec(), ..Shard::default() };
        let mut noise = SeededRng::new(4).stream("noise");
        model.backward(&mut shard, &squared_norms(&model.codebooks, LATENT), 1.0 / ROWS as f32, &mut noise);
        shard
    }

    /// The loss by Gumbel-softmax, everything under a stop-gradient held at what `base` makes of it.
    fn soft_surrogate(model: &RqVae, base: &RqVae, x: &[f32]) -> f64 {
        let square = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let levels = |model: &RqVae| {
            let mut noise = SeededRng::new(4).stream("noise");
            let mut running = model.encode(x);
            let mut found = Vec::new();
            for level in 0..model.levels {
                let codebook = &model.codebooks[model.codebook(level)];
                let soft = Soft::forward(&running, codebook, LATENT, 0.8, &mut noise);
                running.iter_mut().zip(&soft.mixed).for_each(|(r, q)| *r -= q);
                found.push(soft);
            }
            found
        };
        let (now, held) = (levels(model), levels(base));
        let mut loss = 0.0;
        let mut quantized = vec![0.0; ROWS * LATENT];
        for (now, held) in now.iter().zip(&held) {
            loss += f64::from(model.beta) * square(&now.residuals, &held.mixed) + square(&held.residuals, &now.mixed);
            quantized.iter_mut().zip(&now.mixed).for_each(|(z, q)| *z += q);
        }
        (loss + square(&model.decode(&quantized), x)) / ROWS as f64
    }

    #[test]
    fn soft_gradients_equal_central_differences() {
        let (mut model, x) = tiny();
        model.estimator = Estimator::GumbelSoftmax { temperature: 0.8 };
        model.update = CodebookUpdate::Gradient;
        let shard = pass(&model, &x);
        assert!((soft_surrogate(&model, &model, &x) - shard.loss / ROWS as f64).abs() < 1e-4);
        let check = |name: &str, i: usize, found: f32, change: &dyn Fn(&mut RqVae, f32)| {
            let loss_at = |delta: f32| {
                let mut other = model.clone();
                change(&mut other, delta);
                soft_surrogate(&other, &model, &x)
            };
            let (found, expected) = (f64::from(found), (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3);
            assert!((found - expected).abs() < 3e-3 + 0.02 * expected.abs(), "{name} {i}: {found}, not {expected}");
        };
        for i in 0..model.params.len() {
            check("parameter", i, shard.grads[i], &|model, delta| model.params[i] += delta);
        }
        for i in 0..model.codebooks.len() {
            check("codeword", i, shard.book[i], &|model, delta| model.codebooks[i] += delta);
        }
    }

    #[test]
    fn codewords_by_gradient_on_paper() {
        let (mut model, x) = tiny();
        model.update = CodebookUpdate::Gradient;
        let shard = pass(&model, &x);
        let latent = model.encode(&x);
        for (place, codeword) in model.codebooks[..4 * LATENT].chunks(LATENT).enumerate() {
            let rows = (0..ROWS).filter(|&i| usize::from(shard.codes[0][i]) == place);
            let expected: f32 = rows.map(|i| 2.0 * (codeword[0] - latent[i * LATENT]) / ROWS as f32).sum();
            assert!((shard.book[place * LATENT] - expected).abs() < 1e-4);
        }
    }

    /// Quantised latents of `base`, from its codes.
    fn quantized(base: &RqVae, codes: &[Vec<Code>]) -> Vec<f32> {
        let flat = (0..ROWS).flat_map(|i| codes.iter().map(move |codes| codes[i])).collect();
        base.quantizer().lookup(&CodeMatrix::new(codes.len(), flat).unwrap())
    }

    /// The loss with everything under a stop-gradient held at `base`: what the gradients are the derivative of.
    fn surrogate(model: &RqVae, base: &RqVae, x: &[f32], codes: &[Vec<Code>]) -> f64 {
        let square = |a: f32| f64::from(a).powi(2);
        let (z, z0) = (model.encode(x), base.encode(x));
        let mut loss = 0.0;
        for levels in 1..=codes.len() {
            let held = quantized(base, &codes[..levels]);
            loss += f64::from(model.beta) * z.iter().zip(&held).map(|(z, e)| square(z - e)).sum::<f64>();
        }
        let held = quantized(base, codes);
        let through: Vec<f32> = z.iter().zip(&z0).zip(&held).map(|((z, z0), e)| z + (e - z0)).collect();
        let reconstruction = model.decode(&through);
        (loss + reconstruction.iter().zip(x).map(|(y, x)| square(y - x)).sum::<f64>()) / ROWS as f64
    }

    #[test]
    fn gradients_equal_central_differences() {
        let (model, x) = tiny();
        let shard = pass(&model, &x);
        let loss = shard.loss / ROWS as f64;
        let base = surrogate(&model, &model, &x, &shard.codes);
        assert!((base - loss).abs() < 1e-5, "{base} {loss}");
        for i in 0..model.params.len() {
            let loss_at = |delta: f32| {
                let mut other = model.clone();
                other.params[i] += delta;
                surrogate(&other, &model, &x, &shard.codes)
            };
            let expected = (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3;
            let found = f64::from(shard.grads[i]);
            assert!((found - expected).abs() < 2e-3 + 0.01 * expected.abs(), "{i}: {found}, not {expected}");
        }
        // Single units may be silent, whole tensors may not.
        for (name, shape, at) in model.layout() {
            let grads = &shard.grads[at..at + shape.iter().product::<usize>()];
            assert!(grads.iter().any(|g| *g != 0.0), "{name} has no gradient");
        }
    }

    #[test]
    fn counts_and_sums_are_those_of_the_codes() {
        let (model, x) = tiny();
        let shard = pass(&model, &x);
        let latent = model.encode(&x);
        for code in 0..4 {
            let rows: Vec<usize> = (0..ROWS).filter(|&i| shard.codes[0][i] == code).collect();
            let place = usize::from(code);
            assert_eq!(shard.counts[place], rows.len() as f32);
            for d in 0..LATENT {
                let sum: f32 = rows.iter().map(|i| latent[i * LATENT + d]).sum();
                assert!((shard.sums[place * LATENT + d] - sum).abs() < 1e-4);
            }
        }
        assert_eq!(shard.counts[4..].iter().sum::<f32>(), ROWS as f32);
    }

    #[test]
    fn shards_add_up() {
        let (model, x) = tiny();
        let (all, a, b) = (pass(&model, &x), pass(&model, &x[..40 * CONTENT]), pass(&model, &x[40 * CONTENT..]));
        for ((all, a), b) in all.grads.iter().zip(&a.grads).zip(&b.grads) {
            assert!((all - a - b).abs() < 1e-5);
        }
        assert!((all.loss - a.loss - b.loss).abs() < 1e-4);
    }
}
