//! Who computes the towers while an RQ-VAE is trained.
//!
//! The towers are nearly all of a step's arithmetic, and the only part of it that asks for a large device. Choosing codes,
//! with all its options, stays with the host, shard by shard, whoever computes the towers: a batch is cut into the same
//! shards and draws the same numbers on both sides.

use super::estimator::gumbel;
use super::mlp::TowerLayer;
use super::optim::AdamW;
use super::pass::{Rows, Shard, Step};
use super::rqvae::RqVae;
use crate::{Accelerator, AdamWConfig, Code, CodeMatrix, Error, Result};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// The towers of a network: ReLU between the layers of a tower, none behind its last.
///
/// Content (rows, sum of `widths`) is cut into columns, one range a source. Each goes through its encoder; with several
/// sources the latents, side by side, are projected by `fuse`. Every decoder reads the quantised latent and writes the
/// columns of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TowerPlan {
    /// Widths of the sources.
    pub widths: Vec<usize>,
    /// Width of the latent.
    pub latent_dim: usize,
    /// Layers from each source to a latent.
    pub encoders: Vec<Vec<TowerLayer>>,
    /// From the latents of several sources to one; `None` with one source.
    pub fuse: Option<TowerLayer>,
    /// Layers from the latent to each source.
    pub decoders: Vec<Vec<TowerLayer>>,
    /// Length of the flat vector of all parameters.
    pub parameters: usize,
}

impl TowerPlan {
    fn of(model: &RqVae) -> Self {
        let (widths, encoders, fuse) = model.encoder.layers();
        let decoders = model.decoder.layers();
        Self { widths, latent_dim: model.latent_dim(), encoders, fuse, decoders, parameters: model.params.len() }
    }
}

/// What training on a device begins with.
#[derive(Debug, Clone, Copy)]
pub struct TowerStart<'a> {
    /// The towers.
    pub plan: &'a TowerPlan,
    /// First values of all parameters: (parameters,).
    pub params: &'a [f32],
    /// Most rows that are encoded at once.
    pub rows: usize,
    /// The optimiser; gradients are not clipped.
    pub adamw: AdamWConfig,
}

/// Towers on a device, with their parameters, gradients and optimiser. A step calls `encode`, `decode`, `back` and
/// `update` in this order; without the last no parameter changes.
///
/// Every method fails where the device does. What is not finite is no error here: it reaches the loss, which the caller
/// looks at before it updates anything.
pub trait Towers {
    /// Content (rows, sum of the widths) becomes `latents` (rows, `latent_dim`), whatever was in there.
    ///
    /// # Errors
    /// The device fails, or these are more rows than were announced.
    fn encode(&mut self, x: &[f32], latents: &mut Vec<f32>) -> Result<()>;

    /// `|x - x_hat|^2`, summed over all rows and dimensions, of what was encoded last, from its quantised latents (rows,
    /// `latent_dim`). `flow` becomes the gradient of these, of `scale` times that sum: (rows, `latent_dim`).
    ///
    /// # Errors
    /// The device fails, or these are not the rows encoded last.
    fn decode(&mut self, quantized: &[f32], scale: f32, flow: &mut Vec<f32>) -> Result<f64>;

    /// Content from quantised latents (rows, `latent_dim`), into `x` (rows, sum of the widths). What was encoded last is
    /// forgotten.
    ///
    /// # Errors
    /// The device fails, or these are more rows than were announced.
    fn reconstruct(&mut self, quantized: &[f32], x: &mut Vec<f32>) -> Result<()>;

    /// From the gradient of the latents (rows, `latent_dim`) to those of the encoder's parameters.
    ///
    /// # Errors
    /// The device fails, or these are not the rows encoded last.
    fn back(&mut self, flow: &[f32]) -> Result<()>;

    /// One step of the optimiser with the gradients of the last batch.
    ///
    /// # Errors
    /// The device fails.
    fn update(&mut self, learning_rate: f32) -> Result<()>;

    /// Gradients of the last batch, in the places of the parameters: (parameters,).
    ///
    /// # Errors
    /// The device fails.
    fn gradients(&mut self) -> Result<Vec<f32>>;

