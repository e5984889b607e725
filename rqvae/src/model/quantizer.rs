//! A fitted RQ-VAE: content is standardised, encoded, quantised and decoded.

use super::config::RqVaeConfig;
use super::engine::Remote;
use super::fit::fit;
use super::rqvae::RqVae;
use crate::quantize::{
    Behavior, Encoded, FILE, FORMAT, FitProgress, QuantizerConfig, SidEncoder, VERSION, check_codes, content_order,
};
use crate::{Accelerator, Artefact, ArtefactWriter, CodeMatrix, Error, LastLevel, Result, Vectors};
use rayon::prelude::*;
use std::path::Path;

const METHOD: &str = "rqvae";

/// Items that go through the towers of a device at once.
const ENCODED_AT_ONCE: usize = 8192;

/// Items that go through the towers of both sides, and how far these may be apart, as a share.
const COMPARED: usize = 64;
const APART: f64 = 0.01;

/// An RQ-VAE with the standardisation of its content.
#[derive(Debug, Clone)]
pub struct RqVaeQuantizer {
    config: RqVaeConfig,
    sizes: Vec<u32>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
    model: RqVae,
}

impl RqVaeQuantizer {
    /// Fits `content` (items, dim) and what `behavior` says of the same items. Their order makes no difference. The
    /// towers are computed by the host, or on `device`.
    ///
    /// # Errors
    /// The configuration is invalid or asks for behaviour that is not there, or there are no items, or a vector is not
    /// finite, or the training diverged; or the device fails, or does not compute what the host does.
    pub fn fit(
        config: &QuantizerConfig,
        content: &Vectors,
        behavior: &Behavior,
        device: Option<&dyn Accelerator>,
        progress: &mut dyn FnMut(FitProgress),
    ) -> Result<Self> {
        config.validate()?;
        let order = content_order(content)?;
        let (mean, deviation) = moments(content, &order);
        let rows = standardized(content, &order, &mean, &deviation);
        behavior.check(content.rows())?;
        let model = fit(config, &rows, content.dim, &behavior.select(&order), device, progress)?;
        let sizes = config.sizes();
        Ok(Self { config: config.rqvae.clone(), sizes, mean, deviation, model })
    }

    /// The network.
    pub fn model(&self) -> &RqVae {
        &self.model
    }

    /// All rows of `content` standardised, once it fits.
    fn rows(&self, content: &Vectors) -> Result<Vec<f32>> {
        content.check()?;
        let dim = self.mean.len();
        if content.dim != dim {
            return Err(Error::shape("content vectors", format!("width {dim}"), content.dim));
        }
        let order: Vec<u32> = (0..content.rows() as u32).collect();
        Ok(standardized(content, &order, &self.mean, &self.deviation))
    }

    /// Standardised rows back to content.
    fn restore(&self, mut data: Vec<f32>) -> Vectors {
        let dim = self.mean.len();
        data.par_chunks_exact_mut(dim).for_each(|row| {
            for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = *x * deviation + mean;
            }
        });
        Vectors { dim, data }
    }

    pub(crate) fn load(artefact: &Artefact) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt(artefact.path(), reason);
        let config: RqVaeConfig =
            serde_json::from_str(artefact.metadata("config")?).map_err(|e| corrupt(format!("config: {e}")))?;
        config.validate().map_err(|e| corrupt(e.to_string()))?;
        let (_, mean) = artefact.f32s("mean")?;
        let (_, deviation) = artefact.f32s("deviation")?;
        let positive = deviation.iter().all(|&x| x > 0.0 && x.is_finite());
        if mean.is_empty() || mean.len() != deviation.len() || !positive || mean.iter().any(|x| !x.is_finite()) {
            return Err(corrupt("`mean` and `deviation` do not standardise anything".into()));
        }
        let model = RqVae::load(artefact, &config, mean.len())?;
        let sizes = model.quantizer().sizes();
        Ok(Self { config, sizes, mean, deviation, model })
    }
}

impl SidEncoder for RqVaeQuantizer {
    fn codebook_sizes(&self) -> &[u32] {
        &self.sizes
    }

