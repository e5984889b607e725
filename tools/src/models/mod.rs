//! Every trainable model by name: how it is built, trained and asked.

mod config;

pub use config::{MODELS, ModelConfig, RunConfig};

use crate::error::{Fault, fault};
use crate::gpu::{self, DeviceChoice};
use anyhow::{Result, anyhow};
use beam::Trie;
use beam::cuda::{Device, Numbers};
use rqvae::{ItemIdx, Mode, SeededRng, StepKeys};
use seqmodel::cuda::{DeviceBatch, DeviceGenerator, DeviceLearner, DeviceSamples, DeviceTrainer, DeviceWindows};
use seqmodel::data::{Window, windows};
use seqmodel::dense::{SasRec, SasRecRetriever, TwoTower, TwoTowerRetriever};
use seqmodel::hybrid::{Hybrid, HybridConfig, HybridRetriever};
use seqmodel::nn::Parameters;
use seqmodel::retrieve::Retriever;
use seqmodel::rqt::{PackedRqt, Rqt, RqtConfig};
use seqmodel::tiger::{PackedTiger, Sample, Tiger, samples};
use seqmodel::train::{Engine, EpochRecord, Identity, Objective, Outcome, Prepared, TrainConfig, Trainer, Validation};
use seqmodel::{Generative, ItemFeatures, LeaveOneOut, Precision, SampleObjective, Split, WindowObjective};
use std::sync::Arc;

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
    asking: Asking,
    device: Option<Arc<dyn Device>>,
}

/// How a model is asked, beside what it was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Asking {
    /// Weight of the dense head in the search where it is not the configured one.
    pub guide: Option<f32>,
    /// Share of all places for new items where it is not the configured one.
    pub new_share: Option<f64>,
    /// How the search keeps the weights of its decoder.
    pub weights: Precision,
    /// Histories whose encoding is kept for the next time they are asked for; on a GPU none is.
    pub history_cache: usize,
    /// Where it computes.
    pub device: DeviceChoice,
}

enum TrainingData {
    Windows(Vec<Window>),
    Samples(Vec<Sample>),
}

