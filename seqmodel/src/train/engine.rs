//! Who takes the steps of a run: candle's operations on the processor, or a device.

use super::TrainConfig;
use super::average::Average;
use super::trainer::Prepared;
use crate::nn::Parameters;
use crate::{Error, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use rqvae::{AdamW, Mode, StepKeys};
use std::collections::{BTreeMap, HashMap};

/// Gradients and updates of the parameters of a model, batches of kind `B`.
pub trait Engine<B> {
    /// Loss of a batch, and its gradients for [`Engine::update`]. The batch comes in parts, each with its share of the
    /// targets.
    fn gradients(&mut self, parts: Vec<(f64, B)>, keys: &StepKeys) -> Result<f64>;

    /// A step of the optimiser by the last gradients, the `step`-th counted from 0, and of the running average; returns the
    /// gradient norm before clipping.
    ///
    /// # Errors
    /// [`rqvae::Error::NonFinite`] before anything is changed.
    fn update(&mut self, lr: f64, step: u64) -> Result<f64>;

    /// The weights that are trained on.
    fn weights(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Their running average, where the run has one.
    fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>>;

    /// Moments of the optimiser, as [`AdamW::state`] names them.
    fn moments(&self) -> Result<HashMap<String, Tensor>>;

    /// Goes on after `steps` steps.
    fn restore(
        &mut self,
        weights: &HashMap<String, Tensor>,
        average: Option<&HashMap<String, Tensor>>,
        moments: &HashMap<String, Tensor>,
        steps: u64,
    ) -> Result<()>;

    /// Puts the weights to be used into the model's parameters: the average, where there is one.
    fn show(&mut self) -> Result<()>;

    /// Takes them back, so that training can go on.
    fn hide(&mut self) -> Result<()>;
}

/// Candle's operations on the processor, in place on the model's own parameters.
pub(super) struct HostEngine<'a> {
    params: &'a Parameters,
    optim: AdamW,
    average: Option<Average>,
    grads: Option<GradStore>,
    /// The weights to train on, while others are shown.
    hidden: Option<HashMap<String, Tensor>>,
}

impl<'a> HostEngine<'a> {
    pub(super) fn new(config: &TrainConfig, params: &'a Parameters) -> Result<Self> {
        let optim = AdamW::new(params.all(), config.adamw());
        Ok(Self { params, optim, average: Average::new(config.ema_decay, params)?, grads: None, hidden: None })
    }
}

impl<'p> Engine<Prepared<'p>> for HostEngine<'_> {
    fn gradients(&mut self, parts: Vec<(f64, Prepared<'p>)>, keys: &StepKeys) -> Result<f64> {
        let (mut sum, mut total) = (0.0, None::<GradStore>);
        self.grads = None;
        for (share, loss) in parts {
            let mut loss = loss(Mode::Train(keys))?;
            if share < 1.0 {
                loss = (loss * share)?;
            }
            let value = f64::from(loss.to_scalar::<f32>()?);
            sum += value;
            if !value.is_finite() {
                return Ok(sum);
            }
            let mut grads = loss.backward()?;
            if let Some(total) = total {
                for var in self.params.all().values() {
                    if let Some(before) = total.get(var) {
                        let both = match grads.remove(var) {
                            Some(new) => (before + new)?,
                            None => before.clone(),
                        };
                        grads.insert(var, both);
                    }
                }
            }
            total = Some(grads);
        }
        self.grads = total;
        Ok(sum)
    }

    fn update(&mut self, lr: f64, step: u64) -> Result<f64> {
        let grads = self.grads.take().ok_or(Error::NoData { what: "gradients" })?;
        let norm = self.optim.step(&grads, lr)?;
        if let Some(average) = &mut self.average {
            average.update(self.params, step)?;
        }
        Ok(norm)
    }

    fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        match &self.hidden {
            Some(hidden) => Ok(hidden.clone().into_iter().collect()),
            None => self.params.snapshot(),
        }
    }

    fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        Ok(self.average.as_ref().map(|average| average.weights.clone()))
    }

    fn moments(&self) -> Result<HashMap<String, Tensor>> {
        Ok(self.optim.state()?)
    }

    fn restore(
        &mut self,
        weights: &HashMap<String, Tensor>,
        average: Option<&HashMap<String, Tensor>>,
        moments: &HashMap<String, Tensor>,
        steps: u64,
    ) -> Result<()> {
        self.params.assign(weights)?;
        if let Some((own, saved)) = self.average.as_mut().zip(average) {
            own.weights = saved.clone().into_iter().collect();
        }
        Ok(self.optim.restore(moments, steps)?)
    }

    fn show(&mut self) -> Result<()> {
        self.hidden = self.average.as_ref().map(|average| average.swap_in(self.params)).transpose()?;
        Ok(())
    }

    fn hide(&mut self) -> Result<()> {
        match self.hidden.take() {
            Some(hidden) => self.params.assign(&hidden),
            None => Ok(()),
        }
    }
}
