//! The parameters of a model on a device, with their gradients and moments, in the order of their names.

use super::tape::Node;
use crate::nn::{Parameters, with_values};
use crate::{Error, Result};
use beam::cuda::train::{AdamWArgs, ElementArgs, FILL, SquaresArgs, adamw, element, squares, sum_of_squares};
use beam::cuda::{Device, Launch, Memory};
use candle_core::Tensor;
use rqvae::AdamWConfig;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Numbers that every parameter begins at a multiple of.
const ALIGN: usize = 64;

/// One parameter among all.
#[derive(Debug, Clone)]
struct Place {
    first: usize,
    dims: Vec<usize>,
}

impl Place {
    fn count(&self) -> usize {
        self.dims.iter().product()
    }
}

/// What a step of the optimiser takes besides gradients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    pub(super) config: AdamWConfig,
    pub(super) lr: f64,
    /// What clipping leaves of the gradients.
    pub(super) scale: f64,
    /// Steps taken, this one included.
    pub(super) step: u64,
    /// How far the running average goes towards the weights, where there is one.
    pub(super) average_step: f64,
}

/// All of them.
pub(super) struct DeviceParameters {
    places: BTreeMap<String, Place>,
    total: usize,
    device: Arc<dyn Device>,
    weights: Memory,
    grads: Memory,
    first: Memory,
    second: Memory,
    average: Option<Memory>,
}

impl DeviceParameters {
    /// A copy of `params`, moments zero; `averaged`: with a running average that begins as the weights.
    pub(super) fn new(device: &Arc<dyn Device>, params: &Parameters, averaged: bool) -> Result<Self> {
        let mut total = 0;
        let mut places = BTreeMap::new();
        for (name, var) in params.all() {
            places.insert(name, Place { first: total, dims: var.dims().to_vec() });
            total += var.elem_count().next_multiple_of(ALIGN);
        }
        let memory = || Memory::new(device, 4 * total);
        let made = Self {
            places,
            total,
            device: Arc::clone(device),
            weights: memory()?,
            grads: memory()?,
            first: memory()?,
            second: memory()?,
            average: averaged.then(memory).transpose()?,
        };
        let weights = params.snapshot()?;
        made.write(&made.weights, |name| weights.get(name))?;
        if let Some(average) = &made.average {
            made.write(average, |name| weights.get(name))?;
        }
        Ok(made)
    }