/// What training reports while it runs.
pub trait Observer {
    /// After a step: steps done in this epoch, steps per epoch, loss.
    fn step(&mut self, done: u64, of: u64, loss: f64);
    /// After an epoch, whole or cut by the time limit.
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
        Ok(Self { config: config.clone(), network, params, asking: Asking::default(), device: None })
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
        match self.generative(trie, width)? {
            Some(generative) => Ok(Box::new(generative)),
            None => Err(anyhow!("model `{}` has no way to be asked", self.config.name())),
        }
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
            Network::Hybrid(hybrid) => match self.search(trie, width)? {
                Some(search) => Some(Box::new(HybridRetriever::new(hybrid, search, tie_hash, self.asking.new_share)?)),
                None => None,
            },
            Network::Rqt(_) | Network::Tiger(_) | Network::Sasrec(_) => None,
        })
    }

    /// The model as a search and nothing more, where it is one: packed weights of now.
    pub fn generative(&self, trie: &Trie, width: usize) -> Result<Option<Generative>> {
        if matches!(self.network, Network::Hybrid(_)) { Ok(None) } else { self.search(trie, width) }
    }

    /// The search of what generates, of a hybrid its generative part.
    fn search(&self, trie: &Trie, width: usize) -> Result<Option<Generative>> {
        let Asking { weights, history_cache, .. } = self.asking;
        let of_rqt = |rqt: &Rqt| -> Result<Generative> {
            Ok(match &self.device {
                None => Generative::new(PackedRqt::stored_as(rqt, weights)?.keeping(history_cache), trie, width),
                Some(device) => {
                    Generative::new(DeviceGenerator::rqt(PackedRqt::new(rqt)?, device, Numbers::Bf16)?, trie, width)
                }
            })
        };
        let generative = match (&self.network, &self.device) {
            (Network::Rqt(rqt), _) => of_rqt(rqt)?,
            (Network::Hybrid(hybrid), _) => of_rqt(hybrid.rqt())?,
            (Network::Tiger(tiger), None) => {
                let packed = PackedTiger::stored_as(tiger, weights)?.keeping(history_cache);
                Generative::new(packed.parted(rayon::current_num_threads()), trie, width)
            }
            (Network::Tiger(tiger), Some(device)) => {
                Generative::new(DeviceGenerator::tiger(PackedTiger::new(tiger)?, device, Numbers::Bf16)?, trie, width)
            }
            (Network::Sasrec(_) | Network::TwoTower(_), _) => return Ok(None),
        };
        Ok(Some(match self.asking.guide {
            Some(weight) => generative.with_guide(weight),
            None => generative,
        }))
    }

    /// What is asked in validation: the retriever, or where it remembers things beside what it learns, the part that learns.
    pub fn learner<'a>(&'a self, trie: &Trie, width: usize, tie_hash: &[u64]) -> Result<Box<dyn Retriever + 'a>> {
        if let Network::Hybrid(_) = &self.network
            && let Some(generative) = self.search(trie, width)?
        {
            return Ok(Box::new(generative));
        }
        self.retriever(trie, width, tie_hash)
    }

    /// Counts `histories`, where the model remembers any: what is known when it is asked, which may be more than it was
    /// trained on.
    pub fn remember(&self, histories: &[&[ItemIdx]], seed: u64) -> Result<()> {
        match &self.network {
            Network::Hybrid(hybrid) => Ok(hybrid.count(histories, seed)?),
            _ => Ok(()),
        }
    }

    /// Asked as `asking` says.
    ///
    /// # Errors
    /// A share that is none, something that this kind of model does not have, or no such device.
    pub fn asked(mut self, asking: Asking) -> Result<Self> {
        if let Some(guide) = asking.guide {
            let checked = match &self.config {
                ModelConfig::Rqt(config) => RqtConfig { guide, ..config.clone() }.validate().map_err(Into::into),
                ModelConfig::Hybrid(HybridConfig { rqt, .. }) => {
                    RqtConfig { guide, ..rqt.clone() }.validate().map_err(Into::into)
                }
                _ if guide == 0.0 => Ok(()),
                other => Err(anyhow!("model `{}` has no dense head to guide its search", other.name())),
            };
            checked.map_err(|e| fault(Fault::Usage, format!("--guide {guide}: {e:#}")))?;
        }
        if let Some(new_share) = asking.new_share {
            let checked = match &self.config {
                ModelConfig::Hybrid(config) => {
                    HybridConfig { new_share, ..config.clone() }.validate().map_err(Into::into)
                }
                other => Err(anyhow!("model `{}` keeps no places for new items; train a hybrid", other.name())),
            };
            checked.map_err(|e| fault(Fault::Usage, format!("--new-share {new_share}: {e:#}")))?;
        }
        if asking.history_cache > 0 && matches!(self.network, Network::Sasrec(_) | Network::TwoTower(_)) {
            let reason =
                format!("--history-cache: model `{}` keeps no histories; rqt, tiger and hybrid do", self.config.name());
            return Err(fault(Fault::Usage, reason));
        }
        self.device = gpu::device(asking.device)?;
        self.asking = asking;
        Ok(self)
    }

    /// Asked the way `other` is, a model of the same configuration.
    #[must_use]
    pub fn asked_like(mut self, other: &Self) -> Self {
        self.asking = other.asking;
        self.device.clone_from(&other.device);
        self
    }

    /// What it generates on, `None` for the processor.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref()
    }

    /// Trained and validated on `device`, where there is one and the model can be.
    #[must_use]
    pub fn on(mut self, device: Option<Arc<dyn Device>>) -> Self {
        self.device = device.filter(|_| trains_on_a_device(self.config.name()));
        self
    }

    /// The model as a device trains it, and its batches.
    fn on_device<'a>(
        &'a self,
        data: &'a TrainingData,
    ) -> Option<(DeviceLearner<'a>, Box<dyn Objective<DeviceBatch> + 'a>)> {
        Some(match (&self.network, data) {
            (Network::Tiger(model), TrainingData::Samples(samples)) => {
                (DeviceLearner::Tiger(model), Box::new(DeviceSamples { model, samples }))
            }
            (Network::Rqt(model), TrainingData::Windows(windows)) => {
                (DeviceLearner::Rqt(model), Box::new(DeviceWindows { model, windows }))
            }
            (Network::Hybrid(hybrid), TrainingData::Windows(windows)) => {
                (DeviceLearner::Hybrid(hybrid), Box::new(DeviceWindows { model: hybrid.rqt(), windows }))
            }
            _ => return None,
        })
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
        self.remember(&split.known(Split::Test), config.seed)?;
        let data = match &self.network {
            Network::Rqt(rqt) => TrainingData::Windows(windows(split, rqt.config().history_cap)),
            Network::Tiger(tiger) => TrainingData::Samples(samples(split, tiger.config().history_cap)),
            Network::Sasrec(sasrec) => TrainingData::Windows(windows(split, sasrec.config().history_cap)),
            Network::TwoTower(towers) => TrainingData::Windows(windows(split, towers.config().history_cap)),
            Network::Hybrid(hybrid) => TrainingData::Windows(windows(split, hybrid.config().rqt.history_cap)),
        };
        let objective: Box<dyn Objective<Prepared<'_>> + '_> = match (&self.network, &data) {
            (Network::Rqt(model), TrainingData::Windows(windows)) => Box::new(WindowObjective { model, windows }),
            (Network::Sasrec(model), TrainingData::Windows(windows)) => Box::new(WindowObjective { model, windows }),
            (Network::Tiger(model), TrainingData::Samples(samples)) => Box::new(SampleObjective { model, samples }),
            (Network::TwoTower(model), TrainingData::Windows(windows)) => Box::new(WindowObjective { model, windows }),
            (Network::Hybrid(model), TrainingData::Windows(windows)) => {
                Box::new(WindowObjective { model: &**model, windows })
            }
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
        let mut validate = || validate(self).map_err(keep);
        let mut step = |done, of, loss| observer.borrow_mut().step(done, of, loss);
        let mut epoch = |record: &EpochRecord| observer.borrow_mut().epoch(record).map_err(keep);
        let outcome = match self.device.as_ref().zip(self.on_device(&data)) {
            None => trainer.run(objective.as_ref(), resume, &mut validate, &mut step, &mut epoch, interrupted),
            Some((device, (model, batches))) => {
                let (adamw, ema) = (config.adamw(), config.ema_decay);
                let engine = || DeviceTrainer::new(device, Numbers::Bf16, model, &self.params, adamw, ema);
                agree(&mut engine()?, batches.as_ref(), objective.as_ref())?;
                let (mut engine, batches) = (engine()?, batches.as_ref());
                trainer.run_on(&mut engine, batches, resume, &mut validate, &mut step, &mut epoch, interrupted)
            }
        };
        match failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(outcome?),
        }
    }
}

