//! The towers of an RQ-VAE on the emulator against the host's: loss, every gradient, ten steps, whole fits.

use super::*;
use rqvae::{
    Accelerator, Behavior, CodebookUpdate, DevicePoints, Encoded, Estimator, ItemIdx, QuantizerConfig, RqVaeConfig,
    SidEncoder, TowerStart, Towers, TowersApart, Vectors, file_digest, fit_quantizer_with, mix, towers_apart,
};
use std::sync::Arc;

pub(super) fn emulator(seed: u64) -> Option<Arc<dyn Device>> {
    match Emulator::new(seed) {
        Ok(emulator) => Some(Arc::new(emulator)),
        Err(e) if e.to_string().contains("no C++ compiler") => {
            eprintln!("SKIPPED quantisers on the emulator: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Vectors around some centres.
pub(super) fn content(items: usize, dim: usize) -> Vectors {
    let unit = |key: u64| (mix(key) % 2000) as f32 / 1000.0 - 1.0;
    let of = |i: usize| {
        let centre = mix((i / dim) as u64) % 19;
        unit(centre * 1000 + (i % dim) as u64) + 0.3 * unit(900_000 + i as u64)
    };
    Vectors::new(dim, (0..items * dim).map(of).collect()).unwrap()
}

fn behavior(items: usize) -> Behavior {
    let items_of = |user: u64| (0..6).map(move |t| ItemIdx((mix(user * 31 + t) % items as u64) as u32)).collect();
    let histories: Vec<Vec<ItemIdx>> = (0..items as u64 / 4).map(items_of).collect();
    Behavior::of_histories(items, histories.iter().map(|history| &history[..]), 1)
}

fn small(rqvae: RqVaeConfig) -> QuantizerConfig {
    QuantizerConfig { levels: 3, codebook_size: 12, seed: 5, rqvae, ..QuantizerConfig::default() }
}

fn base() -> RqVaeConfig {
    RqVaeConfig {
        hidden: vec![70, 33],
        latent_dim: 9,
        epochs: 8,
        min_steps: 1,
        batch_size: 300,
        check_every: 2,
        reset_every: 2,
        ..RqVaeConfig::default()
    }
}

/// Two sources, with all that behaviour adds.
fn rich() -> RqVaeConfig {
    RqVaeConfig {
        sources: vec![10, 14],
        progressive: true,
        contrast_weight: 3.0,
        align_weight: 2.0,
        estimator: Estimator::RotationTrick,
        ..base()
    }
}

/// Sums of a few hundred products in another order.
const F32: f64 = 2e-5;

fn check(apart: &TowersApart, name: &str) {
    assert!(apart.loss < F32 && apart.all_gradients < F32, "{name}: {} {}", apart.loss, apart.all_gradients);
    assert!(apart.gradients.len() >= 4);
    for (parameter, gap) in &apart.gradients {
        assert!(*gap < F32, "{name}, gradient of {parameter}: {gap}");
    }
}

/// Every gradient of one step, where widths fill no tile, one source and two, and with every estimator.
#[test]
fn a_step_is_the_hosts() {
    let Some(device) = emulator(1) else { return };
    let (content, behavior) = (content(330, 24), behavior(330));
    for (name, rqvae) in [
        ("one source", base()),
        ("two sources", rich()),
        ("no hidden layer", RqVaeConfig { hidden: Vec::new(), ..rich() }),
        (
            "Gumbel-softmax",
            RqVaeConfig {
                estimator: Estimator::GumbelSoftmax,
                codebook_update: CodebookUpdate::Gradient,
                sources: vec![3, 20, 1],
                ..base()
            },
        ),
        ("Sinkhorn", RqVaeConfig { sinkhorn_epsilon: 0.05, sinkhorn_all_levels: true, ..base() }),
    ] {
        check(&towers_apart(&small(rqvae), &content, &behavior, 0, &accelerator(&device)).unwrap(), name);
    }
}

/// So many rows that a weight's gradient is summed in parts.
#[test]
fn sums_over_many_rows_are_taken_in_parts() {
    let Some(device) = emulator(2) else { return };
    let rqvae = RqVaeConfig { hidden: vec![20], batch_size: 1200, ..base() };
    assert!(train::parts(20, 24, 1200) > 1);
    let apart = towers_apart(&small(rqvae), &content(1200, 24), &Behavior::default(), 0, &accelerator(&device));
    check(&apart.unwrap(), "parts");
}

/// Ten steps, over batches of two sizes. Rounding decides the sign of gradients next to zero, of which the optimiser
/// makes whole steps, so weights drift apart a little faster than gradients do.
#[test]
fn ten_steps_end_where_the_hosts_do() {
    let Some(device) = emulator(3) else { return };
    let (content, behavior) = (content(330, 24), behavior(330));
    for rqvae in [base(), rich()] {
        let apart = towers_apart(&small(rqvae), &content, &behavior, 10, &accelerator(&device)).unwrap();
        assert!(apart.loss < 1e-4 && apart.weights < 0.01, "{} {}", apart.loss, apart.weights);
    }
}

fn fit(device: Option<&Arc<dyn Device>>, rqvae: RqVaeConfig) -> (Box<dyn SidEncoder>, Vec<f64>) {
    let mut losses = Vec::new();
    let mut progress = |p: rqvae::FitProgress| losses.extend(p.loss);
    let (content, behavior) = (content(330, 24), behavior(330));
    let config = small(rqvae);
    let fitted = match device {
        None => fit_quantizer_with(&config, &content, &behavior, None, &mut progress),
        Some(device) => fit_quantizer_with(&config, &content, &behavior, Some(&accelerator(device)), &mut progress),
    };
    (fitted.unwrap(), losses)
}

/// A whole fit: losses of all epochs and nearly all codes, of which some lie next to a border.
#[test]
fn a_fit_is_nearly_the_hosts() {
    let Some(emulator) = emulator(4) else { return };
    for rqvae in [base(), rich()] {
        let ((host, expected), (device, found)) = (fit(None, rqvae.clone()), fit(Some(&emulator), rqvae));
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 0.01 * b, "{found:?} {expected:?}");
        }
        let content = content(330, 24);
        let there = device.encode_on(&content, Some(&accelerator(&emulator))).unwrap();
        let (host, device) = (host.encode(&content).unwrap(), device.encode(&content).unwrap());
        let equal = |a: &Encoded, b: &Encoded| (0..330).filter(|&i| a.codes.row(i) == b.codes.row(i)).count();
        assert!(equal(&host, &device) >= 314, "{} of 330 items have the same codes", equal(&host, &device));
        // The same weights, which only round otherwise.
        assert!(equal(&there, &device) >= 328, "{} of 330 items have the same codes", equal(&there, &device));
        let apart =
            there.reconstruction.data.iter().zip(&device.reconstruction.data).filter(|(a, b)| (*a - *b).abs() > 1e-4);
        assert!(apart.count() <= 2 * 24);
    }
}

/// The same bits whatever the order of the threads, which is what tells a race.
#[test]
fn the_order_of_threads_makes_no_difference() {
    let [Some(first), Some(second)] = [5, 6].map(emulator) else { return };
    let dir = tempfile::tempdir().unwrap();
    let digest = |device: &Arc<dyn Device>| {
        fit(Some(device), RqVaeConfig { epochs: 3, ..rich() }).0.save(dir.path()).unwrap();
        file_digest(&dir.path().join("quantizer.safetensors")).unwrap()
    };
    assert_eq!(digest(&first), digest(&second));
}

/// Towers that answer wrongly from some call on.
struct Wrong {
    inner: Box<dyn Towers>,
    calls: u32,
    from: u32,
    loss: f64,
}

impl Towers for Wrong {
    fn encode(&mut self, x: &[f32], latents: &mut Vec<f32>) -> rqvae::Result<()> {
        self.inner.encode(x, latents)
    }

    fn decode(&mut self, quantized: &[f32], scale: f32, flow: &mut Vec<f32>) -> rqvae::Result<f64> {
        self.calls += 1;
        let loss = self.inner.decode(quantized, scale, flow)?;
        Ok(if self.calls >= self.from { self.loss * loss } else { loss })
    }

    fn back(&mut self, flow: &[f32]) -> rqvae::Result<()> {
        self.inner.back(flow)
    }

    fn update(&mut self, learning_rate: f32) -> rqvae::Result<()> {
        self.inner.update(learning_rate)
    }

    fn gradients(&mut self) -> rqvae::Result<Vec<f32>> {
        self.inner.gradients()
    }

    fn params(&mut self) -> rqvae::Result<Vec<f32>> {
        self.inner.params()
    }

    fn reconstruct(&mut self, quantized: &[f32], x: &mut Vec<f32>) -> rqvae::Result<()> {
        self.inner.reconstruct(quantized, x)
    }
}

/// A device whose towers are changed before they are used.
struct Changed<'a, C>(&'a dyn Accelerator, C);

impl<C: Fn(Box<dyn Towers>, &TowerStart) -> Box<dyn Towers> + Send + Sync> Accelerator for Changed<'_, C> {
    fn towers(&self, start: &TowerStart) -> rqvae::Result<Box<dyn Towers>> {
        Ok((self.1)(self.0.towers(start)?, start))
    }

    fn pays(&self, multiplications: usize) -> bool {
        self.0.pays(multiplications)
    }

    fn points(&self, points: &[f32], dim: usize) -> rqvae::Result<Box<dyn DevicePoints>> {
        self.0.points(points, dim)
    }
}

