//! What holds for every quantiser.

use super::option_tests::behavior;
use super::{Behavior, FILE, Method, QuantizerConfig, SidEncoder, Vectors};
use super::{fit_quantizer, fit_quantizer_with, load_quantizer};
use crate::model::{CodebookUpdate, Estimator, RqVaeConfig};
use crate::{Error, SeededRng, SidStats};
use rand::Rng;

const METHODS: [Method; 7] = [
    Method::RqVae,
    Method::ResidualKmeans,
    Method::Balanced,
    Method::HierarchicalKmeans,
    Method::Opq,
    Method::Lsh,
    Method::Random,
];
const NAMES: [&str; 7] = ["rqvae", "rkmeans", "balanced", "hkmeans", "opq", "lsh", "random"];

pub(super) fn config(method: Method) -> QuantizerConfig {
    let rqvae = RqVaeConfig {
        hidden: vec![24, 16],
        latent_dim: 8,
        epochs: 24,
        min_steps: 0,
        batch_size: 64,
        check_every: 6,
        ..RqVaeConfig::default()
    };
    QuantizerConfig { method, codebook_size: 16, rqvae, ..QuantizerConfig::default() }
}

pub(super) fn heaps(items: usize) -> Vectors {
    let mut rng = SeededRng::new(7).stream("heaps");
    let data = (0..items)
        .flat_map(|i| (0..12).map(move |d| ((i % 5) * (d + 1) % 7) as f32))
        .map(|x| x + rng.random::<f32>())
        .collect();
    Vectors::new(12, data).unwrap()
}

fn fit(config: &QuantizerConfig, content: &Vectors) -> Box<dyn SidEncoder> {
    fit_quantizer(config, content, &mut |_| ()).unwrap()
}

#[test]
fn round_trip_and_flipped_byte() {
    let content = heaps(300);
    for method in METHODS {
        let quantizer = fit(&config(method), &content);
        let dir = tempfile::tempdir().unwrap();
        quantizer.save(dir.path()).unwrap();
        let loaded = load_quantizer(dir.path()).unwrap();
        assert_eq!(loaded.method(), quantizer.method());
        assert_eq!(loaded.codebook_sizes(), [16; 3]);
        assert_eq!(loaded.encode(&content).unwrap(), quantizer.encode(&content).unwrap());
        let path = dir.path().join(FILE);
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 40) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 2;
            std::fs::write(&path, flipped).unwrap();
            assert!(bytes[at] == b' ' || load_quantizer(dir.path()).is_err(), "byte {at}");
        }
    }
}

#[test]
fn same_seed_same_bits_and_order_of_items_makes_no_difference() {
    let content = heaps(200);
    let mut data = content.data.clone();
    data.rotate_left(12 * 77);
    let turned = Vectors::new(12, data).unwrap();
    for method in METHODS {
        let codes = |c: &Vectors| fit(&config(method), c).encode(c).unwrap().codes;
        let (a, b) = (codes(&content), codes(&turned));
        assert_eq!(a, codes(&content));
        assert!((0..200).all(|i| a.row((i + 77) % 200) == b.row(i)), "{method:?}");
        let other = QuantizerConfig { seed: 1, ..config(method) };
        assert_ne!(a, fit(&other, &content).encode(&content).unwrap().codes);
    }
}

#[test]
fn hostile_content_is_fitted_or_refused() {
    let single = heaps(1);
    let few = heaps(5);
    let zeros = Vectors::new(4, vec![0.0; 40]).unwrap();
    let equal = Vectors::new(3, [1e6, -0.1, 3e-9].repeat(30)).unwrap();
    let huge = Vectors::new(2, (0..60).map(|i| if i % 3 == 0 { 3e38 } else { -3e38 }).collect()).unwrap();
    let tiny = Vectors::new(2, (0..60).map(|i| i as f32 * 1e-42).collect()).unwrap();
    for method in METHODS {
        for content in [&single, &few, &zeros, &equal, &huge, &tiny] {
            let encoded = fit(&config(method), content).encode(content).unwrap();
            encoded.reconstruction.check().unwrap();
            assert!(encoded.relative_error(content).is_finite());
            assert_eq!(SidStats::of(&encoded.codes, &[16; 3]).items, content.rows());
        }
        let nothing = Vectors::new(4, vec![]).unwrap();
        let refused = |content: &Vectors| fit_quantizer(&config(method), content, &mut |_| ()).err().unwrap();
        assert!(matches!(refused(&nothing), Error::BadVectors { .. }));
        let nan = Vectors { dim: 2, data: vec![0.0, 1.0, 2.0, f32::NAN] };
        let infinite = Vectors { dim: 2, data: vec![0.0, f32::NEG_INFINITY] };
        assert!(matches!(refused(&infinite), Error::BadVectors { row: 0, .. }));
        assert!(matches!(refused(&nan), Error::BadVectors { row: 1, .. }));
        let quantizer = fit(&config(method), &few);
        assert!(matches!(quantizer.encode(&zeros), Err(Error::ShapeMismatch { .. })));
        assert!(matches!(quantizer.encode(&nan), Err(Error::BadVectors { row: 1, .. })));
        let nothing = Vectors::new(12, vec![]).unwrap();
        assert_eq!(quantizer.encode(&nothing).unwrap().codes.rows(), 0);
    }
}

