//! Every trainable model by name: its configuration, how it is built, trained and asked.

use anyhow::Result;
use beam::Trie;
use beam::cuda::{Device, Numbers};
use rqvae::{Decay, ItemIdx};
use seqmodel::cuda::DeviceGenerator;
use seqmodel::data::{Window, windows};
use seqmodel::dense::{SasRec, SasRecConfig, SasRecLoss, SasRecRetriever, TwoTower, TwoTowerConfig, TwoTowerRetriever};
use seqmodel::hybrid::{Hybrid, HybridConfig, HybridRetriever};
use seqmodel::nn::Parameters;
use seqmodel::retrieve::Retriever;
use seqmodel::rqt::{PackedRqt, Rqt, RqtConfig};
use seqmodel::tiger::{PackedTiger, Sample, Tiger, TigerConfig, samples};
use seqmodel::train::{EpochRecord, Identity, Outcome, TrainConfig, Trainer, Validation};
use seqmodel::{
    Generative, HybridObjective, ItemFeatures, LeaveOneOut, Precision, RqtObjective, SasRecObjective, TigerObjective,
    TwoTowerObjective,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A model and its numbers; `kind` is the name on the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelConfig {
    /// RQ-Transformer over items.
    Rqt(RqtConfig),
    /// TIGER's encoder-decoder.
    Tiger(TigerConfig),
    /// `SASRec` with full-softmax cross-entropy.
    Sasrec(SasRecConfig),
    /// A tower for histories and one for items, with sampled softmax.
    TwoTower(TwoTowerConfig),
    /// The RQ-Transformer beside a memory, with places for new items.
    Hybrid(HybridConfig),
}

/// All that a training run is configured by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The model.
    pub model: ModelConfig,
    /// The trainer.
    pub train: TrainConfig,
}

/// Names that `--model` takes.
pub const MODELS: [&str; 5] = ["rqt", "tiger", "sasrec", "two-tower", "hybrid"];

/// What the presets of `rqt` share: item embeddings beside codes and content, codes that compete among valid
/// continuations, and a dense head that guides the search.
fn guided() -> RqtConfig {
    RqtConfig {
        dim: 64,
        heads: 2,
        hidden: 256,
        dropout: 0.5,
        item_embedding: true,
        item_dropout: 0.0,
        valid_only: true,
        dense_weight: 1.0,
        dense_negatives: 2048,
        guide: 0.9,
        ..RqtConfig::default()
    }
}

/// What the presets of `rqt` and `sasrec` share: many small steps at one learning rate. With 256 windows a batch and a
/// rate that fell to nothing the same models stopped half-trained.
fn steady() -> TrainConfig {
    TrainConfig {
        batch_size: 128,
        decay: Decay::Constant,
        weight_decay: 0.0,
        eval_users: 5000,
        ..TrainConfig::default()
    }
}