    /// The parameters as they are now: (parameters,).
    ///
    /// # Errors
    /// The device fails.
    fn params(&mut self) -> Result<Vec<f32>>;
}

/// What computes the towers of a fit.
pub(super) enum Engine {
    /// The host, every shard on its own.
    Host(AdamW),
    /// A device, all shards at once.
    Device(Remote),
}

/// A device, and what goes there and comes back.
pub(super) struct Remote {
    towers: Box<dyn Towers>,
    rows: usize,
    sent: Vec<f32>,
    got: Vec<f32>,
}

impl Engine {
    /// The host where there is no device; `rows`: most of a batch.
    pub(super) fn new(model: &RqVae, rows: usize, device: Option<&dyn Accelerator>) -> Result<Self> {
        Ok(match device {
            None => Self::Host(AdamW::new(model.params.len(), model.config.weight_decay)),
            Some(device) => Self::Device(Remote::new(model, rows, device)?),
        })
    }

    /// Losses and gradients of a batch in `shards`; `begin` fills the rows of a shard and returns what its noise is drawn
    /// from.
    pub(super) fn pass(
        &mut self,
        model: &RqVae,
        shards: &mut [Shard],
        now: &Step,
        begin: &(dyn Fn(usize, &mut Rows) -> ChaCha8Rng + Sync),
    ) -> Result<()> {
        let remote = match self {
            Self::Host(_) => {
                shards.par_iter_mut().enumerate().for_each(|(at, shard)| {
                    let mut rng = begin(at, &mut shard.rows);
                    model.backward(shard, now, &mut || gumbel(&mut rng));
                });
                return Ok(());
            }
            Self::Device(remote) => remote,
        };
        let rngs: Vec<_> = shards.par_iter_mut().enumerate().map(|(at, shard)| begin(at, &mut shard.rows)).collect();
        let (content, dim) = (model.content_dim(), model.latent_dim());
        remote.send(shards, |shard| &shard.rows.x);
        remote.towers.encode(&remote.sent, &mut remote.got)?;
        remote.receive(shards, |shard| (shard.rows.x.len() / content * dim, &mut shard.latent))?;
        shards.par_iter_mut().zip(rngs).for_each(|(shard, mut rng)| {
            model.quantize(shard, now, &mut || gumbel(&mut rng));
        });
        remote.send(shards, |shard| &shard.quantized);
        let squares = remote.towers.decode(&remote.sent, now.scale, &mut remote.got)?;
        remote.receive(shards, |shard| (shard.quantized.len(), &mut shard.flow))?;
        if let Some(first) = shards.first_mut() {
            first.terms.reconstruction = squares;
        }
        shards.par_iter_mut().for_each(|shard| model.through(shard, now));
        remote.send(shards, |shard| &shard.flow);
        remote.towers.back(&remote.sent)
    }

    /// One step of the optimiser. On a device the parameters of `model` stay what they were until [`Engine::fetch`].
    pub(super) fn update(&mut self, model: &mut RqVae, shards: &[Shard], learning_rate: f32) -> Result<()> {
        match self {
            Self::Host(optim) => {
                let grads: Vec<&[f32]> = shards.iter().map(|shard| &shard.grads[..]).collect();
                optim.step(&mut model.params, &grads, learning_rate);
                Ok(())
            }
            Self::Device(remote) => remote.towers.update(learning_rate),
        }
    }

    /// Gradients of the last batch, which `shards` hold on the host.
    pub(super) fn gradients(&mut self, shards: &[Shard]) -> Result<Vec<f32>> {
        match self {
            Self::Host(_) => Ok(summed(shards)),
            Self::Device(remote) => remote.towers.gradients(),
        }
    }

    /// Brings the parameters of now to `model`.
    pub(super) fn fetch(&mut self, model: &mut RqVae) -> Result<()> {
        if let Self::Device(remote) = self {
            let params = remote.towers.params()?;
            fits("parameters of the towers", model.params.len(), params.len())?;
            model.params = params;
        }
        Ok(())
    }

