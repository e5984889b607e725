//! Vectors and a quantiser for the benches of quantisers.

use crate::catalogue::Catalogue;
use crate::error::{Fault, fault};
use crate::gpu::DeviceChoice;
use crate::sids::{MethodArg, device};
use anyhow::Result;
use beam::cuda::Device;
use clap::{Args, ValueEnum};
use rand::Rng;
use rqvae::{QuantizerConfig, SeededRng, Vectors};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Heaps that made-up vectors lie around.
const HEAPS: usize = 300;

#[derive(Args)]
pub(crate) struct QuantizerBenchArgs {
    /// Number of made-up vectors
    #[arg(long, default_value_t = 12_101, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    items: u32,
    /// Their width
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(1..=4096))]
    dim: u32,
    /// Take the vectors of a catalogue instead
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: Option<PathBuf>,
    /// Quantiser
    #[arg(long, value_enum, default_value = "rkmeans", env = "SIDREC_METHOD")]
    method: MethodArg,
    /// Codes per item
    #[arg(long, default_value_t = 3, env = "SIDREC_LEVELS")]
    levels: usize,
    /// Codes per level
    #[arg(long, default_value_t = 256, env = "SIDREC_CODEBOOK_SIZE")]
    codebook_size: u32,
    /// Iterations of every k-means, no fewer; epochs of the RQ-VAE
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,
    /// Times that the measurement is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: u32,
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Where to fit and encode, as in `sids build`
    #[arg(long, value_enum, default_value = "auto", env = "SIDREC_DEVICE")]
    device: DeviceChoice,
    /// Only the JSON line
    #[arg(long)]
    pub(super) json: bool,
}

impl QuantizerBenchArgs {
    /// The quantiser: k-means does not stop early, the RQ-VAE trains for the given epochs.
    pub(super) fn config(&self) -> Result<QuantizerConfig> {
        let name = self.method.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string());
        let method = serde_json::from_value(Value::String(name))?;
        let mut config = QuantizerConfig {
            method,
            levels: self.levels,
            codebook_size: self.codebook_size,
            seed: self.seed,
            ..QuantizerConfig::default()
        };
        config.rkmeans.iterations = self.iterations as usize;
        config.rkmeans.tolerance = 0.0;
        config.rkmeans.items_per_code = 0;
        config.hkmeans.iterations = self.iterations as usize;
        config.opq.iterations = self.iterations as usize;
        config.rqvae.epochs = self.iterations as usize;
        config.rqvae.min_steps = 0;
        config.rqvae.check_every = usize::MAX;
        config.validate().map_err(|e| fault(Fault::Usage, e))?;
        Ok(config)
    }

    /// Where the quantiser computes, `None` for the processor.
    pub(super) fn device(&self, config: &QuantizerConfig) -> Result<Option<Arc<dyn Device>>> {
        device(self.device, config.method)
    }

    /// The vectors: those of the catalogue, or heaps of made-up ones.
    pub(super) fn vectors(&self) -> Result<Vectors> {
        if let Some(dir) = &self.catalogue {
            return Ok(Catalogue::open(dir)?.content);
        }
        let (dim, rng) = (self.dim as usize, SeededRng::new(self.seed));
        let mut draw = rng.stream("bench heaps");
        let heaps: Vec<f32> = (0..HEAPS * dim).map(|_| draw.random::<f32>() - 0.5).collect();
        let mut data = Vec::with_capacity(self.items as usize * dim);
        for _ in 0..self.items {
            let heap = draw.random_range(0..HEAPS) * dim;
            data.extend(heaps[heap..heap + dim].iter().map(|x| x + 0.6 * (draw.random::<f32>() - 0.5)));
        }
        Ok(Vectors::new(dim, data)?)
    }

    /// All sizes, for the bench's line.
    pub(super) fn params(&self, content: &Vectors, config: &QuantizerConfig) -> Map<String, Value> {
        object(json!({"method": config.method, "items": content.rows(), "dim": content.dim, "levels": config.levels,
            "codebook_size": config.codebook_size, "iterations": self.iterations, "runs": self.runs, "seed": self.seed,
            "device": self.device.to_possible_value().map(|value| value.get_name().to_owned()),
            "real_vectors": self.catalogue.is_some()}))
    }
}

/// The map of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