/// The same content, whatever the estimator and whatever is added to the loss.
#[test]
fn hostile_content_is_no_matter_to_any_option_of_the_rqvae() {
    let of = |dim: usize, rows: usize, x: &dyn Fn(usize) -> f32| {
        Vectors::new(dim, (0..dim * rows).map(x).collect()).unwrap()
    };
    let contents = [
        of(4, 1, &|i| i as f32),
        of(4, 5, &|i| i as f32),
        of(4, 40, &|_| 0.0),
        of(3, 40, &|i| [1e6, -0.1, 3e-9][i % 3]),
        of(2, 40, &|i| if i % 3 == 0 { 3e38 } else { -3e38 }),
        of(2, 40, &|i| i as f32 * 1e-42),
    ];
    let base = config(Method::RqVae).rqvae;
    let gradient = RqVaeConfig { codebook_update: CodebookUpdate::Gradient, ..base.clone() };
    for rqvae in [
        RqVaeConfig { estimator: Estimator::RotationTrick, ..base.clone() },
        RqVaeConfig { estimator: Estimator::GumbelSoftmax, ..gradient.clone() },
        RqVaeConfig { diversity_weight: 1.0, ..gradient },
        RqVaeConfig { sinkhorn_epsilon: 0.01, sinkhorn_all_levels: true, ..base.clone() },
        RqVaeConfig { progressive: true, contrast_weight: 1.0, align_weight: 1.0, ..base },
    ] {
        for content in &contents {
            let rqvae = RqVaeConfig { sources: vec![1, content.dim - 1], epochs: 4, ..rqvae.clone() };
            let config = QuantizerConfig { rqvae, ..config(Method::RqVae) };
            let fitted = fit_quantizer_with(&config, content, &behavior(content.rows() as u32), None, &mut |_| ());
            match fitted {
                Ok(quantizer) => {
                    let encoded = quantizer.encode(content).unwrap();
                    encoded.reconstruction.check().unwrap();
                    assert!(encoded.relative_error(content).is_finite(), "{config:?}");
                }
                // Of five items or one, none occurs with another.
                Err(Error::InvalidConfig { field, .. }) => assert!(content.rows() <= 5 && field.ends_with("_weight")),
                Err(other) => panic!("{other}: {config:?}"),
            }
        }
    }
}

