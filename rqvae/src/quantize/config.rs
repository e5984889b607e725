//! The numbers of a quantiser, and one door to all of them.

use super::{Behavior, FILE, FORMAT, Lsh, RandomIds, SidEncoder, VERSION, Vectors};
use crate::cluster::{
    HierarchicalKmeans, HierarchicalKmeansConfig, Opq, OpqConfig, ResidualKmeans, ResidualKmeansConfig,
};
use crate::model::{RqVaeConfig, RqVaeQuantizer};
use crate::{Accelerator, Artefact, Error, MAX_CODES, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How content becomes codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Residual-quantised variational autoencoder.
    RqVae,
    /// k-means on residuals.
    #[serde(rename = "rkmeans")]
    ResidualKmeans,
    /// k-means on residuals with clusters of nearly equal size.
    Balanced,
    /// k-means inside clusters: an ID is a path.
    #[serde(rename = "hkmeans")]
    HierarchicalKmeans,
    /// A rotation and one k-means per part of the vector.
    Opq,
    /// Sides of random hyperplanes: a control.
    Lsh,
    /// Codes that say nothing about the content: a control.
    Random,
}

/// All numbers of a quantiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizerConfig {
    /// Which quantiser.
    pub method: Method,
    /// Codes per item, suffix left out.
    pub levels: usize,
    /// Codes per level.
    pub codebook_size: u32,
    /// Codes of each level, coarse to fine, where they differ; empty for `codebook_size` everywhere. PLUM halves them
    /// from level to level.
    pub codebook_sizes: Vec<u32>,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Residual k-means, plain and balanced.
    pub rkmeans: ResidualKmeansConfig,
    /// Hierarchical k-means alone.
    pub hkmeans: HierarchicalKmeansConfig,
    /// OPQ alone.
    pub opq: OpqConfig,
    /// RQ-VAE alone.
    pub rqvae: RqVaeConfig,
}

impl Default for QuantizerConfig {
    /// TIGER's shape (sec. 4): 3 levels of 256 codes.
    fn default() -> Self {
        Self {
            method: Method::RqVae,
            levels: 3,
            codebook_size: 256,
            codebook_sizes: Vec::new(),
            seed: 0,
            rkmeans: ResidualKmeansConfig::default(),
            hkmeans: HierarchicalKmeansConfig::default(),
            opq: OpqConfig::default(),
            rqvae: RqVaeConfig::default(),
        }
    }
}

impl QuantizerConfig {
    /// Codes of every level.
    pub fn sizes(&self) -> Vec<u32> {
        if self.codebook_sizes.is_empty() { vec![self.codebook_size; self.levels] } else { self.codebook_sizes.clone() }
    }

    /// Refuses what cannot be fitted.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_CODES).contains(&self.levels) {
            return Err(Error::config("levels", self.levels, format!("1 to {MAX_CODES}")));
        }
        if !(1..=65_536).contains(&self.codebook_size) {
            return Err(Error::config("codebook_size", self.codebook_size, "1 to 65536"));
        }
        if !self.codebook_sizes.is_empty() {
            let got = format!("{:?}", self.codebook_sizes);
            if self.codebook_sizes.len() != self.levels {
                return Err(Error::config(
                    "codebook_sizes",
                    got,
                    format!("one size for each of {} levels", self.levels),
                ));
            }
            if self.codebook_sizes.iter().any(|size| !(1..=65_536).contains(size)) {
                return Err(Error::config("codebook_sizes", got, "sizes of 1 to 65536"));
            }
            if matches!(self.method, Method::HierarchicalKmeans | Method::Opq | Method::Lsh) {
                return Err(Error::config("codebook_sizes", got, "none: this method has one codebook_size"));
            }
        }
        if !(0.0..1.0).contains(&self.rkmeans.tolerance) {
            return Err(Error::config("rkmeans.tolerance", self.rkmeans.tolerance, "0 to below 1"));
        }
        if self.method == Method::Lsh && !(self.codebook_size.is_power_of_two() && self.codebook_size > 1) {
            return Err(Error::config("codebook_size", self.codebook_size, "a power of two from 2 on for lsh"));
        }
        if self.hkmeans.leaf_size == 0 {
            return Err(Error::config("hkmeans.leaf_size", 0, "1 or more"));
        }
        self.rqvae.validate()
    }
}

/// How far a fit has come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitProgress {
    /// What is being done.
    pub stage: &'static str,
    /// Levels or epochs done.
    pub done: usize,
    /// Levels or epochs in all.
    pub total: usize,
    /// Mean loss per item, where there is one.
    pub loss: Option<f64>,
}

/// Fits the quantiser that `cfg` names to `content` (items, dim); `progress` hears about every level or epoch.
///
/// # Errors
/// The configuration is invalid, there are no items, a vector is not finite, or the fit diverged.
pub fn fit_quantizer(
    cfg: &QuantizerConfig,
    content: &Vectors,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Box<dyn SidEncoder>> {
    fit_quantizer_with(cfg, content, &Behavior::default(), None, progress)
}

/// As [`fit_quantizer`] with what `behavior` says of the same items, which the RQ-VAE listens to where its
/// configuration gives that a weight. With `device` the towers of the RQ-VAE are trained there, and other methods search
/// for nearest codewords there.
///
/// # Errors
/// As [`fit_quantizer`]; the configuration asks for what `behavior` does not say; the device fails, or does not compute
/// what the host does.
pub fn fit_quantizer_with(
    cfg: &QuantizerConfig,
    content: &Vectors,
    behavior: &Behavior,
    device: Option<&dyn Accelerator>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Box<dyn SidEncoder>> {
    Ok(match cfg.method {
        Method::RqVae => Box::new(RqVaeQuantizer::fit(cfg, content, behavior, device, progress)?),
        Method::ResidualKmeans | Method::Balanced => Box::new(ResidualKmeans::fit(cfg, content, device, progress)?),
        Method::HierarchicalKmeans => Box::new(HierarchicalKmeans::fit(cfg, content, device, progress)?),
        Method::Opq => Box::new(Opq::fit(cfg, content, device, progress)?),
        Method::Lsh => Box::new(Lsh::fit(cfg, content, device)?),
        Method::Random => Box::new(RandomIds::fit(cfg, content)?),
    })
}

/// Reads the quantiser saved in the folder `dir`.
///
/// # Errors
/// The file is missing, damaged, of another version, or names a method unknown here.
pub fn load_quantizer(dir: &Path) -> Result<Box<dyn SidEncoder>> {
    let artefact = Artefact::open(&dir.join(FILE), FORMAT, VERSION)?;
    Ok(match artefact.metadata("method")? {
        "rqvae" => Box::new(RqVaeQuantizer::load(&artefact)?),
        "rkmeans" | "balanced" => Box::new(ResidualKmeans::load(&artefact)?),
        "hkmeans" => Box::new(HierarchicalKmeans::load(&artefact)?),
        "opq" => Box::new(Opq::load(&artefact)?),
        "lsh" => Box::new(Lsh::load(&artefact)?),
        "random" => Box::new(RandomIds::load(&artefact)?),
        other => {
            return Err(Error::corrupt(artefact.path(), format!("method `{other}` is unknown")));
        }
    })
}
