//! The RQ-VAE against PyTorch: outputs, parts of the loss, every gradient by name, ten optimiser steps, for every
//! estimator and both ways in which codewords learn.
//!
//! The reference is `tests/reference/rqvae.safetensors`, written by `tests/golden/make_rqvae.py`.

use super::averages::Averages;
use super::config::RqVaeConfig;
use super::diversity::diversity;
use super::estimator::{CodebookUpdate, Estimator, sinkhorn};
use super::optim::AdamW;
use super::pass::{Shard, Step};
use super::rqvae::RqVae;
use crate::cluster::squared_norms;
use crate::{Code, SeededRng};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

/// Sums of at most some hundred products in f32, in another order than PyTorch's: a few units in the last place.
const OUTPUT: f32 = 2e-5;
/// Gradients pass through up to eight layers of such sums.
const GRADIENT: f32 = 1e-4;
/// AdamW divides by the root of second moments: where a gradient is near 0, its rounding is amplified, ten times over.
const AFTER: f32 = 2e-3;
/// Losses along the way.
const LOSS: f32 = 1e-4;

const ROWS: usize = 24;
const CONTENT: usize = 5;
const LATENT: usize = 3;
const LEARNING_RATE: f32 = 1e-2;
const WEIGHT_DECAY: f32 = 0.05;
const DECAY: f32 = 0.9;

struct Case {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
}

impl Case {
    fn open(name: &'static str) -> Self {
        let bytes = include_bytes!("../../../tests/reference/rqvae.safetensors");
        Self { name, tensors: candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap() }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}.{name}", self.name))
    }

    fn tensor(&self, name: &str) -> &Tensor {
        let key = format!("{}.{name}", self.name);
        self.tensors.get(&key).unwrap_or_else(|| panic!("the reference has no tensor {key}"))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let found: Vec<i64> = self.tensor(name).flatten_all().unwrap().to_vec1().unwrap();
        found.into_iter().map(|x| usize::try_from(x).unwrap()).collect()
    }

    fn near(&self, name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len(), "{}.{name}", self.name);
        let most = expected.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance * most, "{}.{name} at {at}: {a}, PyTorch {b}", self.name);
        }
    }

    /// The network of the case, with its weights.
    fn model(&self, config: RqVaeConfig, sizes: &[u32]) -> RqVae {
        let weights = self.floats("weights");
        let config = RqVaeConfig {
            hidden: vec![7, 6],
            latent_dim: LATENT,
            beta: 0.4,
            contrast_temperature: 0.5,
            contrast_weight: weights[0],
            align_weight: weights[1],
            ..config
        };
        let mut model = RqVae::new(&config, CONTENT, sizes, &SeededRng::new(0)).unwrap();
        for (name, shape, at) in model.layout() {
            let weight = self.tensor(&format!("weight.{name}"));
            assert_eq!(weight.dims(), shape, "{name}");
            let weight = self.floats(&format!("weight.{name}"));
            model.params[at..at + weight.len()].copy_from_slice(&weight);
        }
        for level in 0..sizes.len() {
            let range = model.codebook(level);
            model.codebooks[range].copy_from_slice(&self.floats(&format!("weight.codebook.{level}")));
        }
        model
    }

    /// The rows of the case.
    fn shard(&self) -> Shard {
        let mut shard = Shard::default();
        shard.rows.x = self.floats("x");
        if self.has("pairs") {
            shard.rows.items = self.integers("items").into_iter().map(|item| item as u32).collect();
            shard.rows.depths = self.integers("depths");
            shard.rows.pairs = self.integers("pairs").chunks(2).map(|pair| (pair[0], pair[1])).collect();
            shard.rows.collaborative = self.floats("collaborative");
        }
        shard
    }

    /// A pass, the noise of `step` where the case has any.
    fn pass(&self, model: &RqVae, shard: &mut Shard, step: usize) {
        let of_level = |level: usize| {
            let size = model.places(level).len() * ROWS;
            self.floats(&format!("noise.{level}"))[step * size..(step + 1) * size].to_vec()
        };
        let drawn: Vec<f32> =
            if self.has("noise.0") { (0..model.levels()).flat_map(of_level).collect() } else { Vec::new() };
        let mut drawn = drawn.into_iter();
        let norms = squared_norms(&model.codebooks, LATENT);
        let now = Step { norms: &norms, scale: 1.0 / ROWS as f32, temperature: 0.8 };
        model.backward(shard, &now, &mut || drawn.next().unwrap());
    }

    /// Everything the case says of one pass and of ten steps.
    fn check(&self, config: RqVaeConfig, sizes: &[u32]) {
        let by_gradient = config.codebook_update == CodebookUpdate::Gradient;
        let mut model = self.model(config, sizes);
        let mut shard = self.shard();
        self.near("latent", &model.encode(&shard.rows.x), &self.floats("latent"), OUTPUT);
        let quantized = self.floats("quantized");
        self.near("reconstruction", &model.decode(&quantized), &self.floats("reconstruction"), OUTPUT);

        self.pass(&model, &mut shard, 0);
        let codes: Vec<usize> =
            (0..ROWS).flat_map(|row| shard.codes.iter().map(move |codes| usize::from(codes[row]))).collect();
        assert_eq!(codes, self.integers("codes"), "{}.codes", self.name);
        let terms = shard.terms;
        let found = [terms.reconstruction, terms.commitment, terms.codebook, terms.contrast, terms.alignment];
        for (found, expected) in found.iter().zip(self.floats("terms")) {
            assert!((*found as f32 - expected).abs() <= OUTPUT * expected.max(1.0), "{}: {terms:?}", self.name);
        }
        let mut gradients = 0;
        for (name, shape, at) in model.layout() {
            let len = shape.iter().product::<usize>();
            let expected = self.floats(&format!("grad.{name}"));
            assert!(expected.iter().any(|g| *g != 0.0), "{}: {name} has no gradient", self.name);
            self.near(&format!("grad.{name}"), &shard.grads[at..at + len], &expected, GRADIENT);
            gradients += 1;
        }
        if by_gradient {
            for level in 0..sizes.len() {
                let name = format!("grad.codebook.{level}");
                self.near(&name, &shard.book[model.codebook(level)], &self.floats(&name), GRADIENT);
                gradients += 1;
            }
        }
        let prefix = format!("{}.grad.", self.name);
        assert_eq!(gradients, self.tensors.keys().filter(|key| key.starts_with(&prefix)).count());

        let mut optim = AdamW::new(model.params.len(), WEIGHT_DECAY);
        let mut book_optim = AdamW::new(model.codebooks.len(), 0.0);
        let mut averages = Averages::new(DECAY, &model.codebooks, LATENT);
        for (step, expected) in self.floats("losses").into_iter().enumerate() {
            self.pass(&model, &mut shard, step);
            let loss = model.loss(&shard.terms) as f32 / ROWS as f32;
            assert!((loss - expected).abs() < LOSS * expected, "{}: step {step}: {loss} {expected}", self.name);
            optim.step(&mut model.params, &[&shard.grads], LEARNING_RATE);
            if by_gradient {
                book_optim.step(&mut model.codebooks, &[&shard.book], LEARNING_RATE);
            } else {
                averages.update(&mut model.codebooks, &[(&shard.counts, &shard.sums)]);
            }
        }
        for (name, shape, at) in model.layout() {
            let len = shape.iter().product::<usize>();
            let name = format!("after.{name}");
            self.near(&name, &model.params[at..at + len], &self.floats(&name), AFTER);
        }
        let codebooks = |what: &str, model: &RqVae| {
            for level in 0..sizes.len() {
                let name = format!("{what}.codebook.{level}");
                self.near(&name, &model.codebooks[model.codebook(level)], &self.floats(&name), AFTER);
            }
        };
        codebooks("after", &model);
        if !by_gradient {
            // Codeword 1 of level 0 starts anew at a residual; then one more update.
            let residual = self.floats("restart");
            model.codebooks[LATENT..2 * LATENT].copy_from_slice(&residual);
            averages.restart(1, &residual);
            averages.update(&mut model.codebooks, &[(&shard.counts, &shard.sums)]);
            codebooks("restarted", &model);
        }
    }
}

