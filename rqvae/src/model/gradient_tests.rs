//! The gradients of a pass against central differences and small sums.

use super::config::RqVaeConfig;
use super::contrast::contrast;
use super::estimator::{CodebookUpdate, Estimator, Soft, gumbel};
use super::pass::{Shard, Step};
use super::rqvae::RqVae;
use crate::cluster::squared_norms;
use crate::{Code, CodeMatrix, SeededRng};
use rand::Rng;

const CONTENT: usize = 5;
const LATENT: usize = 3;
const ROWS: usize = 60;

fn config() -> RqVaeConfig {
    RqVaeConfig { hidden: vec![7, 6], latent_dim: LATENT, beta: 0.4, ..RqVaeConfig::default() }
}

fn tiny(config: &RqVaeConfig) -> (RqVae, Vec<f32>) {
    let rng = SeededRng::new(11);
    let mut model = RqVae::new(config, CONTENT, &[4, 4], &rng).unwrap();
    let mut draw = rng.stream("test");
    model.codebooks.iter_mut().for_each(|e| *e = draw.random::<f32>() - 0.5);
    let x = (0..CONTENT * ROWS).map(|_| draw.random::<f32>() * 2.0 - 1.0).collect();
    (model, x)
}

fn pass_over(model: &RqVae, mut shard: Shard) -> Shard {
    let mut noise = SeededRng::new(4).stream("noise");
    let step = Step { norms: &squared_norms(&model.codebooks, LATENT), scale: 1.0 / ROWS as f32, temperature: 0.8 };
    model.backward(&mut shard, &step, &mut || gumbel(&mut noise));
    shard
}

fn pass(model: &RqVae, x: &[f32]) -> Shard {
    let mut shard = Shard::default();
    shard.rows.x = x.to_vec();
    pass_over(model, shard)
}