impl RunConfig {
    /// The defaults of `model`, or of one of its named presets.
    ///
    /// # Errors
    /// When there is no such model or preset; the message lists those that exist.
    pub fn preset(model: &str, preset: &str) -> Result<Self> {
        let train = TrainConfig::default();
        let config = match (model, preset) {
            ("rqt", "default") => Self {
                model: ModelConfig::Rqt(guided()),
                train: TrainConfig { max_epochs: 40, eval_every: 4, patience: 2, ..steady() },
            },
            ("rqt", "demo") => Self {
                model: ModelConfig::Rqt(guided()),
                train: TrainConfig {
                    batch_size: 128,
                    learning_rate: 2e-3,
                    warmup_steps: 100,
                    max_epochs: 20,
                    eval_users: 2000,
                    ..train
                },
            },
            ("sasrec", "demo") => Self {
                model: ModelConfig::Sasrec(SasRecConfig::default()),
                train: TrainConfig { batch_size: 128, learning_rate: 2e-3, max_epochs: 40, eval_users: 2000, ..train },
            },
            ("rqt", "quick") => Self {
                model: ModelConfig::Rqt(RqtConfig { head_dim: 16, dropout: 0.3, ..guided() }),
                train: TrainConfig {
                    learning_rate: 3e-3,
                    warmup_steps: 5,
                    max_epochs: 6,
                    eval_every: 2,
                    eval_users: 500,
                    ..train
                },
            },
            ("tiger", "paper" | "default") => Self {
                model: ModelConfig::Tiger(TigerConfig::default()),
                train: TrainConfig { decay: Decay::InverseSqrt, warmup_steps: 1000, weight_decay: 0.01, ..train },
            },
            ("tiger", "grid") => Self {
                model: ModelConfig::Tiger(TigerConfig { separator: true, dropout: 0.15, ..TigerConfig::default() }),
                train: TrainConfig { decay: Decay::Constant, weight_decay: 1e-4, ..train },
            },
            ("tiger", "quick") => Self {
                model: ModelConfig::Tiger(TigerConfig {
                    dim: 64,
                    heads: 2,
                    head_dim: 32,
                    hidden: 128,
                    encoder_layers: 1,
                    decoder_layers: 1,
                    ..TigerConfig::default()
                }),
                train: TrainConfig { max_epochs: 2, eval_every: 1, eval_users: 500, ..train },
            },
            ("sasrec", "default") => Self {
                model: ModelConfig::Sasrec(SasRecConfig {
                    dropout: 0.5,
                    loss: SasRecLoss::SampledSoftmax { negatives: 2048 },
                    ..SasRecConfig::default()
                }),
                train: TrainConfig { max_epochs: 32, eval_every: 4, patience: 3, ..steady() },
            },
            ("sasrec", "quick") => Self {
                model: ModelConfig::Sasrec(SasRecConfig { dim: 32, ..SasRecConfig::default() }),
                train: TrainConfig {
                    learning_rate: 3e-3,
                    warmup_steps: 5,
                    max_epochs: 6,
                    eval_every: 2,
                    eval_users: 500,
                    ..train
                },
            },
            ("two-tower", "default" | "demo") => Self {
                model: ModelConfig::TwoTower(TwoTowerConfig::default()),
                train: TrainConfig { learning_rate: 2e-3, max_epochs: 20, eval_users: 2000, patience: 4, ..train },
            },
            ("two-tower", "quick") => Self {
                model: ModelConfig::TwoTower(TwoTowerConfig {
                    dim: 32,
                    uniform_negatives: 256,
                    ..TwoTowerConfig::default()
                }),
                train: TrainConfig {
                    learning_rate: 3e-3,
                    warmup_steps: 5,
                    max_epochs: 6,
                    eval_every: 2,
                    eval_users: 500,
                    ..train
                },
            },
            ("hybrid", preset @ ("default" | "demo" | "quick")) => {
                let Self { model: ModelConfig::Rqt(rqt), train } = Self::preset("rqt", preset)? else {
                    anyhow::bail!("preset `{preset}` of rqt is of another model")
                };
                Self { model: ModelConfig::Hybrid(HybridConfig { rqt, ..HybridConfig::default() }), train }
            }
            (name, other) if MODELS.contains(&name) => {
                let presets = if name == "tiger" { "paper, grid, quick" } else { "default, demo, quick" };
                anyhow::bail!("model `{name}` has no preset `{other}`; presets: {presets}")
            }
            (other, _) => anyhow::bail!("no model `{other}`; models: {}", MODELS.join(", ")),
        };
        Ok(config)
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<()> {
        match &self.model {
            ModelConfig::Rqt(config) => config.validate()?,
            ModelConfig::Tiger(config) => config.validate()?,
            ModelConfig::Sasrec(config) => config.validate()?,
            ModelConfig::TwoTower(config) => config.validate()?,
            ModelConfig::Hybrid(config) => config.validate()?,
        }
        Ok(self.train.validate()?)
    }
}

impl ModelConfig {
    /// Name on the command line and in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rqt(_) => "rqt",
            Self::Tiger(_) => "tiger",
            Self::Sasrec(_) => "sasrec",
            Self::TwoTower(_) => "two-tower",
            Self::Hybrid(_) => "hybrid",
        }
    }

    /// Whether it has a dense head that guides its search.
    pub fn guides(&self) -> bool {
        matches!(self, Self::Rqt(config) if config.guide > 0.0)
    }

    /// Newest items of a history that the model reads.
    pub fn history_cap(&self) -> usize {
        match self {
            Self::Rqt(config) => config.history_cap,
            Self::Tiger(config) => config.history_cap,
            Self::Sasrec(config) => config.history_cap,
            Self::TwoTower(config) => config.history_cap,
            Self::Hybrid(config) => config.rqt.history_cap,
        }
    }
}

enum Network {
    Rqt(Rqt),
    Tiger(Tiger),
    Sasrec(SasRec),
    TwoTower(TwoTower),
    Hybrid(Box<Hybrid>),
}

