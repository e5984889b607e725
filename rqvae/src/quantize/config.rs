//! The numbers of a quantiser, and one door to all of them.

use super::{FILE, FORMAT, Lsh, RandomIds, SidEncoder, VERSION, Vectors};
use crate::cluster::{
    HierarchicalKmeans, HierarchicalKmeansConfig, Opq, OpqConfig, ResidualKmeans, ResidualKmeansConfig,
};
use crate::model::{RqVaeConfig, RqVaeQuantizer};
use crate::{Artefact, Error, MAX_CODES, Result};
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
            seed: 0,
            rkmeans: ResidualKmeansConfig::default(),
            hkmeans: HierarchicalKmeansConfig::default(),
            opq: OpqConfig::default(),
            rqvae: RqVaeConfig::default(),
        }
    }
}

impl QuantizerConfig {
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
    Ok(match cfg.method {
        Method::RqVae => Box::new(RqVaeQuantizer::fit(cfg, content, progress)?),
        Method::ResidualKmeans | Method::Balanced => Box::new(ResidualKmeans::fit(cfg, content, progress)?),
        Method::HierarchicalKmeans => Box::new(HierarchicalKmeans::fit(cfg, content, progress)?),
        Method::Opq => Box::new(Opq::fit(cfg, content, progress)?),
        Method::Lsh => Box::new(Lsh::fit(cfg, content)?),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SeededRng, SidStats};
    use rand::Rng;

    const METHODS: [Method; 7] = [
        Method::RqVae,
        Method::ResidualKmeans,
        Method::Balanced,
        Method::HierarchicalKmeans,
        Method::Opq,
        Method::Lsh,
        Method::Random,
    ];
    const NAMES: [&str; 7] = ["rqvae", "rkmeans", "balanced", "hkmeans", "opq", "lsh", "random"];

    fn config(method: Method) -> QuantizerConfig {
        let rqvae = RqVaeConfig {
            hidden: vec![24, 16],
            latent_dim: 8,
            epochs: 24,
            min_steps: 0,
            batch_size: 64,
            check_every: 6,
            ..RqVaeConfig::default()
        };
        QuantizerConfig { method, codebook_size: 16, rqvae, ..QuantizerConfig::default() }
    }

    fn heaps(items: usize) -> Vectors {
        let mut rng = SeededRng::new(7).stream("heaps");
        let data = (0..items)
            .flat_map(|i| (0..12).map(move |d| ((i % 5) * (d + 1) % 7) as f32))
            .map(|x| x + rng.random::<f32>())
            .collect();
        Vectors::new(12, data).unwrap()
    }

    fn fit(config: &QuantizerConfig, content: &Vectors) -> Box<dyn SidEncoder> {
        fit_quantizer(config, content, &mut |_| ()).unwrap()
    }

    #[test]
    fn round_trip_and_flipped_byte() {
        let content = heaps(300);
        for method in METHODS {
            let quantizer = fit(&config(method), &content);
            let dir = tempfile::tempdir().unwrap();
            quantizer.save(dir.path()).unwrap();
            let loaded = load_quantizer(dir.path()).unwrap();
            assert_eq!(loaded.method(), quantizer.method());
            assert_eq!(loaded.codebook_sizes(), [16; 3]);
            assert_eq!(loaded.encode(&content).unwrap(), quantizer.encode(&content).unwrap());
            let path = dir.path().join(FILE);
            let bytes = std::fs::read(&path).unwrap();
            for at in (0..bytes.len()).step_by(bytes.len() / 40) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 2;
                std::fs::write(&path, flipped).unwrap();
                assert!(bytes[at] == b' ' || load_quantizer(dir.path()).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn same_seed_same_bits_and_order_of_items_makes_no_difference() {
        let content = heaps(200);
        let mut data = content.data.clone();
        data.rotate_left(12 * 77);
        let turned = Vectors::new(12, data).unwrap();
        for method in METHODS {
            let codes = |c: &Vectors| fit(&config(method), c).encode(c).unwrap().codes;
            let (a, b) = (codes(&content), codes(&turned));
            assert_eq!(a, codes(&content));
            assert!((0..200).all(|i| a.row((i + 77) % 200) == b.row(i)), "{method:?}");
            let other = QuantizerConfig { seed: 1, ..config(method) };
            assert_ne!(a, fit(&other, &content).encode(&content).unwrap().codes);
        }
    }

    #[test]
    fn hostile_content_is_fitted_or_refused() {
        let single = heaps(1);
        let few = heaps(5);
        let zeros = Vectors::new(4, vec![0.0; 40]).unwrap();
        let equal = Vectors::new(3, [1e6, -0.1, 3e-9].repeat(30)).unwrap();
        let huge = Vectors::new(2, (0..60).map(|i| if i % 3 == 0 { 3e38 } else { -3e38 }).collect()).unwrap();
        let tiny = Vectors::new(2, (0..60).map(|i| i as f32 * 1e-42).collect()).unwrap();
        for method in METHODS {
            for content in [&single, &few, &zeros, &equal, &huge, &tiny] {
                let encoded = fit(&config(method), content).encode(content).unwrap();
                encoded.reconstruction.check().unwrap();
                assert!(encoded.relative_error(content).is_finite());
                assert_eq!(SidStats::of(&encoded.codes, &[16; 3]).items, content.rows());
            }
            let nothing = Vectors::new(4, vec![]).unwrap();
            let refused = |content: &Vectors| fit_quantizer(&config(method), content, &mut |_| ()).err().unwrap();
            assert!(matches!(refused(&nothing), Error::BadVectors { .. }));
            let nan = Vectors { dim: 2, data: vec![0.0, 1.0, 2.0, f32::NAN] };
            assert!(matches!(refused(&nan), Error::BadVectors { row: 1, .. }));
            let quantizer = fit(&config(method), &few);
            assert!(matches!(quantizer.encode(&zeros), Err(Error::ShapeMismatch { .. })));
            assert!(matches!(quantizer.encode(&nan), Err(Error::BadVectors { row: 1, .. })));
            let nothing = Vectors::new(12, vec![]).unwrap();
            assert_eq!(quantizer.encode(&nothing).unwrap().codes.rows(), 0);
        }
    }

    /// The last code is the nearest codeword to what the last level is given (prices aside).
    #[test]
    fn the_last_level_chooses_the_nearest() {
        let content = heaps(100);
        for method in METHODS {
            let quantizer = fit(&config(method), &content);
            let Some(last) = quantizer.last_level(&content).unwrap() else {
                assert!(matches!(method, Method::HierarchicalKmeans | Method::Lsh | Method::Random));
                continue;
            };
            let codes = quantizer.encode(&content).unwrap().codes;
            let distance = |i: usize, code: usize| {
                let pair = last.residuals[i * last.dim..].iter().zip(&last.codewords[code * last.dim..]);
                pair.take(last.dim).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
            };
            for i in (0..100).filter(|_| method != Method::Balanced) {
                let best = (0..16).map(|code| distance(i, code)).fold(f32::INFINITY, f32::min);
                assert!(distance(i, usize::from(codes.row(i)[2])) <= best + 1e-4, "{method:?} {i}");
            }
        }
    }

    #[test]
    fn an_item_alone_has_the_same_codes() {
        let content = heaps(300);
        for method in METHODS {
            let quantizer = fit(&config(method), &content);
            let all = quantizer.encode(&content).unwrap();
            for i in [0, 17, 255, 256, 299] {
                let alone = quantizer.encode(&Vectors::new(12, content.row(i).to_vec()).unwrap()).unwrap();
                assert_eq!(alone.codes.row(0), all.codes.row(i));
            }
        }
    }

    #[test]
    fn every_option_of_the_rqvae_changes_something() {
        let content = heaps(200);
        let codes = |options: &str| {
            let base = config(Method::RqVae);
            let mut json = serde_json::to_value(&base.rqvae).unwrap();
            let options: serde_json::Value = serde_json::from_str(options).unwrap();
            options.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
            let config = QuantizerConfig { rqvae: serde_json::from_value(json).unwrap(), ..base };
            let quantizer = fit(&config, &content);
            let encoded = quantizer.encode(&content).unwrap();
            assert!(encoded.relative_error(&content).is_finite(), "{options}");
            encoded.reconstruction.data
        };
        let base = codes("{}");
        for options in [
            r#"{"estimator":"rotation-trick"}"#,
            r#"{"codebook_update":"gradient"}"#,
            r#"{"estimator":{"gumbel-softmax":{"temperature":0.5}},"codebook_update":"gradient"}"#,
            r#"{"sinkhorn_epsilon":0.01}"#,
            r#"{"sinkhorn_epsilon":0.01,"sinkhorn_all_levels":true}"#,
            r#"{"beta":1.0}"#,
            r#"{"decay":0.5}"#,
            r#"{"hidden":[24]}"#,
            r#"{"latent_dim":6}"#,
            r#"{"epochs":30}"#,
            r#"{"min_steps":140}"#,
            r#"{"batch_size":50}"#,
            r#"{"learning_rate":0.002}"#,
            r#"{"weight_decay":1.0}"#,
        ] {
            assert_ne!(base, codes(options), "{options}");
        }
    }

    #[test]
    fn quantisers_keep_what_the_content_says() {
        let content = heaps(400);
        let error = |method| fit(&config(method), &content).encode(&content).unwrap().relative_error(&content);
        assert!(error(Method::ResidualKmeans) < 0.05);
        assert!(error(Method::Balanced) < 0.1);
        assert!(error(Method::HierarchicalKmeans) < 0.1);
        assert!(error(Method::Opq) < 0.2);
        assert!(error(Method::Lsh) < 0.9);
        assert!(error(Method::RqVae) < 0.5);
        assert!((error(Method::Random) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn names_and_limits() {
        for (method, name) in METHODS.into_iter().zip(NAMES) {
            assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{name}\""));
            assert_eq!(fit(&config(method), &heaps(40)).method(), name);
        }
        let refuse = |json: &str| serde_json::from_str::<QuantizerConfig>(json).map_or(true, |c| c.validate().is_err());
        for json in [
            r#"{"levels":0}"#,
            r#"{"levels":9}"#,
            r#"{"codebook_size":0}"#,
            r#"{"typo":1}"#,
            r#"{"rqvae":{"hidden":[0]}}"#,
            r#"{"rqvae":{"learning_rate":0}}"#,
            r#"{"rkmeans":{"tolerance":2}}"#,
            r#"{"rqvae":{"sinkhorn_epsilon":-1}}"#,
            r#"{"rqvae":{"estimator":{"gumbel-softmax":{"temperature":1}}}}"#,
            r#"{"rqvae":{"codebook_update":"gradient","estimator":{"gumbel-softmax":{"temperature":0}}}}"#,
            r#"{"hkmeans":{"leaf_size":0}}"#,
            r#"{"method":"lsh","codebook_size":10}"#,
        ] {
            assert!(refuse(json), "{json}");
        }
        assert!(!refuse(r#"{"levels":4,"method":"rkmeans"}"#));
    }
}