    fn encode_on(&self, content: &Vectors, device: Option<&dyn Accelerator>) -> Result<Encoded> {
        let (model, rows) = (&self.model, self.rows(content)?);
        let Some(device) = device else {
            let (codes, data) = model.round_trip(&rows);
            return Ok(Encoded::new(codes, self.restore(data), content));
        };
        let mut towers = Remote::new(model, ENCODED_AT_ONCE.min(content.rows().max(1)), device)?;
        let (stack, compared) = (model.quantizer(), COMPARED.min(content.rows()));
        let latents = towers.latents(model, &rows)?;
        near("latents", &latents, &model.encode(&rows[..compared * model.content_dim()]))?;
        let (codes, _) = stack.quantize_on(&latents, Some(device))?;
        let quantized = stack.lookup(&codes);
        let data = towers.reconstruct(model, &quantized)?;
        near("reconstruction", &data, &model.decode(&quantized[..compared * model.latent_dim()]))?;
        Ok(Encoded::new(codes, self.restore(data), content))
    }

    fn decode(&self, codes: &CodeMatrix) -> Result<Option<Vectors>> {
        check_codes(codes, &self.sizes)?;
        Ok(Some(self.restore(self.model.decode(&self.model.quantizer().lookup(codes)))))
    }

    fn last_level(&self, content: &Vectors) -> Result<Option<LastLevel>> {
        let latent = self.model.encode(&self.rows(content)?);
        Ok(Some(self.model.quantizer().last_level(&latent)))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let mut writer = ArtefactWriter::new(FORMAT, VERSION);
        writer.metadata("method", METHOD);
        writer.metadata("config", &serde_json::to_string(&self.config).map_err(|e| Error::corrupt(&path, e))?);
        writer.f32s("mean", &[self.mean.len()], &self.mean)?;
        writer.f32s("deviation", &[self.deviation.len()], &self.deviation)?;
        self.model.save(&mut writer)?;
        writer.write(&path)
    }

    fn method(&self) -> &'static str {
        METHOD
    }
}

/// Refuses a device whose numbers are not those of the host, as far as there are any of these.
fn near(what: &str, device: &[f32], host: &[f32]) -> Result<()> {
    let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let apart = squares(&mut device.iter().zip(host).map(|(a, b)| a - b));
    let size = squares(&mut host.iter().copied());
    // The other way round it would not see what is no number.
    if apart <= APART * size {
        return Ok(());
    }
    let share = 100.0 * apart / size;
    Err(Error::Disagreement {
        what: format!("the device's {what} of the first items are {share:.3} % away from the processor's"),
    })
}

/// Mean and standard deviation of each dimension; 1 for a dimension that does not vary beyond rounding.
pub(super) fn moments(content: &Vectors, order: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let (dim, rows) = (content.dim, order.len() as f64);
    let mut mean = vec![0f64; dim];
    for &i in order {
        mean.iter_mut().zip(content.row(i as usize)).for_each(|(mean, &x)| *mean += f64::from(x) / rows);
    }
    let mut variance = vec![0f64; dim];
    for &i in order {
        for ((variance, &x), mean) in variance.iter_mut().zip(content.row(i as usize)).zip(&mean) {
            *variance += (f64::from(x) - mean).powi(2) / rows;
        }
    }
    let deviation = variance.iter().zip(&mean).map(|(variance, mean)| {
        let deviation = variance.sqrt().min(f64::from(f32::MAX)) as f32;
        if deviation.is_normal() && f64::from(deviation) > mean.abs() * 1e-6 { deviation } else { 1.0 }
    });
    (mean.iter().map(|&mean| mean as f32).collect(), deviation.collect())
}

/// Rows of `order` with mean 0 and deviation 1 in each dimension.
///
/// What lies beyond a million deviations is cut there, so that no sum of squares overflows.
pub(super) fn standardized(content: &Vectors, order: &[u32], mean: &[f32], deviation: &[f32]) -> Vec<f32> {
    let mut rows = vec![0.0; order.len() * content.dim];
    rows.par_chunks_exact_mut(content.dim).zip(order).for_each(|(row, &i)| {
        for (((y, &x), &mean), &deviation) in row.iter_mut().zip(content.row(i as usize)).zip(mean).zip(deviation) {
            *y = ((f64::from(x) - f64::from(mean)) / f64::from(deviation)).clamp(-1e6, 1e6) as f32;
        }
    });
    rows
}
