//! Every option of every quantiser changes something.

use super::method_tests::{config, heaps};
use super::{Behavior, Encoded, Method, QuantizerConfig, Vectors, fit_quantizer_with};
use crate::ItemIdx;

/// Histories over `items` items: neighbours of every fifth item.
pub(super) fn behavior(items: u32) -> Behavior {
    let histories: Vec<Vec<ItemIdx>> =
        (0..items).map(|i| [i, (i + 5) % items, (i + 10) % items].map(ItemIdx).to_vec()).collect();
    Behavior::of_histories(items as usize, histories.iter().map(Vec::as_slice), 2)
}

/// What the quantiser makes of `content`, with `options` laid over `base`.
fn outcome(base: &QuantizerConfig, options: &[&str], content: &Vectors) -> Encoded {
    let mut json = serde_json::to_value(base).unwrap();
    for option in options {
        let (path, value) = option.split_once('=').unwrap();
        *json.pointer_mut(&format!("/{}", path.replace('.', "/"))).unwrap() = serde_json::from_str(value).unwrap();
    }
    let config: QuantizerConfig = serde_json::from_value(json).unwrap();
    config.validate().unwrap();
    let behavior = behavior(content.rows() as u32);
    let quantizer = fit_quantizer_with(&config, content, &behavior, None, &mut |_| ()).unwrap();
    assert_eq!(quantizer.codebook_sizes(), config.sizes());
    quantizer.encode(content).unwrap()
}

#[test]
fn every_option_of_the_rqvae_changes_something() {
    let content = heaps(200);
    // What an option adds to, beside the option itself: both sides have the former.
    let gumbel = r#"rqvae.estimator="gumbel-softmax""#;
    let gradient = r#"rqvae.codebook_update="gradient""#;
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[r#"rqvae.estimator="rotation-trick""#]),
        (&[], &[gradient]),
        (&[gradient], &[gumbel]),
        (&[gradient, gumbel], &["rqvae.temperature=2.0"]),
        (&[gradient, gumbel], &["rqvae.last_temperature=0.5"]),
        (&[], &["rqvae.sinkhorn_epsilon=0.01"]),
        (&["rqvae.sinkhorn_epsilon=0.01"], &["rqvae.sinkhorn_all_levels=true"]),
        (&[], &["rqvae.sources=[4,8]"]),
        (&[], &["rqvae.progressive=true"]),
        (&[], &["rqvae.contrast_weight=1"]),
        (&["rqvae.contrast_weight=1"], &["rqvae.contrast_temperature=1"]),
        (&[], &["rqvae.align_weight=1"]),
        (&[gradient], &["rqvae.diversity_weight=1"]),
        (&[gradient, "rqvae.diversity_weight=1"], &["rqvae.diversity_groups=3"]),
        (&[], &["rqvae.beta=1.0"]),
        (&[], &["rqvae.decay=0.5"]),
        (&[], &["rqvae.hidden=[24]"]),
        (&[], &["rqvae.latent_dim=6"]),
        (&[], &["rqvae.epochs=30"]),
        (&[], &["rqvae.min_steps=140"]),
        (&[], &["rqvae.batch_size=50"]),
        (&[], &["rqvae.learning_rate=0.002"]),
        (&[], &["rqvae.weight_decay=1.0"]),
        (&["rqvae.learning_rate=0.05"], &["rqvae.reset_every=4"]),
        (&["rqvae.learning_rate=0.05", "rqvae.reset_every=4"], &["rqvae.reset_until=1.0"]),
        (&["rqvae.learning_rate=0.05"], &["rqvae.check_every=1"]),
        (&["rqvae.learning_rate=0.05", "rqvae.check_every=1"], &["rqvae.unique_target=0.02"]),
        (&[], &["codebook_size=12"]),
        (&[], &["codebook_sizes=[16,8,4]"]),
        (&[], &["levels=2"]),
        (&[], &["seed=1"]),
    ];
    let base = config(Method::RqVae);
    for (both, option) in cases {
        let (without, with) = (outcome(&base, both, &content), outcome(&base, &[both, *option].concat(), &content));
        assert!(with.relative_error(&content).is_finite(), "{option:?}");
        assert!(without.reconstruction != with.reconstruction, "{option:?} changes nothing");
    }
}

#[test]
fn every_option_of_the_others_changes_something() {
    let content = heaps(300);
    let cases: &[(Method, &[&str], &[&str])] = &[
        (Method::ResidualKmeans, &[], &["rkmeans.iterations=1"]),
        (Method::ResidualKmeans, &[], &["rkmeans.tolerance=0.5"]),
        (Method::ResidualKmeans, &[], &["rkmeans.items_per_code=4"]),
        (Method::ResidualKmeans, &[], &["rkmeans.normalize=true"]),
        (Method::ResidualKmeans, &[], &["codebook_sizes=[16,8,4]"]),
        (Method::Balanced, &[], &["rkmeans.iterations=0"]),
        (Method::Balanced, &[], &["codebook_sizes=[8,8,16]"]),
        (Method::HierarchicalKmeans, &[], &["hkmeans.leaf_size=40"]),
        (Method::HierarchicalKmeans, &[], &["hkmeans.iterations=0"]),
        (Method::HierarchicalKmeans, &[], &["hkmeans.items_per_code=2"]),
        (Method::Opq, &[], &["opq.alternations=1"]),
        (Method::Opq, &[], &["opq.iterations=1"]),
        (Method::Opq, &[], &["opq.items_per_code=4"]),
        (Method::Random, &[], &["codebook_sizes=[16,8,4]"]),
        (Method::Lsh, &[], &["codebook_size=8"]),
    ];
    for (method, both, option) in cases {
        let base = config(*method);
        let (without, with) = (outcome(&base, both, &content), outcome(&base, &[both, *option].concat(), &content));
        assert!(without.codes != with.codes, "{method:?}: {option:?} changes nothing");
    }
}