/// Whether a model of that name can be trained on a GPU; the others are trained on the processor.
pub fn trains_on_a_device(name: &str) -> bool {
    matches!(name, "tiger" | "rqt" | "hybrid")
}

/// Samples whose loss is taken on both sides before training begins on a device.
const COMPARED: u32 = 16;

/// How far the two losses may be apart, as a share: products of eight bits on one side.
const APART: f64 = 0.05;

/// Refuses a device that does not compute what the processor does: a first batch, before anything is learned from it.
fn agree(
    engine: &mut DeviceTrainer,
    batches: &dyn Objective<DeviceBatch>,
    objective: &dyn Objective<Prepared<'_>>,
) -> Result<()> {
    let rows: Vec<u32> = (0..COMPARED.min(batches.lengths().len() as u32)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let keys = || StepKeys::new(&SeededRng::new(0), 0);
    let found = engine.gradients(vec![(1.0, batches.prepare(&rows)?)], &keys())?;
    let expected = f64::from(objective.prepare(&rows)?(Mode::Train(&keys()))?.to_scalar::<f32>()?);
    // The other way round it would not see a loss that is no number.
    if (found - expected).abs() <= APART * expected.abs() {
        return Ok(());
    }
    let reason =
        format!("the device's loss of the first {} samples is {found:.4}, the processor's {expected:.4}", rows.len());
    Err(fault(Fault::Usage, format!("{reason}: not trained; --device cpu trains on the processor")))
}
