//! A fit whose towers are computed elsewhere, which here is the host again: the same bits, as long as a batch is one shard.

use super::engine::{TowerStart, Towers};
use super::estimator::{CodebookUpdate, Estimator};
use super::optim::AdamW;
use super::rqvae::RqVae;
use super::towers::TowerTape;
use super::{RqVaeConfig, towers_apart};
use crate::accelerator_tests::HostPoints;
use crate::quantize::{Behavior, QuantizerConfig};
use crate::{
    Accelerator, DevicePoints, Error, ItemIdx, Result, SeededRng, Vectors, file_digest, fit_quantizer_with, mix,
};

const ITEMS: usize = 260;
const DIM: usize = 9;

/// The host's towers behind the door for others.
struct Here {
    model: RqVae,
    optim: AdamW,
    encoded: TowerTape,
    decoded: TowerTape,
    x: Vec<f32>,
    grads: Vec<f32>,
}

impl Towers for Here {
    fn encode(&mut self, x: &[f32], latents: &mut Vec<f32>) -> Result<()> {
        self.x = x.to_vec();
        let found = self.model.encoder.forward(&self.model.params, x, x.len() / DIM, &mut self.encoded);
        *latents = found.to_vec();
        Ok(())
    }

    fn decode(&mut self, quantized: &[f32], scale: f32, flow: &mut Vec<f32>) -> Result<f64> {
        let (model, rows) = (&self.model, self.x.len() / DIM);
        let found = model.decoder.forward(&model.params, quantized, rows, &mut self.decoded);
        let squares = found.iter().zip(&self.x).map(|(y, x)| f64::from((y - x) * (y - x))).sum();
        *flow = found.iter().zip(&self.x).map(|(y, x)| 2.0 * scale * (y - x)).collect();
        let (tape, grads) = (&mut self.decoded, &mut self.grads);
        model.decoder.backward(&model.params, quantized, rows, tape, flow, &mut Vec::new(), grads);
        Ok(squares)
    }

    fn reconstruct(&mut self, quantized: &[f32], x: &mut Vec<f32>) -> Result<()> {
        let (model, rows) = (&self.model, quantized.len() / self.model.latent_dim());
        *x = model.decoder.forward(&model.params, quantized, rows, &mut self.decoded).to_vec();
        Ok(())
    }

    fn back(&mut self, flow: &[f32]) -> Result<()> {
        let (model, rows) = (&self.model, self.x.len() / DIM);
        let (tape, grads) = (&mut self.encoded, &mut self.grads);
        model.encoder.backward(&model.params, &self.x, rows, tape, &mut flow.to_vec(), &mut Vec::new(), grads);
        Ok(())
    }

    fn update(&mut self, learning_rate: f32) -> Result<()> {
        self.optim.step(&mut self.model.params, &[&self.grads], learning_rate);
        Ok(())
    }

    fn gradients(&mut self) -> Result<Vec<f32>> {
        Ok(self.grads.clone())
    }

    fn params(&mut self) -> Result<Vec<f32>> {
        Ok(self.model.params.clone())
    }
}

/// A device that begins with the weights it is given, times `factor`.
struct HereToo {
    config: QuantizerConfig,
    factor: f32,
}

impl Accelerator for HereToo {
    fn towers(&self, start: &TowerStart) -> Result<Box<dyn Towers>> {
        let mut model = RqVae::new(&self.config.rqvae, DIM, &self.config.sizes(), &SeededRng::new(0))?;
        assert_eq!(start.plan.parameters, model.params.len());
        model.params.iter_mut().zip(start.params).for_each(|(w, start)| *w = start * self.factor);
        let optim = AdamW::new(model.params.len(), start.adamw.weight_decay as f32);
        let (encoded, decoded, grads) = (TowerTape::default(), TowerTape::default(), vec![0.0; model.params.len()]);
        Ok(Box::new(Here { model, optim, encoded, decoded, x: Vec::new(), grads }))
    }

    fn pays(&self, _: usize) -> bool {
        true
    }