fn square(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The loss by Gumbel-softmax, everything under a stop-gradient held at what `base` makes of it.
fn soft_surrogate(model: &RqVae, base: &RqVae, x: &[f32]) -> f64 {
    let levels = |model: &RqVae, held: &[Soft]| {
        let mut noise = SeededRng::new(4).stream("noise");
        let mut running = model.encode(x);
        let mut found = Vec::new();
        for level in 0..model.levels() {
            let codebook = &model.codebooks[model.codebook(level)];
            let noise = &mut || gumbel(&mut noise);
            // The precision is a constant to all gradients.
            let precision = held.get(level).map(|held| held.precision);
            let soft = Soft::mix(&running, codebook, LATENT, 0.8, precision, noise);
            running.iter_mut().zip(&soft.mixed).for_each(|(r, q)| *r -= q);
            found.push(soft);
        }
        found
    };
    let held = levels(base, &[]);
    let now = levels(model, &held);
    let mut loss = 0.0;
    let mut quantized = vec![0.0; ROWS * LATENT];
    for (now, held) in now.iter().zip(&held) {
        loss +=
            f64::from(model.config.beta) * square(&now.residuals, &held.mixed) + square(&held.residuals, &now.mixed);
        quantized.iter_mut().zip(&now.mixed).for_each(|(z, q)| *z += q);
    }
    (loss + square(&model.decode(&quantized), x)) / ROWS as f64
}

#[test]
fn soft_gradients_equal_central_differences() {
    let estimator = Estimator::GumbelSoftmax;
    let (model, x) = tiny(&RqVaeConfig { estimator, codebook_update: CodebookUpdate::Gradient, ..config() });
    let shard = pass(&model, &x);
    assert!((soft_surrogate(&model, &model, &x) - model.loss(&shard.terms) / ROWS as f64).abs() < 1e-4);
    let check = |name: &str, i: usize, found: f32, change: &dyn Fn(&mut RqVae, f32)| {
        let loss_at = |delta: f32| {
            let mut other = model.clone();
            change(&mut other, delta);
            soft_surrogate(&other, &model, &x)
        };
        let (found, expected) = (f64::from(found), (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3);
        assert!((found - expected).abs() < 3e-3 + 0.02 * expected.abs(), "{name} {i}: {found}, not {expected}");
    };
    for i in 0..model.params.len() {
        check("parameter", i, shard.grads[i], &|model, delta| model.params[i] += delta);
    }
    for i in 0..model.codebooks.len() {
        check("codeword", i, shard.book[i], &|model, delta| model.codebooks[i] += delta);
    }
}

#[test]
fn codewords_by_gradient_on_paper() {
    let (model, x) = tiny(&RqVaeConfig { codebook_update: CodebookUpdate::Gradient, ..config() });
    let shard = pass(&model, &x);
    let latent = model.encode(&x);
    for (place, codeword) in model.codebooks[..4 * LATENT].chunks(LATENT).enumerate() {
        let rows = (0..ROWS).filter(|&i| usize::from(shard.codes[0][i]) == place);
        let expected: f32 = rows.map(|i| 2.0 * (codeword[0] - latent[i * LATENT]) / ROWS as f32).sum();
        assert!((shard.book[place * LATENT] - expected).abs() < 1e-4);
    }
}

/// Sums of the codewords of `base` down to `depth` (rows,), from its codes.
fn quantized(base: &RqVae, codes: &[Vec<Code>], depth: impl Fn(usize) -> usize) -> Vec<f32> {
    let stack = base.quantizer();
    let mut sums = Vec::new();
    for row in 0..codes[0].len() {
        let mut sum = vec![0.0; LATENT];
        for (level, codes) in codes.iter().enumerate().take(depth(row)) {
            let at = base.codebook(level).start + usize::from(codes[row]) * LATENT;
            sum.iter_mut().zip(&base.codebooks[at..]).for_each(|(sum, e)| *sum += e);
        }
        sums.extend(sum);
    }
    let all = CodeMatrix::new(codes.len(), (0..codes[0].len()).flat_map(|i| codes.iter().map(move |c| c[i])).collect());
    if (0..codes[0].len()).all(|row| depth(row) == codes.len()) {
        assert!(square(&sums, &stack.lookup(&all.unwrap())) < 1e-8);
    }
    sums
}

/// The loss with everything under a stop-gradient held at `base`: what the gradients are the derivative of.
fn surrogate(model: &RqVae, base: &RqVae, shard: &Shard) -> f64 {
    let (rows, codes, config) = (&shard.rows, &shard.codes, &model.config);
    let (z, z0) = (model.encode(&rows.x), base.encode(&rows.x));
    let depth = |row: usize| rows.depths.get(row).copied().unwrap_or(codes.len());
    let mut loss = 0.0;
    for level in 0..codes.len() {
        let held = quantized(base, codes, |_| level + 1);
        for row in (0..codes[0].len()).filter(|&row| depth(row) > level) {
            let range = row * LATENT..(row + 1) * LATENT;
            loss += f64::from(config.beta) * square(&z[range.clone()], &held[range]);
        }
    }
    let held = quantized(base, codes, depth);
    let through: Vec<f32> = z.iter().zip(&z0).zip(&held).map(|((z, z0), e)| z + (e - z0)).collect();
    loss += square(&model.decode(&through), &rows.x);
    if !rows.pairs.is_empty() {
        let of = |side: &dyn Fn(&(usize, usize)) -> usize| -> Vec<f32> {
            rows.pairs.iter().flat_map(|pair| through[side(pair) * LATENT..][..LATENT].to_vec()).collect()
        };
        let (anchors, keys) = (of(&|pair| pair.0), of(&|pair| pair.1));
        let item = |row: usize| rows.items[row];
        let same = |i: usize, j: usize| [item(rows.pairs[i].1), item(rows.pairs[i].0)].contains(&item(rows.pairs[j].1));
        let mut unused = vec![0.0; anchors.len()];
        let told = contrast(&anchors, &keys, LATENT, config.contrast_temperature, &same, 0.0, &mut unused, None);
        loss += f64::from(config.contrast_weight) * told;
    }
    if !rows.collaborative.is_empty() {
        // Every second item has a vector.
        let known: Vec<usize> = (0..rows.items.len()).filter(|row| rows.items[*row] % 2 == 0).collect();
        let of =
            |x: &[f32]| -> Vec<f32> { known.iter().flat_map(|row| x[row * LATENT..][..LATENT].to_vec()).collect() };
        let (anchors, keys) = (of(&through), of(&rows.collaborative));
        let same = |i: usize, j: usize| rows.items[known[i]] == rows.items[known[j]];
        let mut unused = vec![0.0; anchors.len()];
        let told = contrast(&anchors, &keys, LATENT, config.contrast_temperature, &same, 0.0, &mut unused, None);
        loss += f64::from(config.align_weight) * told;
    }
    loss / ROWS as f64
}

fn gradients_are_those_of_the_surrogate(model: &RqVae, shard: &Shard) {
    let (base, loss) = (surrogate(model, model, shard), model.loss(&shard.terms) / ROWS as f64);
    assert!((base - loss).abs() < 2e-5 * base, "{base} {loss}");
    for i in 0..model.params.len() {
        let loss_at = |delta: f32| {
            let mut other = model.clone();
            other.params[i] += delta;
            surrogate(&other, model, shard)
        };
        let expected = (loss_at(2e-3) - loss_at(-2e-3)) / 4e-3;
        let found = f64::from(shard.grads[i]);
        assert!((found - expected).abs() < 2e-3 + 0.01 * expected.abs(), "{i}: {found}, not {expected}");
    }
    // Single units may be silent, whole tensors may not.
    for (name, shape, at) in model.layout() {
        let grads = &shard.grads[at..at + shape.iter().product::<usize>()];
        assert!(grads.iter().any(|g| *g != 0.0), "{name} has no gradient");
    }
}

#[test]
fn gradients_equal_central_differences() {
    let (model, x) = tiny(&config());
    gradients_are_those_of_the_surrogate(&model, &pass(&model, &x));
}

/// Two sources, depths, items of the same sessions and collaborative vectors, all at once.
#[test]
fn gradients_of_all_additions_equal_central_differences() {
    let options = RqVaeConfig {
        sources: vec![2, 3],
        progressive: true,
        contrast_weight: 0.7,
        contrast_temperature: 0.5,
        align_weight: 0.6,
        ..config()
    };
    let (mut model, x) = tiny(&options);
    // Cosines of long vectors bend little within the step of a difference.
    model.codebooks.iter_mut().for_each(|e| *e *= 4.0);
    let mut shard = Shard::default();
    shard.rows.x = x;
    // Rows 40 on are partners; some items come twice.
    shard.rows.items = (0..ROWS as u32).map(|row| row * 7 % 50).collect();
    shard.rows.depths = (0..ROWS).map(|row| 1 + row % 2).collect();
    shard.rows.pairs = (0..20).map(|at| (at * 2, 40 + at)).collect();
    let mut draw = SeededRng::new(9).stream("collaborative");
    for item in shard.rows.items.clone() {
        let vector = (0..LATENT).map(|_| if item % 2 == 0 { draw.random::<f32>() - 0.5 } else { 0.0 });
        shard.rows.collaborative.extend(vector);
    }
    let shard = pass_over(&model, shard);
    assert!(shard.terms.contrast > 0.0 && shard.terms.alignment > 0.0);
    gradients_are_those_of_the_surrogate(&model, &shard);
    // What a row does not count for, it does not move.
    let second: f32 = shard.counts[4..].iter().sum();
    assert_eq!(second, (ROWS / 2) as f32);
}

#[test]
fn counts_and_sums_are_those_of_the_codes() {
    let (model, x) = tiny(&config());
    let shard = pass(&model, &x);
    let latent = model.encode(&x);
    for code in 0..4 {
        let rows: Vec<usize> = (0..ROWS).filter(|&i| shard.codes[0][i] == code).collect();
        let place = usize::from(code);
        assert_eq!(shard.counts[place], rows.len() as f32);
        for d in 0..LATENT {
            let sum: f32 = rows.iter().map(|i| latent[i * LATENT + d]).sum();
            assert!((shard.sums[place * LATENT + d] - sum).abs() < 1e-4);
        }
    }
    assert_eq!(shard.counts[4..].iter().sum::<f32>(), ROWS as f32);
}

#[test]
fn shards_add_up() {
    let (model, x) = tiny(&config());
    let (all, a, b) = (pass(&model, &x), pass(&model, &x[..40 * CONTENT]), pass(&model, &x[40 * CONTENT..]));
    for ((all, a), b) in all.grads.iter().zip(&a.grads).zip(&b.grads) {
        assert!((all - a - b).abs() < 1e-5);
    }
    assert!((model.loss(&all.terms) - model.loss(&a.terms) - model.loss(&b.terms)).abs() < 1e-4);
}