/// The last code is the nearest codeword to what the last level is given (prices aside).
#[test]
fn the_last_level_chooses_the_nearest() {
    let content = heaps(100);
    for method in METHODS {
        let quantizer = fit(&config(method), &content);
        let Some(last) = quantizer.last_level(&content).unwrap() else {
            assert!(matches!(method, Method::HierarchicalKmeans | Method::Lsh | Method::Random));
            continue;
        };
        let codes = quantizer.encode(&content).unwrap().codes;
        let distance = |i: usize, code: usize| {
            let pair = last.residuals[i * last.dim..].iter().zip(&last.codewords[code * last.dim..]);
            pair.take(last.dim).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        for i in (0..100).filter(|_| method != Method::Balanced) {
            let best = (0..16).map(|code| distance(i, code)).fold(f32::INFINITY, f32::min);
            assert!(distance(i, usize::from(codes.row(i)[2])) <= best + 1e-4, "{method:?} {i}");
        }
    }
}

#[test]
fn an_item_alone_has_the_same_codes() {
    let content = heaps(300);
    for method in METHODS {
        let quantizer = fit(&config(method), &content);
        let all = quantizer.encode(&content).unwrap();
        for i in [0, 17, 255, 256, 299] {
            let alone = quantizer.encode(&Vectors::new(12, content.row(i).to_vec()).unwrap()).unwrap();
            assert_eq!(alone.codes.row(0), all.codes.row(i));
        }
    }
}

/// With behaviour, too, neither the order of the items nor a second run changes a code.
#[test]
fn behaviour_follows_its_items() {
    let content = heaps(100);
    let order: Vec<u32> = (0..100).map(|i| (i + 23) % 100).collect();
    let data = order.iter().flat_map(|&i| content.row(i as usize).to_vec()).collect();
    let turned = Vectors::new(12, data).unwrap();
    let rqvae = RqVaeConfig {
        contrast_weight: 2.0,
        align_weight: 1.0,
        progressive: true,
        sources: vec![5, 7],
        ..config(Method::RqVae).rqvae
    };
    let config = QuantizerConfig { rqvae, codebook_sizes: vec![16, 8, 4], ..config(Method::RqVae) };
    let fit = |content: &Vectors, behavior: &Behavior| {
        fit_quantizer_with(&config, content, behavior, None, &mut |_| ()).unwrap()
    };
    let whole = behavior(100);
    let (a, b) = (fit(&content, &whole), fit(&turned, &whole.select(&order)));
    let (a, b) = (a.encode(&content).unwrap(), b.encode(&turned).unwrap());
    assert!(order.iter().enumerate().all(|(to, &from)| a.codes.row(from as usize) == b.codes.row(to)));
    assert!(matches!(
        fit_quantizer_with(&config, &content, &behavior(99), None, &mut |_| ()),
        Err(Error::ShapeMismatch { .. })
    ));
    let none = fit_quantizer(&config, &content, &mut |_| ()).err().unwrap();
    assert!(matches!(none, Error::InvalidConfig { .. }), "{none}");
}

/// Codes that the quantiser gave decode to its reconstruction; others are refused.
#[test]
fn codes_decode_to_the_reconstruction() {
    let content = heaps(100);
    for method in METHODS {
        let quantizer = fit(&config(method), &content);
        let encoded = quantizer.encode(&content).unwrap();
        if let Some(decoded) = quantizer.decode(&encoded.codes).unwrap() {
            assert!(quantizer.last_level(&content).unwrap().is_some());
            for (a, b) in decoded.data.iter().zip(&encoded.reconstruction.data) {
                assert!((a - b).abs() < 1e-4, "{method:?}: {a} {b}");
            }
        } else {
            assert!(quantizer.last_level(&content).unwrap().is_none());
        }
        let wrong = crate::CodeMatrix::new(3, vec![0, 16, 0]).unwrap();
        assert!(matches!(quantizer.decode(&wrong), Err(Error::ShapeMismatch { .. })));
        assert!(quantizer.decode(&crate::CodeMatrix::new(2, vec![0, 0]).unwrap()).is_err());
    }
}

#[test]
fn quantisers_keep_what_the_content_says() {
    let content = heaps(400);
    let error = |method| fit(&config(method), &content).encode(&content).unwrap().relative_error(&content);
    assert!(error(Method::ResidualKmeans) < 0.05);
    assert!(error(Method::Balanced) < 0.1);
    assert!(error(Method::HierarchicalKmeans) < 0.1);
    assert!(error(Method::Opq) < 0.2);
    assert!(error(Method::Lsh) < 0.9);
    assert!(error(Method::RqVae) < 0.5);
    assert!((error(Method::Random) - 1.0).abs() < 1e-3);
}

#[test]
fn names_and_limits() {
    for (method, name) in METHODS.into_iter().zip(NAMES) {
        assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{name}\""));
        assert_eq!(fit(&config(method), &heaps(40)).method(), name);
    }
    let refuse = |json: &str| serde_json::from_str::<QuantizerConfig>(json).map_or(true, |c| c.validate().is_err());
    for json in [
        r#"{"levels":0}"#,
        r#"{"levels":9}"#,
        r#"{"codebook_size":0}"#,
        r#"{"typo":1}"#,
        r#"{"rqvae":{"hidden":[0]}}"#,
        r#"{"rqvae":{"learning_rate":0}}"#,
        r#"{"rkmeans":{"tolerance":2}}"#,
        r#"{"rqvae":{"sinkhorn_epsilon":-1}}"#,
        r#"{"rqvae":{"estimator":"gumbel-softmax"}}"#,
        r#"{"rqvae":{"codebook_update":"gradient","estimator":"gumbel-softmax","temperature":0}}"#,
        r#"{"rqvae":{"last_temperature":-1}}"#,
        r#"{"rqvae":{"codebook_update":"gradient","estimator":"gumbel-softmax","sinkhorn_epsilon":0.01}}"#,
        r#"{"rqvae":{"diversity_weight":1}}"#,
        r#"{"rqvae":{"contrast_weight":-1}}"#,
        r#"{"rqvae":{"contrast_temperature":0}}"#,
        r#"{"rqvae":{"align_weight":-1}}"#,
        r#"{"rqvae":{"sources":[3,0]}}"#,
        r#"{"codebook_sizes":[16,8]}"#,
        r#"{"codebook_sizes":[16,8,0]}"#,
        r#"{"codebook_sizes":[16,8,4],"method":"opq"}"#,
        r#"{"hkmeans":{"leaf_size":0}}"#,
        r#"{"method":"lsh","codebook_size":10}"#,
    ] {
        assert!(refuse(json), "{json}");
    }
    assert!(!refuse(r#"{"levels":4,"method":"rkmeans"}"#));
}