    fn points(&self, points: &[f32], dim: usize) -> Result<Box<dyn DevicePoints>> {
        Ok(Box::new(HostPoints::new(points, dim, 0)))
    }
}

fn here(config: &QuantizerConfig) -> HereToo {
    HereToo { config: config.clone(), factor: 1.0 }
}

fn content() -> Vectors {
    let unit = |key: u64| (mix(key) % 2000) as f32 / 1000.0 - 1.0;
    Vectors::new(DIM, (0..(ITEMS * DIM) as u64).map(unit).collect()).unwrap()
}

fn behavior() -> Behavior {
    let items_of = |user: u64| (0..5).map(move |t| ItemIdx((mix(user * 31 + t) % ITEMS as u64) as u32)).collect();
    let histories: Vec<Vec<ItemIdx>> = (0..60).map(items_of).collect();
    Behavior::of_histories(ITEMS, histories.iter().map(|history| &history[..]), 1)
}

fn configs() -> Vec<QuantizerConfig> {
    let base = RqVaeConfig {
        hidden: vec![12, 8],
        latent_dim: 4,
        epochs: 6,
        min_steps: 1,
        batch_size: 100,
        check_every: 1,
        reset_every: 2,
        ..RqVaeConfig::default()
    };
    let rich = RqVaeConfig {
        sources: vec![4, 5],
        progressive: true,
        contrast_weight: 3.0,
        align_weight: 2.0,
        estimator: Estimator::RotationTrick,
        ..base.clone()
    };
    let soft = RqVaeConfig {
        estimator: Estimator::GumbelSoftmax,
        codebook_update: CodebookUpdate::Gradient,
        diversity_weight: 0.5,
        diversity_groups: 3,
        ..base.clone()
    };
    let of = |rqvae| QuantizerConfig { levels: 2, codebook_size: 8, seed: 3, rqvae, ..QuantizerConfig::default() };
    vec![of(base), of(rich), of(soft)]
}

#[test]
fn towers_elsewhere_make_the_same_fit() {
    let dir = tempfile::tempdir().unwrap();
    for config in configs() {
        let digest = |elsewhere: bool| {
            let make = here(&config);
            let device: Option<&dyn Accelerator> = if elsewhere { Some(&make) } else { None };
            let fitted = fit_quantizer_with(&config, &content(), &behavior(), device, &mut |_| ()).unwrap();
            if elsewhere {
                let (here, there) = (fitted.encode(&content()), fitted.encode_on(&content(), device));
                assert_eq!(here.unwrap().codes, there.unwrap().codes);
                let other = HereToo { config: config.clone(), factor: 1.1 };
                let refused = fitted.encode_on(&content(), Some(&other)).unwrap_err();
                assert!(refused.to_string().contains("latents"), "{refused}");
                let nothing = Vectors::new(DIM, vec![]).unwrap();
                assert_eq!(fitted.encode_on(&nothing, device).unwrap().codes.rows(), 0);
            }
            fitted.save(dir.path()).unwrap();
            file_digest(&dir.path().join("quantizer.safetensors")).unwrap()
        };
        assert_eq!(digest(true), digest(false), "{:?}", config.rqvae);
    }
}

#[test]
fn what_is_apart_is_measured() {
    for config in configs() {
        let apart = towers_apart(&config, &content(), &behavior(), 7, &here(&config)).unwrap();
        assert_eq!((apart.loss, apart.all_gradients, apart.weights), (0.0, 0.0, 0.0));
        assert!(apart.gradients.iter().all(|(_, gap)| *gap == 0.0));
    }
    let config = &configs()[0];
    let other = HereToo { config: config.clone(), factor: 1.1 };
    let apart = towers_apart(config, &content(), &behavior(), 2, &other).unwrap();
    assert!(apart.loss > 0.0 && apart.all_gradients > 0.05 && apart.weights > 1.0, "{apart:?}");
    let refused = fit_quantizer_with(config, &content(), &behavior(), Some(&other), &mut |_| ()).err().unwrap();
    assert!(matches!(refused, Error::Disagreement { .. }), "{refused}");
}
