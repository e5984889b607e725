//! What a model is made of and trained by: configurations and their named presets.

use anyhow::Result;
use rqvae::Decay;
use seqmodel::dense::{SasRecConfig, SasRecLoss, TwoTowerConfig};
use seqmodel::hybrid::HybridConfig;
use seqmodel::rqt::RqtConfig;
use seqmodel::tiger::TigerConfig;
use seqmodel::train::TrainConfig;
use serde::{Deserialize, Serialize};

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
        code_weight: 0.1,
        dense_weight: 1.0,
        dense_negatives: 2048,
        guide: 0.9,
        ..RqtConfig::default()
    }
}

/// What the presets of `rqt` and `sasrec` share: many small steps at one learning rate, their weights averaged. With 256
/// windows a batch and a rate that fell to nothing the same models stopped half-trained.
fn steady() -> TrainConfig {
    TrainConfig {
        batch_size: 128,
        decay: Decay::Constant,
        weight_decay: 0.0,
        ema_decay: 0.995,
        eval_every: 4,
        patience: 3,
        eval_users: 5000,
        ..TrainConfig::default()
    }
}

/// What most presets called `demo` share: a small shop in minutes.
fn demo() -> TrainConfig {
    TrainConfig { batch_size: 128, learning_rate: 2e-3, eval_users: 2000, ..TrainConfig::default() }
}

/// What most presets called `quick` share: a try that everything runs, in seconds.
fn quick() -> TrainConfig {
    TrainConfig {
        learning_rate: 3e-3,
        warmup_steps: 5,
        max_epochs: 6,
        eval_every: 2,
        eval_users: 500,
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
            ("rqt", "default") => {
                Self { model: ModelConfig::Rqt(guided()), train: TrainConfig { max_epochs: 56, ..steady() } }
            }
            ("rqt", "demo") => Self {
                model: ModelConfig::Rqt(guided()),
                train: TrainConfig { warmup_steps: 100, max_epochs: 20, ..demo() },
            },
            ("sasrec", "demo") => Self {
                model: ModelConfig::Sasrec(SasRecConfig::default()),
                train: TrainConfig { max_epochs: 40, ..demo() },
            },
            ("rqt", "quick") => {
                Self { model: ModelConfig::Rqt(RqtConfig { head_dim: 16, dropout: 0.3, ..guided() }), train: quick() }
            }
            ("tiger", "paper" | "default") => Self {
                model: ModelConfig::Tiger(TigerConfig { user_tokens: 2000, ..TigerConfig::default() }),
                train: TrainConfig { decay: Decay::InverseSqrt, warmup_steps: 1000, weight_decay: 0.01, ..train },
            },
            ("tiger", "grid") => Self {
                model: ModelConfig::Tiger(TigerConfig { separator: true, dropout: 0.15, ..TigerConfig::default() }),
                train: TrainConfig { decay: Decay::Constant, weight_decay: 1e-4, ..train },
            },
            ("tiger", "demo") => Self {
                model: ModelConfig::Tiger(TigerConfig {
                    dim: 64,
                    heads: 4,
                    head_dim: 16,
                    hidden: 256,
                    encoder_layers: 2,
                    decoder_layers: 2,
                    ..TigerConfig::default()
                }),
                train: TrainConfig { warmup_steps: 100, max_epochs: 12, ..demo() },
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
                train: TrainConfig { max_epochs: 48, ..steady() },
            },
            ("sasrec", "quick") => {
                Self { model: ModelConfig::Sasrec(SasRecConfig { dim: 32, ..SasRecConfig::default() }), train: quick() }
            }
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
                train: quick(),
            },
            ("hybrid", preset @ ("default" | "demo" | "quick")) => {
                let Self { model: ModelConfig::Rqt(rqt), train } = Self::preset("rqt", preset)? else {
                    anyhow::bail!("preset `{preset}` of rqt is of another model")
                };
                Self { model: ModelConfig::Hybrid(HybridConfig { rqt, ..HybridConfig::default() }), train }
            }
            (name, other) if MODELS.contains(&name) => {
                let presets = if name == "tiger" { "paper, grid, demo, quick" } else { "default, demo, quick" };
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

    /// Whether it reads whose history it is.
    pub fn reads_users(&self) -> bool {
        matches!(self, Self::Tiger(config) if config.user_tokens > 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_tokens_are_the_papers_and_no_old_models() {
        let tokens = |config: &ModelConfig| matches!(config, ModelConfig::Tiger(config) if config.user_tokens == 2000);
        for (preset, reads) in [("paper", true), ("default", true), ("grid", false), ("demo", false), ("quick", false)]
        {
            let config = RunConfig::preset("tiger", preset).unwrap();
            config.validate().unwrap();
            let config = config.model;
            assert_eq!((tokens(&config), config.reads_users()), (reads, reads), "{preset}");
        }
        // As a checkpoint wrote it before there were any.
        let paper = toml::to_string(&RunConfig::preset("tiger", "paper").unwrap().model).unwrap();
        let old = paper.replace("user_tokens = 2000\n", "");
        assert!(old != paper && !toml::from_str::<ModelConfig>(&old).unwrap().reads_users());
    }
}
