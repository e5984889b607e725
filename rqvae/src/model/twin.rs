//! A device and the host on the same batches: how far apart they are.

use super::engine::Engine;
use super::fit::Fitting;
use super::quantizer::{moments, standardized};
use crate::quantize::{Behavior, QuantizerConfig, content_order};
use crate::{Accelerator, Error, Result, Vectors};

/// Items whose loss and gradients are taken on both sides before training begins on a device.
const COMPARED: usize = 64;

/// How far both may be apart, as shares: the loss, and all gradients together. Of the items compared one or two may take
/// another code by rounding alone.
const LOSS_APART: f64 = 0.01;
const GRADIENTS_APART: f64 = 0.1;

/// How far a device is from the host, as shares of what the host has.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TowersApart {
    /// Largest difference of a step's loss.
    pub loss: f64,
    /// Of the first step: the largest difference of each parameter's gradient, by its largest number.
    pub gradients: Vec<(String, f64)>,
    /// Of the first step: the difference of all gradients, root of squares by root of squares.
    pub all_gradients: f64,
    /// The difference of all weights after the last step, by how far the host's have moved, root of squares by root of
    /// squares.
    pub weights: f64,
}

/// Takes `steps` steps on `content` (items, dim) and what `behavior` says of it, on the host and on `device`,
/// each from the same start on the same batches.
///
/// # Errors
/// As a fit; or the device fails.
pub fn towers_apart(
    config: &QuantizerConfig,
    content: &Vectors,
    behavior: &Behavior,
    steps: usize,
    device: &dyn Accelerator,
) -> Result<TowersApart> {
    config.validate()?;
    let order = content_order(content)?;
    let (mean, deviation) = moments(content, &order);
    let rows = standardized(content, &order, &mean, &deviation);
    behavior.check(content.rows())?;
    let behavior = behavior.select(&order);
    let new = |device| Fitting::new(config, &rows, content.dim, &behavior, device);
    let (mut host, mut device) = (new(None)?, new(Some(device))?);
    let start = host.model.params.clone();
    let options = &config.rqvae;
    let items: Vec<u32> = (0..content.rows() as u32).collect();
    let batches: Vec<&[u32]> = items.chunks(options.batch_size).collect();
    let mut apart = device.differences(batches[0], options.temperature)?;
    for batch in batches.iter().cycle().take(steps) {
        let (expected, _) = host.pass(batch, options.temperature, None)?;
        let (found, _) = device.pass(batch, options.temperature, None)?;
        apart.loss = worse(apart.loss, share(found, expected));
        host.update(options.learning_rate)?;
        device.update(options.learning_rate)?;
    }
    device.fetch()?;
    let moved = distance(&host.model.params, &start);
    apart.weights = if moved > 0.0 { distance(&host.model.params, &device.model.params) / moved } else { 0.0 };
    Ok(apart)
}

impl Fitting<'_> {
    /// Refuses a device that does not compute what the host does: a first batch, before anything is learned from it.
    pub(super) fn agree(&mut self, order: &[u32], temperature: f32) -> Result<()> {
        let batch = &order[..COMPARED.min(order.len()).min(self.model.config.batch_size)];
        let apart = self.differences(batch, temperature)?;
        // The other way round it would not see what is no number.
        if apart.loss <= LOSS_APART && apart.all_gradients <= GRADIENTS_APART {
            return Ok(());
        }
        let (loss, gradients) = (100.0 * apart.loss, 100.0 * apart.all_gradients);
        Err(Error::Disagreement {
            what: format!(
                "the device's loss of the first {} items is {loss:.3} % away from the processor's, its gradients \
                 {gradients:.3} %",
                batch.len()
            ),
        })
    }

    /// Loss and gradients of a batch on both sides; nothing is learned, and the next batch draws what it would have.
    fn differences(&mut self, batch: &[u32], temperature: f32) -> Result<TowersApart> {
        let step = self.step;
        let (found, _) = self.pass(batch, temperature, None)?;
        let found_grads = self.gradients()?;
        self.step = step;
        let host = Engine::new(&self.model, 0, None)?;
        let device = std::mem::replace(&mut self.engine, host);
        let expected = self.pass(batch, temperature, None);
        let expected_grads = self.gradients();
        (self.engine, self.step) = (device, step);
        let ((expected, _), expected_grads) = (expected?, expected_grads?);
        if found_grads.len() != expected_grads.len() {
            return Err(Error::shape("gradients of the towers", expected_grads.len(), found_grads.len()));
        }
        let of = |(name, shape, at): (String, Vec<usize>, usize)| {
            let range = at..at + shape.iter().product::<usize>();
            (name, largest_gap(&found_grads[range.clone()], &expected_grads[range]))
        };
        let zeros = vec![0.0; expected_grads.len()];
        Ok(TowersApart {
            loss: share(found, expected),
            gradients: self.model.layout().into_iter().map(of).collect(),
            all_gradients: distance(&found_grads, &expected_grads)
                / distance(&expected_grads, &zeros).max(f64::MIN_POSITIVE),
            weights: 0.0,
        })
    }
}

/// The larger one, and no number where one of them is none.
fn worse(a: f64, b: f64) -> f64 {
    if a >= b { a } else { b }
}

fn share(found: f64, expected: f64) -> f64 {
    if found == expected { 0.0 } else { (found - expected).abs() / expected.abs() }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn largest_gap(found: &[f32], expected: &[f32]) -> f64 {
    let most = expected.iter().fold(0f64, |most, x| most.max(f64::from(x.abs())));
    let gap = found.iter().zip(expected).fold(0.0, |gap, (a, b)| worse((f64::from(*a) - f64::from(*b)).abs(), gap));
    if gap == 0.0 { 0.0 } else { gap / most }
}