    fn write<'t>(&self, memory: &Memory, tensor: impl Fn(&str) -> Option<&'t Tensor>) -> Result<()> {
        let mut all = vec![0f32; self.total];
        for (name, place) in &self.places {
            let tensor = tensor(name).ok_or_else(|| self.missing(name))?;
            with_values(&tensor.contiguous()?, |values| {
                all[place.first..place.first + place.count()].copy_from_slice(values);
            })?;
        }
        Ok(self.device.write(memory.address(), bytemuck::cast_slice(&all))?)
    }

    fn read(&self, memory: &Memory) -> Result<BTreeMap<String, Tensor>> {
        let mut all = vec![0f32; self.total];
        self.device.read(memory.address(), bytemuck::cast_slice_mut(&mut all))?;
        let tensor = |(name, place): (&String, &Place)| {
            let values = &all[place.first..place.first + place.count()];
            Ok((name.clone(), Tensor::from_slice(values, &place.dims[..], &candle_core::Device::Cpu)?))
        };
        self.places.iter().map(tensor).collect()
    }

    fn missing(&self, name: &str) -> Error {
        let expected = self.places.get(name).map_or_else(|| "a parameter".into(), |place| format!("{:?}", place.dims));
        Error::Mismatch { what: format!("tensor `{name}`"), expected, found: "nothing".into() }
    }

    /// The parameter `name` and its gradient; vectors are one row.
    pub(super) fn node(&self, name: &str) -> Result<Node> {
        let place = self.places.get(name).ok_or_else(|| self.missing(name))?;
        let cols = place.dims.last().copied().unwrap_or(1);
        let at = |memory: &Memory| memory.address() + 4 * place.first as u64;
        let rows = place.count() / cols.max(1);
        Ok(Node { at: at(&self.weights), grad: at(&self.grads), rows, cols, stride: cols })
    }

    /// Weights by name.
    pub(super) fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        self.read(&self.weights)
    }

    /// The running average by name, where there is one.
    pub(super) fn average(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        self.average.as_ref().map(|average| self.read(average)).transpose()
    }

    /// Gradients by name, as the last tape left them.
    pub(super) fn grads(&self) -> Result<BTreeMap<String, Tensor>> {
        self.read(&self.grads)
    }

    /// First and second moments by name.
    pub(super) fn moments(&self) -> Result<[BTreeMap<String, Tensor>; 2]> {
        Ok([self.read(&self.first)?, self.read(&self.second)?])
    }

    /// Takes weights, moments and average as they were.
    pub(super) fn restore(
        &self,
        weights: &HashMap<String, Tensor>,
        moments: [&HashMap<String, Tensor>; 2],
        average: Option<&HashMap<String, Tensor>>,
    ) -> Result<()> {
        self.write(&self.weights, |name| weights.get(name))?;
        self.write(&self.first, |name| moments[0].get(name))?;
        self.write(&self.second, |name| moments[1].get(name))?;
        match (&self.average, average) {
            (Some(memory), Some(average)) => self.write(memory, |name| average.get(name)),
            _ => Ok(()),
        }
    }

    /// Names in their order.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    /// Gradients become zeros.
    pub(super) fn clear_grads(&self) -> Launch {
        clear(self.grads.address(), self.total)
    }

    /// How many partial sums of squares each gradient has, in the order of names.
    pub(super) fn square_parts(&self) -> impl Iterator<Item = usize> {
        self.places.values().map(|place| squares(place.count() as u64) as usize)
    }

    /// Partial sums of squares of every gradient, one after the other from `results` on.
    pub(super) fn squares(&self, results: u64) -> Vec<Launch> {
        let mut partial = results;
        let mut launches = Vec::with_capacity(self.places.len());
        for (place, parts) in self.places.values().zip(self.square_parts()) {
            let x = self.grads.address() + 4 * place.first as u64;
            launches.push(sum_of_squares(&SquaresArgs { x, partial, count: place.count() as u64 }));
            partial += 4 * parts as u64;
        }
        launches
    }

    /// A step of those whose gradient was added to, at an address of `learned`; the others stay as they are.
    pub(super) fn update(&self, update: &Update, learned: &[u64]) -> Vec<Launch> {
        let Update { config, lr, scale, step, average_step } = *update;
        let t = i32::try_from(step.min(i32::MAX as u64)).unwrap_or(i32::MAX);
        let learns = |place: &&Place| {
            let first = self.grads.address() + 4 * place.first as u64;
            learned.iter().any(|at| (first..first + 4 * place.count().max(1) as u64).contains(at))
        };
        let launch = |place: &Place| {
            let at = |memory: &Memory| memory.address() + 4 * place.first as u64;
            adamw(&AdamWArgs {
                w: at(&self.weights),
                g: at(&self.grads),
                m: at(&self.first),
                v: at(&self.second),
                average: self.average.as_ref().map_or(0, at),
                count: place.count() as u64,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                epsilon: config.epsilon as f32,
                decay: (1.0 - lr * config.weight_decay) as f32,
                rate: (lr / (1.0 - config.beta1.powi(t))) as f32,
                root: (1.0 / (1.0 - config.beta2.powi(t)).sqrt()) as f32,
                scale: scale as f32,
                average_step: average_step as f32,
            })
        };
        self.places.values().filter(learns).map(launch).collect()
    }
}

/// Zeros.
pub(super) fn clear(at: u64, count: usize) -> Launch {
    element(&ElementArgs { y: at, what: FILL, count: count as u64, ..ElementArgs::default() })
}
