//! Training on a device: a step as kernels, written down by a [`tape`](self) and run without asking the host in between.
//!
//! Why not candle's own CUDA build: it needs a toolkit when it is built and its libraries when it starts, and nothing of it
//! can be tried without a GPU. Here the one binary trains where it finds a driver and NVRTC, and the same kernels run on the
//! emulator against the processor's loss, gradients and steps.
//!
//! Weights, moments, activations and gradients are f32; products are taken in bfloat16 with f32 sums, or in f32.

mod block;
mod models;
mod params;
mod tape;
#[cfg(test)]
mod tests;

use crate::data::{Window, pick};
use crate::hybrid::Hybrid;
use crate::nn::Parameters;
use crate::rqt::{Rqt, RqtBatch};
use crate::tiger::{Sample, Tiger, TigerBatch};
use crate::train::{Engine, Objective, average_step};
use crate::{Error, Result};
use beam::cuda::{Device, Launch, Memory, Numbers, Program};
use candle_core::Tensor;
use models::{TapeRqt, TapeTiger};
use params::{DeviceParameters, Update, clear};
use rqvae::{AdamWConfig, Mode, StepKeys};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tape::{Rooms, Tape};

/// A model that a device can train.
#[derive(Debug, Clone, Copy)]
pub enum DeviceLearner<'a> {
    /// TIGER.
    Tiger(&'a Tiger),
    /// The RQ-Transformer.
    Rqt(&'a Rqt),
    /// The generative part of a hybrid.
    Hybrid(&'a Hybrid),
}

/// A batch for [`DeviceTrainer`].
#[derive(Debug)]
pub enum DeviceBatch {
    /// Samples for TIGER.
    Tiger(TigerBatch),
    /// Windows for an RQ-Transformer.
    Rqt(RqtBatch),
}

/// TIGER's samples as batches for a device.
pub struct DeviceSamples<'a> {
    /// The model.
    pub model: &'a Tiger,
    /// Training samples.
    pub samples: &'a [Sample],
}

impl Objective<DeviceBatch> for DeviceSamples<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.history.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.len()
    }

    fn prepare(&self, rows: &[u32]) -> Result<DeviceBatch> {
        Ok(DeviceBatch::Tiger(self.model.prepare(&pick(self.samples, rows))))
    }
}

/// Windows as batches for a device.
pub struct DeviceWindows<'a> {
    /// The model.
    pub model: &'a Rqt,
    /// Training windows.
    pub windows: &'a [Window],
}

impl Objective<DeviceBatch> for DeviceWindows<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.windows.iter().map(|window| window.items.len()).collect()
    }

    fn targets(&self, rows: &[u32]) -> usize {
        rows.iter().map(|row| self.windows[*row as usize].targets()).sum()
    }

    fn prepare(&self, rows: &[u32]) -> Result<DeviceBatch> {
        Ok(DeviceBatch::Rqt(self.model.prepare(&pick(self.windows, rows))?))
    }
}

enum Network {
    Tiger(Box<TapeTiger>),
    /// With the weight of its loss.
    Rqt(Box<TapeRqt>, f32),
}

impl Network {
    fn record(&self, tape: &mut Tape, batch: &DeviceBatch, share: f32, mode: Mode) -> Result<()> {
        match (self, batch) {
            (Self::Tiger(model), DeviceBatch::Tiger(batch)) => model.record(tape, batch, share, mode),
            // Nothing learns, not even by decay.
            (Self::Rqt(_, weight), DeviceBatch::Rqt(_)) if *weight == 0.0 => Ok(()),
            (Self::Rqt(model, weight), DeviceBatch::Rqt(batch)) => model.record(tape, batch, share * weight, mode),
            _ => Err(Error::Mismatch {
                what: "batch".into(),
                expected: "of the model's kind".into(),
                found: "of another".into(),
            }),
        }
    }
}

/// Takes the steps of a run on a device.
pub struct DeviceTrainer<'a> {
    device: Arc<dyn Device>,
    numbers: Numbers,
    network: Network,
    weights: DeviceParameters,
    /// Those of the host, which validation reads.
    params: &'a Parameters,
    config: AdamWConfig,
    ema_decay: f64,
    rooms: Vec<Memory>,
    /// Addresses of gradients that the last tape added to.
    learned: Vec<u64>,
    /// Sum of squares of each gradient, by name.
    squares: Vec<f64>,
    steps: u64,
}