/// A device that computes something else is refused before it is learned from; what diverges later is an error too.
#[test]
fn wrong_devices_are_refused() {
    let Some(device) = emulator(7) else { return };
    let right = accelerator(&device);
    let content = content(100, 24);
    let fit = |from: u32, loss: f64| {
        let wrong = Changed(&right, |inner: Box<dyn Towers>, _: &TowerStart| -> Box<dyn Towers> {
            Box::new(Wrong { inner, calls: 0, from, loss })
        });
        let config = small(RqVaeConfig { epochs: 3, ..base() });
        fit_quantizer_with(&config, &content, &Behavior::default(), Some(&wrong), &mut |_| ()).err()
    };
    assert!(fit(u32::MAX, 1.0).is_none());
    for loss in [1.2, f64::NAN] {
        let error = fit(1, loss).unwrap();
        assert!(matches!(error, rqvae::Error::Disagreement { .. }), "{error}");
    }
    let error = fit(3, f64::NAN).unwrap();
    assert!(matches!(error, rqvae::Error::NonFinite { step: 2, .. }), "{error}");
}

#[test]
fn rows_that_do_not_fit_are_named() {
    let Some(device) = emulator(8) else { return };
    let right = accelerator(&device);
    let inspect = Changed(&right, |mut towers: Box<dyn Towers>, start: &TowerStart| {
        let (mut latents, mut flow) = (Vec::new(), Vec::new());
        let refused = |outcome: rqvae::Result<()>| outcome.unwrap_err().to_string();
        assert!(refused(towers.back(&[0.0; 9])).contains("gradient of the latents"));
        assert!(refused(towers.decode(&[0.0; 9], 1.0, &mut flow).map(|_| ())).contains("quantised latents"));
        for x in [&vec![0.0; 24 * (start.rows + 1)][..], &[], &[0.0; 23]] {
            assert!(refused(towers.encode(x, &mut latents)).contains("content of the towers"));
        }
        for quantized in [&vec![0.0; 9 * (start.rows + 1)][..], &[], &[0.0; 8]] {
            assert!(refused(towers.reconstruct(quantized, &mut flow)).contains("quantised latents"));
        }
        assert!(right.towers(&TowerStart { params: &start.params[1..], ..*start }).is_err());
        assert!(right.towers(&TowerStart { rows: 0, ..*start }).is_err());
        towers
    });
    let config = small(RqVaeConfig { epochs: 1, ..base() });
    fit_quantizer_with(&config, &content(40, 24), &Behavior::default(), Some(&inspect), &mut |_| ()).unwrap();
}
