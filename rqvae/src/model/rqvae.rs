//! Encoder, residual quantiser, decoder.
//!
//! Shapes: content (rows, `content_dim`) -> latent (rows, `latent_dim`) -> codes (rows, levels), reconstruction.
//! Paper: Rajput et al. 2023 (TIGER), sec. 3.1; several sources as in He et al. 2025 (PLUM), sec. 3.1.

use super::config::RqVaeConfig;
use super::towers::{Decoder, Encoder, TowerTape};
use crate::quantize::ResidualQuantizer;
use crate::{Artefact, ArtefactWriter, CodeMatrix, Error, Result, SeededRng};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that one thread works on at a time: a shard.
pub(super) const SHARD: usize = crate::cluster::BLOCK;

/// The network: the weights of all towers in one flat vector, the codebooks of all levels in another.
#[derive(Debug, Clone)]
pub struct RqVae {
    pub(super) config: RqVaeConfig,
    content_dim: usize,
    /// Place of the first codeword of every level, and their number.
    starts: Vec<usize>,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) params: Vec<f32>,
    pub(super) codebooks: Vec<f32>,
}

impl RqVae {
    /// A network with drawn weights and codebooks of zeros, `sizes` (levels,) their sizes.
    ///
    /// # Errors
    /// The sources of the configuration do not make up `content_dim`.
    pub(super) fn new(config: &RqVaeConfig, content_dim: usize, sizes: &[u32], rng: &SeededRng) -> Result<Self> {
        let widths = config.widths(content_dim)?;
        let mut offset = 0;
        let encoder = Encoder::new(&widths, &config.hidden, config.latent_dim, &mut offset);
        let decoder = Decoder::new(&widths, &config.hidden, config.latent_dim, &mut offset);
        let mut params = vec![0.0; offset];
        let mut starts = vec![0];
        sizes.iter().for_each(|&size| starts.push(starts[starts.len() - 1] + size as usize));
        let codebooks = vec![0.0; starts[sizes.len()] * config.latent_dim];
        encoder.init(&mut params, &mut rng.stream("encoder"));
        decoder.init(&mut params, &mut rng.stream("decoder"));
        Ok(Self { config: config.clone(), content_dim, starts, encoder, decoder, params, codebooks })
    }

    /// Width of the content.
    pub fn content_dim(&self) -> usize {
        self.content_dim
    }

    /// Width of the latent.
    pub fn latent_dim(&self) -> usize {
        self.config.latent_dim
    }

    /// Number of parameters, codebooks included.
    pub fn parameters(&self) -> usize {
        self.params.len() + self.codebooks.len()
    }

    pub(super) fn levels(&self) -> usize {
        self.starts.len() - 1
    }

    /// Codewords of all levels.
    pub(super) fn codewords(&self) -> usize {
        self.starts[self.levels()]
    }

    /// Places of the codewords of `level` among those of all levels.
    pub(super) fn places(&self, level: usize) -> Range<usize> {
        self.starts[level]..self.starts[level + 1]
    }

    /// Place of the codebook of `level` among the codebooks.
    pub(super) fn codebook(&self, level: usize) -> Range<usize> {
        self.starts[level] * self.latent_dim()..self.starts[level + 1] * self.latent_dim()
    }

    /// The codebooks as a stack.
    pub(crate) fn quantizer(&self) -> ResidualQuantizer {
        let codebooks = (0..self.levels()).map(|level| self.codebooks[self.codebook(level)].to_vec()).collect();
        ResidualQuantizer::new(self.latent_dim(), codebooks)
    }

    /// Latents of standardised content: (items, `content_dim`) -> (items, `latent_dim`).
    pub(crate) fn encode(&self, x: &[f32]) -> Vec<f32> {
        let forward = |x: &[f32], tape: &mut TowerTape, out: &mut [f32]| {
            out.copy_from_slice(&self.encoder.forward(&self.params, x, SHARD, tape)[..out.len()]);
        };
        in_blocks(x, self.content_dim, self.latent_dim(), forward)
    }

    /// Standardised content from quantised latents: (items, `latent_dim`) -> (items, `content_dim`).
    pub(crate) fn decode(&self, quantized: &[f32]) -> Vec<f32> {
        let forward = |z: &[f32], tape: &mut TowerTape, out: &mut [f32]| {
            out.copy_from_slice(&self.decoder.forward(&self.params, z, SHARD, tape)[..out.len()]);
        };
        in_blocks(quantized, self.latent_dim(), self.content_dim, forward)
    }

    /// Name, shape and place of every parameter but the codewords.
    pub(super) fn layout(&self) -> Vec<(String, Vec<usize>, usize)> {
        let mut layout = self.encoder.parameters();
        layout.extend(self.decoder.parameters());
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
        let sizes = ResidualQuantizer::load(artefact, config.latent_dim)?.sizes();
        let mut model = Self::new(config, content_dim, &sizes, &SeededRng::new(0))
            .map_err(|e| Error::corrupt(artefact.path(), e))?;
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

/// Rows through `forward`, always a full block at a time: the output of a row depends neither on its place nor on its
/// neighbours.
fn in_blocks(
    x: &[f32],
    input: usize,
    output: usize,
    forward: impl Fn(&[f32], &mut TowerTape, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / input * output];
    out.par_chunks_mut(SHARD * output).zip(x.par_chunks(SHARD * input)).for_each_init(
        TowerTape::default,
        |tape, (out, x)| {
            if x.len() == SHARD * input {
                return forward(x, tape, out);
            }
            let mut block = x.to_vec();
            block.resize(SHARD * input, 0.0);
            forward(&block, tape, out);
        },
    );
    out
}
