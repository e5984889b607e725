//! Searches for nearest codewords on the emulator against the host's, and whole quantisers fitted by them.

use super::towers_tests::{content, emulator};
use super::*;
use proptest::prelude::*;
use rqvae::{
    Accelerator, Behavior, Code, HierarchicalKmeansConfig, Method, OpqConfig, QuantizerConfig, ResidualKmeansConfig,
    SidEncoder, Vectors, fit_quantizer_with,
};
use std::sync::Arc;

fn score(x: &[f32], codeword: &[f32], norm: f32) -> f64 {
    let dot: f64 = x.iter().zip(codeword).map(|(a, b)| f64::from(a * b)).sum();
    0.5 * f64::from(norm) - dot
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No codeword is nearer than the one found, equal ones go to the first, and what is subtracted is what was found.
    #[test]
    fn what_is_found_is_nearest(
        rows in prop_oneof![1 => Just(0), 9 => 1usize..150], dim in 1usize..70, count in 1usize..90,
        seed in 0u64..1000, whole in any::<bool>(),
    ) {
        let Some(device) = emulator(seed) else { return Ok(()) };
        // Whole numbers make many equal scores, and exact ones.
        let number = |at: usize| {
            let draw = rqvae::mix(seed << 32 | at as u64) % 2001;
            if whole { (draw % 5) as f32 - 2.0 } else { draw as f32 / 1000.0 - 1.0 }
        };
        let points: Vec<f32> = (0..rows * dim).map(number).collect();
        let codewords: Vec<f32> = (0..count * dim).map(|at| number(at + (1 << 20))).collect();
        let norms: Vec<f32> = codewords.chunks(dim).map(|c| c.iter().map(|x| x * x).sum()).collect();
        let accelerator = accelerator(&device);
        let mut held = accelerator.points(&points, dim).unwrap();
        let mut products = vec![0.0; rows * count];
        held.dots(&codewords, &mut products).unwrap();
        let mut codes: Vec<Code> = vec![0; rows];
        held.nearest(&codewords, &norms, &mut codes).unwrap();
        held.subtract().unwrap();
        let mut left = vec![0.0; rows * dim];
        held.read(&mut left).unwrap();
        for (row, (x, &code)) in points.chunks(dim).zip(&codes).enumerate() {
            let own = usize::from(code);
            let score = |c: usize| score(x, &codewords[c * dim..][..dim], norms[c]);
            for c in 0..count {
                let product = f64::from(products[row * count + c]);
                prop_assert!((0.5 * f64::from(norms[c]) - score(c) - product).abs() < 1e-4);
                let least = if whole { if c < own { f64::EPSILON } else { 0.0 } } else { -1e-4 };
                prop_assert!(score(c) - score(own) >= least, "row {row}: code {own}, but {c}");
            }
            for d in 0..dim {
                prop_assert_eq!(left[row * dim + d], x[d] - codewords[own * dim + d]);
            }
        }
        held.unit().unwrap();
        held.read(&mut left).unwrap();
        for row in left.chunks(dim) {
            let norm: f32 = row.iter().map(|x| x * x).sum();
            prop_assert!(norm == 0.0 || (norm - 1.0).abs() < 1e-5);
        }
    }
}

const ITEMS: usize = 190;

fn configs() -> Vec<QuantizerConfig> {
    let of = |method| QuantizerConfig { method, levels: 2, codebook_size: 12, seed: 5, ..QuantizerConfig::default() };
    let rkmeans = ResidualKmeansConfig { iterations: 6, normalize: true, ..ResidualKmeansConfig::default() };
    let hkmeans = HierarchicalKmeansConfig { leaf_size: 6, iterations: 6, ..HierarchicalKmeansConfig::default() };
    let opq = OpqConfig { alternations: 2, ..OpqConfig::default() };
    vec![
        of(Method::ResidualKmeans),
        QuantizerConfig { rkmeans, ..of(Method::ResidualKmeans) },
        // Prices settle by hundreds of searches.
        QuantizerConfig { levels: 1, ..of(Method::Balanced) },
        QuantizerConfig { hkmeans, ..of(Method::HierarchicalKmeans) },
        QuantizerConfig { opq, ..of(Method::Opq) },
        QuantizerConfig { codebook_size: 16, ..of(Method::Lsh) },
    ]
}

fn fit(config: &QuantizerConfig, content: &Vectors, device: Option<&dyn Accelerator>) -> Box<dyn SidEncoder> {
    fit_quantizer_with(config, content, &Behavior::default(), device, &mut |_| ()).unwrap()
}

/// Whole fits by every method: as good as the host's, with the same bits whatever the order of the threads, and what is
/// fitted encodes alike on both sides.
#[test]
fn quantizers_are_as_good_as_the_hosts() {
    let [Some(first), Some(second)] = [11, 12].map(emulator) else { return };
    let [first, second] = [first, second].map(|device: Arc<dyn Device>| accelerator_from(&device, 30_000));
    let content = content(ITEMS, 24);
    for config in configs() {
        let host = fit(&config, &content, None).encode(&content).unwrap();
        let fitted = fit(&config, &content, Some(&first));
        let there = fitted.encode_on(&content, Some(&first)).unwrap();
        let here = fitted.encode(&content).unwrap();
        let equal = (0..ITEMS).filter(|&i| here.codes.row(i) == there.codes.row(i)).count();
        assert!(equal + 2 >= ITEMS, "{:?}: {equal} of {ITEMS} items have the same codes", config.method);
        let (expected, found) = (host.relative_error(&content), there.relative_error(&content));
        assert!((found - expected).abs() < 0.03 * expected, "{:?}: {found} {expected}", config.method);
        let again = fit(&config, &content, Some(&second)).encode_on(&content, Some(&second)).unwrap();
        assert_eq!(again, there, "{:?}", config.method);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let Some(device) = emulator(13) else { return };
    let accelerator = accelerator(&device);
    assert!(accelerator.points(&[0.0; 7], 2).is_err());
    let mut held = accelerator.points(&[0.0; 8], 2).unwrap();
    let refused = |outcome: rqvae::Result<()>| outcome.unwrap_err().to_string();
    assert!(refused(held.subtract()).contains("a search before"));
    assert!(refused(held.nearest(&[0.0; 3], &[0.0], &mut [0; 4])).contains("codewords"));
    assert!(refused(held.nearest(&[0.0; 4], &[0.0], &mut [0; 4])).contains("norms of codewords"));
    assert!(refused(held.nearest(&[0.0; 4], &[0.0; 2], &mut [0; 3])).contains("room for codes"));
    assert!(refused(held.dots(&[0.0; 4], &mut [0.0; 3])).contains("room for products"));
    assert!(refused(held.read(&mut [0.0; 3])).contains("room for points"));
    // No score is a number, so no codeword is the nearest.
    assert!(refused(held.nearest(&[f32::NAN; 4], &[0.0; 2], &mut [0; 4])).contains("found by the device"));
}