fn by_gradient(estimator: Estimator) -> RqVaeConfig {
    RqVaeConfig { estimator, codebook_update: CodebookUpdate::Gradient, ..RqVaeConfig::default() }
}

#[test]
fn straight_through_with_codebooks_by_gradient() {
    Case::open("gradient").check(by_gradient(Estimator::StraightThrough), &[4, 4]);
}

#[test]
fn straight_through_with_averages_and_restart() {
    Case::open("averages").check(RqVaeConfig::default(), &[4, 4]);
}

#[test]
fn rotation_trick() {
    Case::open("rotation").check(by_gradient(Estimator::RotationTrick), &[4, 4]);
}

#[test]
fn gumbel_softmax() {
    Case::open("gumbel").check(by_gradient(Estimator::GumbelSoftmax), &[4, 4]);
}

/// Two sources, falling codebook sizes, drawn depths, contrast with sessions and with collaborative vectors.
#[test]
fn all_additions() {
    let config = RqVaeConfig { sources: vec![2, 3], progressive: true, ..RqVaeConfig::default() };
    Case::open("sources").check(config, &[5, 3]);
}

#[test]
fn sinkhorn_codes() {
    let case = Case::open("sinkhorn");
    let expected = case.integers("codes");
    let mut codes: Vec<Code> = vec![0; expected.len()];
    sinkhorn(&case.floats("residuals"), &case.floats("codebook"), LATENT, 0.05, &mut codes);
    assert_eq!(codes.into_iter().map(usize::from).collect::<Vec<_>>(), expected);
}

#[test]
fn diversity_of_a_codebook() {
    let case = Case::open("diversity");
    let partners: Vec<Code> = case.integers("partners").into_iter().map(|code| code as Code).collect();
    let codebook = case.floats("codebook");
    let mut grad = vec![0.0; codebook.len()];
    let loss = diversity(&codebook, LATENT, &case.floats("counts"), &partners, 1.0, &mut grad);
    case.near("loss", &[loss as f32], &case.floats("loss"), OUTPUT);
    case.near("grad", &grad, &case.floats("grad"), GRADIENT);
}