/// A model with its parameters.
pub struct Model {
    config: ModelConfig,
    network: Network,
    params: Parameters,
    guide: Option<f32>,
    new_share: Option<f64>,
    device: Option<Arc<dyn Device>>,
    weights: Precision,
}

enum TrainingData {
    Windows(Vec<Window>),
    Samples(Vec<Sample>),
}

/// What training reports while it runs.
pub trait Observer {
    /// After a step: steps done in this epoch, steps per epoch, loss.
    fn step(&mut self, done: u64, of: u64, loss: f64);
    /// After an epoch.
    fn epoch(&mut self, record: &EpochRecord) -> Result<()>;
}

impl Model {
    /// A model over `features` with parameters drawn from `seed`.
    pub fn new(config: &ModelConfig, features: &ItemFeatures, seed: u64) -> Result<Self> {
        let params = Parameters::new(seed);
        let vb = params.builder();
        let network = match config {
            ModelConfig::Rqt(config) => Network::Rqt(Rqt::new(config, features.clone(), &vb)?),
            ModelConfig::Tiger(config) => Network::Tiger(Tiger::new(config, features.clone(), &vb)?),
            ModelConfig::Sasrec(config) => Network::Sasrec(SasRec::new(config, features.len(), &vb)?),
            ModelConfig::TwoTower(config) => Network::TwoTower(TwoTower::new(config, features.clone(), &vb)?),
            ModelConfig::Hybrid(config) => Network::Hybrid(Box::new(Hybrid::new(config, features.clone(), &vb)?)),
        };
        Ok(Self {
            config: config.clone(),
            network,
            params,
            guide: None,
            new_share: None,
            device: None,
            weights: Precision::F32,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its parameters.
    pub fn params(&self) -> &Parameters {
        &self.params
    }

    /// How it is asked, with the weights of now: beams of `width` over `trie` where it generates, all items at once
    /// where it does not.
    pub fn retriever<'a>(&'a self, trie: &Trie, width: usize, tie_hash: &[u64]) -> Result<Box<dyn Retriever + 'a>> {
        if let Network::Sasrec(sasrec) = &self.network {
            return Ok(Box::new(SasRecRetriever::new(sasrec, Arc::from(tie_hash))));
        }
        if let Some(packed) = self.packed_retriever(trie, width, tie_hash)? {
            return Ok(packed);
        }
        let Some(generative) = self.generative(trie, width)? else { unreachable!("all others generate") };
        Ok(Box::new(generative))
    }

    /// For models that make something of the whole catalogue before they answer: a retriever that owns it, to be kept.
    pub fn packed_retriever(
        &self,
        trie: &Trie,
        width: usize,
        tie_hash: &[u64],
    ) -> Result<Option<Box<dyn Retriever + Send>>> {
        Ok(match &self.network {
            Network::TwoTower(towers) => Some(Box::new(TwoTowerRetriever::new(towers, tie_hash)?)),
            Network::Hybrid(hybrid) => {
                Some(Box::new(HybridRetriever::new(hybrid, trie, width, tie_hash, self.new_share)?))
            }
            Network::Rqt(_) | Network::Tiger(_) | Network::Sasrec(_) => None,
        })
    }

    /// Gives new items another share of all places than the configured one, where one is given.
    ///
    /// # Errors
    /// The share is none, or the model has no places for new items.
    pub fn with_new_share(mut self, share: Option<f64>) -> Result<Self> {
        if let Some(new_share) = share {
            match &self.config {
                ModelConfig::Hybrid(config) => HybridConfig { new_share, ..config.clone() }.validate()?,
                other => anyhow::bail!("model `{}` keeps no places for new items; train a hybrid", other.name()),
            }
        }
        self.new_share = share;
        Ok(self)
    }

    /// The generative face, where it has one: packed weights of now.
    pub fn generative(&self, trie: &Trie, width: usize) -> Result<Option<Generative>> {
        let generative = match (&self.network, &self.device) {
            (Network::Rqt(rqt), None) => Generative::new(PackedRqt::stored_as(rqt, self.weights)?, trie, width),
            (Network::Tiger(tiger), None) => Generative::new(PackedTiger::stored_as(tiger, self.weights)?, trie, width),
            (Network::Rqt(rqt), Some(device)) => {
                Generative::new(DeviceGenerator::rqt(PackedRqt::new(rqt)?, device, Numbers::Bf16)?, trie, width)
            }
            (Network::Tiger(tiger), Some(device)) => {
                Generative::new(DeviceGenerator::tiger(PackedTiger::new(tiger)?, device, Numbers::Bf16)?, trie, width)
            }
            (Network::Sasrec(_) | Network::TwoTower(_) | Network::Hybrid(_), _) => return Ok(None),
        };
        Ok(Some(match self.guide {
            Some(weight) => generative.with_guide(weight),
            None => generative,
        }))
    }

    /// Searches with packed weights of this precision; training keeps its own.
    #[must_use]
    pub fn with_weights(mut self, weights: Precision) -> Self {
        self.weights = weights;
        self
    }

    /// Searches with another weight of guidance than the configured one, where one is given.
    ///
    /// # Errors
    /// The weight is no share, or the model has no dense head to guide with.
    pub fn with_guide(mut self, weight: Option<f32>) -> Result<Self> {
        if let Some(weight) = weight {
            match &self.config {
                ModelConfig::Rqt(config) => RqtConfig { guide: weight, ..config.clone() }.validate()?,
                _ if weight == 0.0 => {}
                other => {
                    anyhow::bail!("guide {weight}: model `{}` has no dense head to guide its search", other.name())
                }
            }
            self.guide = Some(weight);
        }
        Ok(self)
    }

    /// Generates on `device`, where there is one.
    #[must_use]
    pub fn on(mut self, device: Option<Arc<dyn Device>>) -> Self {
        self.device = device;
        self
    }

    /// What it generates on, `None` for the processor.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref()
    }