    /// Codes of standardised `content` (items, `content_dim`), and the squared error of its reconstruction, summed. On a
    /// device the weights are those that it holds.
    pub(super) fn round_trip(&mut self, model: &RqVae, content: &[f32]) -> Result<(CodeMatrix, f64)> {
        let remote = match self {
            Self::Host(_) => {
                let (codes, reconstruction) = model.round_trip(content);
                let squares = reconstruction.iter().zip(content).map(|(y, x)| f64::from(y - x).powi(2));
                return Ok((codes, squares.sum::<f64>()));
            }
            Self::Device(remote) => remote,
        };
        let (stack, levels) = (model.quantizer(), model.levels());
        let mut all: Vec<Code> = Vec::with_capacity(content.len() / model.content_dim() * levels);
        let mut squares = 0.0;
        for x in content.chunks(remote.rows * model.content_dim()) {
            remote.towers.encode(x, &mut remote.got)?;
            fits("latents", x.len() / model.content_dim() * model.latent_dim(), remote.got.len())?;
            let (codes, _) = stack.quantize(&remote.got);
            squares += remote.towers.decode(&stack.lookup(&codes), 0.0, &mut remote.got)?;
            all.extend((0..codes.rows()).flat_map(|row| codes.row(row)));
        }
        Ok((CodeMatrix::new(levels, all)?, squares))
    }
}

impl Remote {
    /// The towers of `model` on `device`, for at most `rows` rows at once.
    pub(super) fn new(model: &RqVae, rows: usize, device: &dyn Accelerator) -> Result<Self> {
        let (plan, adamw) = (TowerPlan::of(model), AdamW::config(model.config.weight_decay));
        let towers = device.towers(&TowerStart { plan: &plan, params: &model.params, rows, adamw })?;
        Ok(Self { towers, rows, sent: Vec::new(), got: Vec::new() })
    }

    /// Latents of standardised `content` (items, `content_dim`): (items, `latent_dim`).
    pub(super) fn latents(&mut self, model: &RqVae, content: &[f32]) -> Result<Vec<f32>> {
        let mut latents = Vec::with_capacity(content.len() / model.content_dim() * model.latent_dim());
        for x in content.chunks(self.rows * model.content_dim()) {
            self.towers.encode(x, &mut self.got)?;
            fits("latents", x.len() / model.content_dim() * model.latent_dim(), self.got.len())?;
            latents.extend_from_slice(&self.got);
        }
        Ok(latents)
    }

    /// Content from quantised latents (items, `latent_dim`): (items, `content_dim`).
    pub(super) fn reconstruct(&mut self, model: &RqVae, quantized: &[f32]) -> Result<Vec<f32>> {
        let mut content = Vec::with_capacity(quantized.len() / model.latent_dim() * model.content_dim());
        for quantized in quantized.chunks(self.rows * model.latent_dim()) {
            self.towers.reconstruct(quantized, &mut self.got)?;
            fits("reconstruction", quantized.len() / model.latent_dim() * model.content_dim(), self.got.len())?;
            content.extend_from_slice(&self.got);
        }
        Ok(content)
    }

    /// What `of` says of every shard, one after another.
    fn send(&mut self, shards: &[Shard], of: impl Fn(&Shard) -> &Vec<f32>) {
        self.sent.clear();
        shards.iter().for_each(|shard| self.sent.extend_from_slice(of(shard)));
    }

    /// The same way back: how many numbers are a shard's, and where they go.
    fn receive(&self, shards: &mut [Shard], to: impl Fn(&mut Shard) -> (usize, &mut Vec<f32>)) -> Result<()> {
        let mut from = 0;
        for shard in shards {
            let (count, to) = to(shard);
            let part = self.got.get(from..from + count);
            let part = part.ok_or_else(|| Error::shape("numbers of the towers", from + count, self.got.len()))?;
            to.clear();
            to.extend_from_slice(part);
            from += count;
        }
        fits("numbers of the towers", from, self.got.len())
    }
}

fn fits(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::shape(what, expected, found)) }
}

/// Gradients of all shards together.
fn summed(shards: &[Shard]) -> Vec<f32> {
    let mut sum = shards.first().map_or_else(Vec::new, |shard| shard.grads.clone());
    for shard in shards.iter().skip(1) {
        sum.iter_mut().zip(&shard.grads).for_each(|(sum, g)| *sum += g);
    }
    sum
}
