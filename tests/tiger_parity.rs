//! TIGER against Hugging Face's T5 of the same shape: logits, loss, every gradient, ten AdamW steps.
//!
//! The reference is `reference/t5.safetensors`, written by `reference/t5.py`.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use rqvae::{AdamW, AdamWConfig, ItemIdx, Mode, SidSpec, SidTable};
use seqmodel::ItemFeatures;
use seqmodel::nn::Parameters;
use seqmodel::tiger::{Sample, Tiger, TigerConfig, TigerSession};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

struct Reference(HashMap<String, Tensor>);

impl Reference {
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("the reference has no tensor {name}"))
    }

    /// Tensors whose names begin with `prefix`, without it.
    fn under(&self, prefix: &str) -> HashMap<String, Tensor> {
        self.0.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
    }

    fn integers(&self, name: &str) -> Result<Vec<Vec<i64>>> {
        Ok(self.get(name)?.to_vec2()?)
    }
}

/// Largest difference, as a share of the largest value expected.
fn apart(found: &Tensor, expected: &Tensor) -> Result<f32> {
    let most = expected.abs()?.max_all()?.to_scalar::<f32>()?;
    Ok((found - expected)?.abs()?.max_all()?.to_scalar::<f32>()? / most.max(1e-6))
}

fn model(reference: &Reference) -> Result<(Tiger, Parameters, Vec<Sample>)> {
    let codes = reference.integers("codes")?.into_iter().flatten().map(|code| code as u16).collect();
    let spec = SidSpec { codebook_sizes: vec![5, 6], suffix_size: Some(4) };
    let features = ItemFeatures::new(Arc::new(SidTable::new(spec, codes)?), None)?;
    let config = TigerConfig {
        dim: 16,
        heads: 2,
        head_dim: 6,
        hidden: 24,
        encoder_layers: 2,
        decoder_layers: 2,
        dropout: 0.0,
        separator: true,
        ..TigerConfig::default()
    };
    let params = Parameters::new(0);
    let tiger = Tiger::new(&config, features, &params.builder())?;
    params.assign(&reference.under("weight."))?;
    let targets: Vec<i64> = reference.get("target")?.to_vec1()?;
    let item = |index: &i64| ItemIdx(*index as u32);
    let histories = reference.integers("history")?;
    let samples = histories.iter().zip(&targets).map(|(history, target)| Sample {
        history: history.iter().filter(|index| **index >= 0).map(item).collect(),
        user: None,
        target: item(target),
    });
    Ok((tiger, params, samples.collect()))
}

fn reference() -> Result<Reference> {
    let bytes = include_bytes!("reference/t5.safetensors");
    Ok(Reference(candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?))
}

#[test]
fn logits_are_those_of_hugging_face() -> Result<()> {
    let reference = reference()?;
    let (tiger, _, samples) = model(&reference)?;
    let codes = reference.integers("codes")?;
    for (row, sample) in samples.iter().enumerate() {
        let mut session = TigerSession::new(&tiger, &[sample.read()])?;
        let mut last = 0;
        for level in 0..3 {
            let (width, found) = session.advance(level, &[0], &[0], &[last])?;
            let logits = reference.get(&format!("logits.{level}"))?.get(row)?;
            let expected = candle_nn::ops::log_softmax(&logits, 0)?;
            let worst = (Tensor::from_vec(found, width, &Device::Cpu)? - expected)?.abs()?.max_all()?;
            ensure!(worst.to_scalar::<f32>()? < 2e-5, "sample {row}, level {level}: {worst}");
            last = codes[sample.target.0 as usize][level] as u32;
        }
    }
    Ok(())
}

#[test]
fn loss_gradients_and_ten_steps_are_those_of_pytorch() -> Result<()> {
    let reference = reference()?;
    let (tiger, params, samples) = model(&reference)?;
    let samples: Vec<&Sample> = samples.iter().collect();
    let losses: Vec<f32> = reference.get("losses")?.to_vec1()?;
    let config = AdamWConfig { weight_decay: 0.05, clip_norm: 1.0, ..AdamWConfig::default() };
    let mut optim = AdamW::new(params.all(), config);
    for (step, expected) in losses.iter().enumerate() {
        let loss = tiger.loss(&samples, Mode::Eval)?;
        let found = loss.to_scalar::<f32>()?;
        ensure!((found - expected).abs() < 1e-4 * expected, "loss of step {step}: {found}, expected {expected}");
        let grads = loss.backward()?;
        if step == 0 {
            let wanted = reference.under("grad.");
            ensure!(
                wanted.len() == params.all().len(),
                "{} gradients, {} parameters",
                wanted.len(),
                params.all().len()
            );
            for (name, var) in params.all() {
                let found = grads.get(&var).with_context(|| format!("no gradient for {name}"))?;
                let worst = apart(found, wanted.get(&name).with_context(|| format!("{name} in the reference"))?)?;
                ensure!(worst < 1e-4, "gradient of {name} is {worst} apart");
            }
        }
        optim.step(&grads, 1e-2)?;
    }
    for (name, expected) in reference.under("after.").into_iter().collect::<BTreeMap<_, _>>() {
        let found = params.all().remove(&name).with_context(|| format!("{name} in the model"))?;
        let worst = apart(&found, &expected)?;
        ensure!(worst < 2e-3, "{name} is {worst} apart after ten steps");
    }
    Ok(())
}