impl<'a> DeviceTrainer<'a> {
    /// Copies `params`, which are those of `model`, to `device`. `ema_decay` above 0 keeps a running average.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(
        device: &Arc<dyn Device>,
        numbers: Numbers,
        model: DeviceLearner,
        params: &'a Parameters,
        config: AdamWConfig,
        ema_decay: f64,
    ) -> Result<Self> {
        let weights = DeviceParameters::new(device, params, ema_decay > 0.0)?;
        let network = match model {
            DeviceLearner::Tiger(tiger) => Network::Tiger(Box::new(TapeTiger::new(tiger, &weights)?)),
            DeviceLearner::Rqt(rqt) => Network::Rqt(Box::new(TapeRqt::new(rqt, "", &weights, device)?), 1.0),
            DeviceLearner::Hybrid(hybrid) => {
                let weight = hybrid.config().generative_weight;
                Network::Rqt(Box::new(TapeRqt::new(hybrid.rqt(), "rqt.", &weights, device)?), weight)
            }
        };
        let rooms = (0..5).map(|_| Memory::new(device, 0)).collect::<beam::Result<_>>()?;
        let (learned, squares) = (Vec::new(), Vec::new());
        let device = Arc::clone(device);
        Ok(Self { device, numbers, network, weights, params, config, ema_decay, rooms, learned, squares, steps: 0 })
    }

    /// The tape of a part of a batch, in rooms that hold it.
    fn record(&mut self, batch: &DeviceBatch, share: f32, keys: &StepKeys) -> Result<Tape> {
        loop {
            let bases: Vec<u64> = self.rooms.iter().map(Memory::address).collect();
            let mut tape = Tape::new(self.numbers, Rooms::of([bases[0], bases[1], bases[2], bases[3], bases[4]]));
            // Drawn anew where the tape must be written again.
            let drawn = keys.clone();
            self.network.record(&mut tape, batch, share, Mode::Train(&drawn))?;
            tape.squares = tape.results(self.weights.square_parts().sum()).1;
            let used = tape.rooms.used();
            if used.iter().zip(&self.rooms).all(|(used, room)| *used <= room.bytes()) {
                keys.follow(&drawn);
                return Ok(tape);
            }
            for (used, room) in used.iter().zip(&mut self.rooms) {
                if *used > room.bytes() {
                    // What was there goes first: both may not fit.
                    *room = Memory::new(&self.device, 0)?;
                    // With room for a batch that is a little larger, where there is any.
                    *room = Memory::new(&self.device, used / 4 * 5).or_else(|_| Memory::new(&self.device, *used))?;
                }
            }
        }
    }

    /// Gradients of the last batch by name.
    ///
    /// # Errors
    /// The device fails.
    pub fn grads(&self) -> Result<BTreeMap<String, Tensor>> {
        self.weights.grads()
    }

    fn run(&self, launches: Vec<Launch>) -> Result<()> {
        if launches.is_empty() {
            return Ok(());
        }
        Ok(self.device.run(&Program { numbers: self.numbers, launches })?)
    }
}

impl Engine<DeviceBatch> for DeviceTrainer<'_> {
    fn gradients(&mut self, parts: Vec<(f64, DeviceBatch)>, keys: &StepKeys) -> Result<f64> {
        let (mut loss, count) = (0.0, parts.len());
        for (at, (share, batch)) in parts.into_iter().enumerate() {
            let mut tape = self.record(&batch, share as f32, keys)?;
            if !tape.data.is_empty() {
                self.device.write(self.rooms[0].address(), &tape.data)?;
            }
            let mut launches = Vec::new();
            if at == 0 {
                launches.push(self.weights.clear_grads());
            }
            if tape.rooms.grads.used() > 0 {
                launches.push(clear(self.rooms[2].address(), tape.rooms.grads.used() / 4));
            }
            launches.append(&mut tape.forward);
            launches.append(&mut tape.take_backward());
            let first = tape.squares;
            if at + 1 == count {
                launches.append(&mut self.weights.squares(self.rooms[4].address() + 4 * first as u64));
            }
            self.run(launches)?;
            let mut results = vec![0f32; first + self.weights.square_parts().sum::<usize>()];
            self.device.read(self.rooms[4].address(), bytemuck::cast_slice_mut(&mut results))?;
            let rows = tape.terms.iter().flat_map(|term| &results[term.first..term.first + term.rows]);
            loss += rows.map(|loss| f64::from(*loss)).sum::<f64>();
            let mut partial = results[first..].iter().map(|x| f64::from(*x));
            self.squares = self.weights.square_parts().map(|parts| partial.by_ref().take(parts).sum()).collect();
            self.learned = tape.learned;
        }
        Ok(loss)
    }

    fn update(&mut self, lr: f64, step: u64) -> Result<f64> {
        if let Some((name, _)) = self.weights.names().zip(&self.squares).find(|(_, squares)| !squares.is_finite()) {
            return Err(rqvae::Error::NonFinite { what: format!("gradient of {name}"), step }.into());
        }
        let norm = self.squares.iter().sum::<f64>().sqrt();
        let clip = self.config.clip_norm;
        let scale = if clip > 0.0 && norm > clip { clip / (norm + 1e-6) } else { 1.0 };
        self.steps += 1;
        let average_step = average_step(self.ema_decay, step);
        let update = Update { config: self.config, lr, scale, step: self.steps, average_step };
        self.run(self.weights.update(&update, &self.learned))?;
        Ok(norm)
    }

    fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        self.weights.weights()
    }

    fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        self.weights.average()
    }

    fn moments(&self) -> Result<HashMap<String, Tensor>> {
        let [first, second] = self.weights.moments()?;
        let named = |prefix: &'static str, moments: BTreeMap<String, Tensor>| {
            moments.into_iter().map(move |(name, tensor)| (format!("{prefix}.{name}"), tensor))
        };
        Ok(named("first", first).chain(named("second", second)).collect())
    }

    fn restore(
        &mut self,
        weights: &HashMap<String, Tensor>,
        average: Option<&HashMap<String, Tensor>>,
        moments: &HashMap<String, Tensor>,
        steps: u64,
    ) -> Result<()> {
        let of = |prefix: &str| -> HashMap<String, Tensor> {
            let own =
                |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()));
            moments.iter().filter_map(own).collect()
        };
        self.weights.restore(weights, [&of("first."), &of("second.")], average)?;
        self.steps = steps;
        Ok(())
    }

    fn show(&mut self) -> Result<()> {
        let weights = match self.weights.average()? {
            Some(average) => average,
            None => self.weights.weights()?,
        };
        self.params.assign(&weights.into_iter().collect())
    }

    fn hide(&mut self) -> Result<()> {
        // The weights to train on never left the device.
        Ok(())
    }
}