    /// Trains on `split`; at the end the parameters are the best ones unless it was interrupted.
    #[expect(clippy::too_many_arguments, reason = "one call per run; each argument is a thing of its own")]
    pub fn train(
        &self,
        config: &TrainConfig,
        split: &LeaveOneOut,
        identity: Identity,
        output: Option<(&rqvae::CheckpointDir, String)>,
        resume: bool,
        validate: &mut dyn FnMut(&Self) -> Result<Validation>,
        observer: &mut dyn Observer,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        if let Network::Hybrid(hybrid) = &self.network {
            let known: Vec<&[ItemIdx]> = (0..split.users()).map(|user| split.train(user)).collect();
            hybrid.count(&known, config.seed)?;
        }
        let data = match &self.network {
            Network::Rqt(rqt) => TrainingData::Windows(windows(split, rqt.config().history_cap)),
            Network::Tiger(tiger) => TrainingData::Samples(samples(split, tiger.config().history_cap)),
            Network::Sasrec(sasrec) => TrainingData::Windows(windows(split, sasrec.config().history_cap)),
            Network::TwoTower(towers) => TrainingData::Windows(windows(split, towers.config().history_cap)),
            Network::Hybrid(hybrid) => TrainingData::Windows(windows(split, hybrid.config().rqt.history_cap)),
        };
        let objective: Box<dyn seqmodel::train::Objective + '_> = match (&self.network, &data) {
            (Network::Rqt(model), TrainingData::Windows(windows)) => Box::new(RqtObjective { model, windows }),
            (Network::Sasrec(model), TrainingData::Windows(windows)) => Box::new(SasRecObjective { model, windows }),
            (Network::Tiger(model), TrainingData::Samples(samples)) => Box::new(TigerObjective { model, samples }),
            (Network::TwoTower(model), TrainingData::Windows(windows)) => {
                Box::new(TwoTowerObjective { model, windows })
            }
            (Network::Hybrid(model), TrainingData::Windows(windows)) => Box::new(HybridObjective { model, windows }),
            _ => anyhow::bail!("model and training data do not belong together"),
        };
        let mut trainer = Trainer::new(config, &self.params, identity);
        if let Some((dir, toml)) = output {
            trainer = trainer.with_checkpoints(dir, toml);
        }
        // The trainer speaks the floor's errors; ours travel around it.
        let failure = std::cell::RefCell::new(None);
        let observer = std::cell::RefCell::new(observer);
        let keep = |error: anyhow::Error| {
            let short = seqmodel::Error::Mismatch {
                what: "callback".into(),
                expected: "success".into(),
                found: error.to_string(),
            };
            *failure.borrow_mut() = Some(error);
            short
        };
        let outcome = trainer.run(
            objective.as_ref(),
            resume,
            &mut || validate(self).map_err(keep),
            &mut |done, of, loss| observer.borrow_mut().step(done, of, loss),
            &mut |record| observer.borrow_mut().epoch(record).map_err(keep),
            interrupted,
        );
        match failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(outcome?),
        }
    }
}
