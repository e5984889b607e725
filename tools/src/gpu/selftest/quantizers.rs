//! Quantisers in the self-test: what a device fits and finds against the processor's, and how fast.

use super::{SelfTest, draw};
use anyhow::Result;
use beam::cuda::{Device, Gpu, accelerator, accelerator_from};
use rqvae::{
    Accelerator, AdamWConfig, Behavior, Method, QuantizerConfig, RqVaeConfig, TowerLayer, TowerPlan, TowerStart,
    Vectors, fit_quantizer_with, towers_apart,
};
use serde_json::json;
use std::sync::Arc;

impl SelfTest {
    /// Training steps of the RQ-VAE, and whole fits by all other methods.
    pub(super) fn quantizer_twins(&mut self, device: &Arc<dyn Device>) {
        for sources in [vec![], vec![200, 100]] {
            let name = format!("training step of the RQ-VAE in f32, {} sources", sources.len().max(1));
            self.note(&name, tower_twin(device, sources, 1e-3));
        }
        for method in [Method::ResidualKmeans, Method::Balanced, Method::HierarchicalKmeans, Method::Opq, Method::Lsh] {
            self.note(&format!("quantiser fitted by {method:?}"), quantizer_twin(device, method));
        }
    }

    /// Steps of the towers of an RQ-VAE of TIGER's size on vectors of 768 numbers, without the choice of codes.
    pub(super) fn towers(&mut self, gpu: &Gpu) -> Result<()> {
        const ROWS: usize = 1024;
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let mut parameters = 0;
        let mut layers = |widths: &[usize]| -> Vec<TowerLayer> {
            let mut place = |size: usize| {
                parameters += size;
                parameters - size
            };
            let layer = |w: &[usize]| {
                let (weight, bias) = (place(w[0] * w[1]), place(w[1]));
                TowerLayer { input: w[0], output: w[1], weight, bias }
            };
            widths.windows(2).map(layer).collect()
        };
        let (encoder, decoder) = (layers(&[768, 512, 256, 128, 32]), layers(&[32, 128, 256, 512, 768]));
        let (encoders, decoders) = (vec![encoder], vec![decoder]);
        let plan = TowerPlan { widths: vec![768], latent_dim: 32, encoders, fuse: None, decoders, parameters };
        let numbers = |seed: u64, count: usize, by: f32| -> Vec<f32> {
            (0..count).map(|at| ((draw(seed, at as u64) % 2001) as f32 / 1000.0 - 1.0) * by).collect()
        };
        let (params, x) = (numbers(6, parameters, 0.05), numbers(7, ROWS * 768, 1.0));
        let adamw = AdamWConfig::default();
        let start = TowerStart { plan: &plan, params: &params, rows: ROWS, adamw };
        let mut towers = accelerator(&device).towers(&start)?;
        let (mut latents, mut flow) = (Vec::new(), Vec::new());
        let about = json!({"model": "rqvae", "batch": ROWS, "parameters": parameters});
        self.time("towers", &about, ROWS as f64, |_| {
            towers.encode(&x, &mut latents)?;
            towers.decode(&latents, 1.0 / ROWS as f32, &mut flow)?;
            towers.back(&flow)?;
            towers.update(1e-3)?;
            Ok(gpu.wait()?)
        })?;
        Ok(())
    }

    /// Codes of points of 768 numbers among 2048 codewords, copies included.
    pub(super) fn nearest(&mut self, gpu: &Gpu) -> Result<()> {
        const ROWS: usize = 1 << 16;
        let device: Arc<dyn Device> = Arc::new(gpu.clone());
        let numbers = |seed: u64, count: usize| -> Vec<f32> {
            (0..count).map(|at| (draw(seed, at as u64) % 2001) as f32 / 1000.0 - 1.0).collect()
        };
        let (points, codewords) = (numbers(8, ROWS * 768), numbers(9, 2048 * 768));
        let norms: Vec<f32> = codewords.chunks(768).map(|c| c.iter().map(|x| x * x).sum()).collect();
        let (accelerator, mut codes) = (accelerator(&device), vec![0; ROWS]);
        let about = json!({"points": ROWS, "dim": 768, "codewords": codewords.len() / 768});
        self.time("nearest", &about, ROWS as f64, |_| {
            Ok(accelerator.points(&points, 768)?.nearest(&codewords, &norms, &mut codes)?)
        })?;
        Ok(())
    }
}

/// How far loss, gradients and weights of four steps of an RQ-VAE are from the processor's, where that is more than
/// `allowed`; weights may be twenty times as far, since one item that takes another code moves them by a thousandth.
fn tower_twin(device: &Arc<dyn Device>, sources: Vec<usize>, allowed: f64) -> Result<Option<String>> {
    let rqvae = RqVaeConfig { sources, ..RqVaeConfig::default() };
    let config = QuantizerConfig { codebook_size: 32, rqvae, ..QuantizerConfig::default() };
    let content = (0..2000 * 300).map(|at| (draw(5, at) % 2001) as f32 / 1000.0 - 1.0).collect();
    let content = Vectors::new(300, content)?;
    let apart = towers_apart(&config, &content, &Behavior::default(), 4, &accelerator(device))?;
    let (loss, gradients, weights) = (apart.loss, apart.all_gradients, apart.weights);
    // No number is not fine either.
    let fine = loss <= allowed && gradients <= allowed && weights <= 20.0 * allowed;
    Ok((!fine).then(|| format!("loss {loss:.1e}, gradients {gradients:.1e}, weights {weights:.1e} off")))
}

/// What is wrong with a quantiser that was fitted on `device` and encodes there: it may be a twentieth worse than the
/// processor's, and of its codes one in a thousand may be others than the processor's, where two codewords are equally near.
fn quantizer_twin(device: &Arc<dyn Device>, method: Method) -> Result<Option<String>> {
    const ITEMS: usize = 20_000;
    let config = QuantizerConfig { method, codebook_size: 64, ..QuantizerConfig::default() };
    let content =
        (0..(ITEMS * 96) as u64).map(|at| (draw(draw(3, at / 96) % 500, at % 96) % 2001) as f32 / 1000.0 - 1.0);
    let content: Vec<f32> =
        content.enumerate().map(|(at, x)| x + (draw(4, at as u64) % 1000) as f32 / 2000.0).collect();
    let content = Vectors::new(96, content)?;
    // Nodes of the hierarchical one are small here.
    let accelerator = accelerator_from(device, 1 << 20);
    let fit = |device| fit_quantizer_with(&config, &content, &Behavior::default(), device, &mut |_| ());
    let (host, fitted) = (fit(None)?.encode(&content)?, fit(Some(&accelerator))?);
    let (here, there) = (fitted.encode(&content)?, fitted.encode_on(&content, Some(&accelerator))?);
    let (expected, found) = (host.relative_error(&content), there.relative_error(&content));
    let others = (0..ITEMS).filter(|&item| here.codes.row(item) != there.codes.row(item)).count();
    let fine = found <= 1.05 * expected && others <= ITEMS / 1000;
    Ok((!fine)
        .then(|| format!("relative error {found:.4} for {expected:.4}, {others} of {ITEMS} items with other codes")))
}
