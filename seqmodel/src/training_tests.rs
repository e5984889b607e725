//! What must hold for every model that trains: gradients reach every parameter, padding and caches change nothing,
//! the same seed gives the same bits, and a run that was cut resumes to them.

use crate::data::{Histories, History, Window, windows};
use crate::dense::{SasRec, SasRecConfig, SasRecLoss, SasRecRetriever};
use crate::generative::Generative;
use crate::nn::Parameters;
use crate::rqt::{PackedRqt, Rqt, RqtConfig, RqtSession};
use crate::tiger::{PackedTiger, Sample, Tiger, TigerConfig, TigerSession, samples};
use crate::train::{EpochRecord, Identity, Objective, Prepared, Stop, TrainConfig, Trainer, Validation};
use crate::{ItemFeatures, LeaveOneOut, Query, Retriever, SampleObjective, WindowObjective};
use beam::Trie;
use proptest::prelude::*;
use rqvae::{CheckpointDir, ItemIdx, Mode, SeededRng, SidSpec, SidTable, StepKeys, Vectors, mix};
use std::cell::Cell;
use std::sync::Arc;

const ITEMS: u32 = 40;

fn features() -> ItemFeatures {
    let spec = SidSpec { codebook_sizes: vec![5, 6], suffix_size: Some(4) };
    let codes = (0..ITEMS as u16).flat_map(|i| [i % 5, (i / 5) % 6, i / 30]).collect();
    let content = (0..ITEMS as usize * 7).map(|i| (mix(i as u64) % 1000) as f32 / 1000.0 - 0.5).collect();
    let content = Vectors::new(7, content).unwrap();
    ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), Some(Arc::new(content))).unwrap()
}

/// Users who walk through the catalogue with steps of their own.
fn histories() -> Histories {
    let user = |u: u32| (0..4 + u % 7).map(|t| ItemIdx((u * 3 + t * (1 + u % 3)) % ITEMS)).collect();
    Histories::new((0..60).map(user).collect())
}

fn rqt(seed: u64) -> (Rqt, Parameters) {
    let params = Parameters::new(seed);
    (Rqt::new(&small_rqt(), features(), &params.builder()).unwrap(), params)
}

fn small_rqt() -> RqtConfig {
    RqtConfig { dim: 16, heads: 2, head_dim: 8, hidden: 32, item_embedding: true, ..RqtConfig::default() }
}

/// With everything that the presets switch on.
fn guided_rqt(seed: u64) -> (Rqt, Parameters) {
    let params = Parameters::new(seed);
    let config = RqtConfig {
        valid_only: true,
        dense_weight: 1.0,
        guide: 0.5,
        look_back: 3,
        decoder_layers: 2,
        level_weights: vec![1.0; 3],
        ..small_rqt()
    };
    (Rqt::new(&config, features(), &params.builder()).unwrap(), params)
}

fn tiger(seed: u64) -> (Tiger, Parameters) {
    let params = Parameters::new(seed);
    let config = TigerConfig {
        dim: 16,
        heads: 2,
        head_dim: 8,
        hidden: 32,
        encoder_layers: 2,
        decoder_layers: 2,
        separator: true,
        ..TigerConfig::default()
    };
    (Tiger::new(&config, features(), &params.builder()).unwrap(), params)
}

fn sasrec(seed: u64) -> (SasRec, Parameters) {
    let params = Parameters::new(seed);
    let config = SasRecConfig { dim: 16, ..SasRecConfig::default() };
    (SasRec::new(&config, ITEMS as usize, &params.builder()).unwrap(), params)
}

/// Every parameter receives a gradient that is not zero: candle's fused operations would cut it without a word.
fn every_parameter_learns(objective: &dyn Objective<Prepared<'_>>, params: &Parameters) {
    let rows: Vec<u32> = (0..objective.lengths().len() as u32).collect();
    let keys = StepKeys::new(&SeededRng::new(0), 0);
    let grads = objective.prepare(&rows).unwrap()(Mode::Train(&keys)).unwrap().backward().unwrap();
    for (name, var) in params.all() {
        let grad = grads.get(&var).unwrap_or_else(|| panic!("no gradient for {name}"));
        let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
    }
}

#[test]
fn gradients_reach_every_parameter() {
    let histories = histories();
    let split = LeaveOneOut::new(&histories);
    let windows: Vec<Window> = windows(&split, 20);
    let samples = samples(&split, 20);
    let (model, params) = rqt(1);
    every_parameter_learns(&WindowObjective { model: &model, windows: &windows }, &params);
    let (model, params) = guided_rqt(1);
    every_parameter_learns(&WindowObjective { model: &model, windows: &windows }, &params);
    let (model, params) = tiger(1);
    every_parameter_learns(&SampleObjective { model: &model, samples: &samples }, &params);
    for loss in [
        SasRecLoss::CrossEntropy,
        SasRecLoss::SampledSoftmax { negatives: 9 },
        SasRecLoss::Bce { negatives: 3 },
        SasRecLoss::Gbce { negatives: 3, t: 0.7 },
    ] {
        let params = Parameters::new(1);
        let config = SasRecConfig { dim: 16, loss, ..SasRecConfig::default() };
        let model = SasRec::new(&config, ITEMS as usize, &params.builder()).unwrap();
        every_parameter_learns(&WindowObjective { model: &model, windows: &windows }, &params);
    }
}

/// gBCE with t = 0 is BCE; with t = 1 the positive weighs alpha; and the losses differ from one another.
#[test]
fn calibration_moves_from_bce_to_the_share_of_negatives() {
    let histories = histories();
    let windows = windows(&LeaveOneOut::new(&histories), 20);
    let rows: Vec<&Window> = windows.iter().collect();
    let loss = |loss: SasRecLoss| {
        let config = SasRecConfig { dim: 16, loss, ..SasRecConfig::default() };
        let model = SasRec::new(&config, ITEMS as usize, &Parameters::new(1).builder()).unwrap();
        model.loss(&rows, Mode::Eval).unwrap().to_scalar::<f32>().unwrap()
    };
    let bce = loss(SasRecLoss::Bce { negatives: 3 });
    assert!((loss(SasRecLoss::Gbce { negatives: 3, t: 0.0 }) - bce).abs() < 1e-5);
    let (half, full) =
        (loss(SasRecLoss::Gbce { negatives: 3, t: 0.5 }), loss(SasRecLoss::Gbce { negatives: 3, t: 1.0 }));
    // The weight of the positive is linear in t.
    assert!((bce - 2.0 * half + full).abs() < 1e-4 && full < half && half < bce, "{bce} {half} {full}");
    assert!(SasRecConfig { loss: SasRecLoss::Bce { negatives: 0 }, ..SasRecConfig::default() }.validate().is_err());
    assert!(
        SasRecConfig { loss: SasRecLoss::Gbce { negatives: 1, t: 2.0 }, ..SasRecConfig::default() }.validate().is_err()
    );
}

/// Scores of every item after each history, asked in one batch or one by one.
fn lists(retriever: &dyn Retriever, histories: &[&[ItemIdx]], together: bool) -> Vec<Vec<(u32, f32)>> {
    let queries: Vec<_> = histories.iter().map(|history| Query { history, user: None, exclude: &[] }).collect();
    let ask = |queries: &[Query]| retriever.retrieve(queries, ITEMS as usize).unwrap();
    let found = if together { ask(&queries) } else { queries.iter().flat_map(|q| ask(&[*q])).collect() };
    let sort = |list: &Vec<crate::Scored>| {
        let mut list: Vec<_> = list.iter().map(|s| (s.item.0, s.score)).collect();
        list.sort_by_key(|pair| pair.0);
        list
    };
    found.iter().map(sort).collect()
}

#[test]
fn a_history_scores_the_same_alone_and_in_a_padded_batch() {
    let histories = histories();
    let some: Vec<&[ItemIdx]> = histories.iter().take(12).collect();
    let (rqt, _) = rqt(2);
    let (guided, _) = guided_rqt(2);
    let (tiger, _) = tiger(2);
    let (sasrec, _) = sasrec(2);
    let trie = Trie::build(features().sids()).unwrap();
    let dense = SasRecRetriever::new(&sasrec, (0..u64::from(ITEMS)).collect());
    let retrievers: [&dyn Retriever; 4] = [
        &Generative::new(PackedRqt::new(&rqt).unwrap(), &trie, 64),
        &Generative::new(PackedRqt::new(&guided).unwrap(), &trie, 64),
        &Generative::new(PackedTiger::new(&tiger).unwrap(), &trie, 64),
        &dense,
    ];
    for retriever in retrievers {
        for (alone, padded) in lists(retriever, &some, false).iter().zip(lists(retriever, &some, true)) {
            assert_eq!(alone.len(), ITEMS as usize);
            for (a, b) in alone.iter().zip(&padded) {
                // Sums of a few dozen f32 terms in another order of blocks.
                assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-4, "{}: {a:?} {b:?}", retriever.name());
            }
        }
    }
}

/// Log-probability of items after each of some histories, request by request, by a session whose rows are moved, repeated
/// and left out at every level: `advance` gets level, requests, parents and codes. No number for items that were left out.
fn walk(
    requests: usize,
    seed: u64,
    mut advance: impl FnMut(usize, &[usize], &[u32], &[u32]) -> (usize, Vec<f32>),
) -> Vec<Option<f32>> {
    let (features, items) = (features(), ITEMS as usize);
    let codes = |pair: usize| features.codes(ItemIdx((pair % items) as u32)).to_vec();
    let (width, scores) = advance(0, &(0..requests).collect::<Vec<_>>(), &[], &vec![0; requests]);
    // Row of the last step and sum so far of each pair of request and item.
    let first = |pair: usize| (pair / items, scores[pair / items * width + usize::from(codes(pair)[0])]);
    let mut pairs: Vec<Option<(usize, f32)>> = (0..requests * items).map(|pair| Some(first(pair))).collect();
    for level in 1..features.sids().spec().len() {
        let draw = |pair: usize| mix(seed ^ (level * 1000 + pair) as u64);
        // The first pair is never left out, so that there is a row.
        let times = |pair: usize| if pair == 0 { 1 } else { [0, 1, 1, 1, 2][draw(pair) as usize % 5] };
        let mut rows: Vec<(usize, usize)> = Vec::new();
        for (pair, (row, _)) in pairs.iter().enumerate().filter_map(|(pair, known)| Some((pair, (*known)?))) {
            rows.extend(vec![(pair, row); times(pair)]);
        }
        rows.sort_by_key(|(pair, _)| (pair / items, draw(*pair)));
        let parents: Vec<u32> = rows.iter().map(|(_, row)| *row as u32).collect();
        let asked: Vec<usize> = rows.iter().map(|(pair, _)| pair / items).collect();
        let last: Vec<u32> = rows.iter().map(|(pair, _)| u32::from(codes(*pair)[level - 1])).collect();
        let (width, scores) = advance(level, &asked, &parents, &last);
        let before = std::mem::replace(&mut pairs, vec![None; requests * items]);
        for (row, (pair, _)) in rows.into_iter().enumerate() {
            let score = scores[row * width + usize::from(codes(pair)[level])];
            pairs[pair] = before[pair].map(|(_, sum)| (row, sum + score));
        }
    }
    pairs.into_iter().map(|known| known.map(|(_, sum)| sum)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Cached decoding equals the pass without caches, whatever the model and however rows move: the log-probabilities of
    /// an item's codes sum to minus its teacher-forced loss. Forty items after each history, some 2,500 comparisons in all.
    #[test]
    fn cached_decoding_equals_the_teacher_forced_pass(
        seed: u64, look_back in 1usize..4, decoder_layers in 1usize..3, separator: bool,
        histories in prop::collection::vec(prop::collection::vec((0..ITEMS).prop_map(ItemIdx), 1..7), 1..4),
    ) {
        let params = Parameters::new(seed);
        let config = RqtConfig { decoder_layers, look_back, ..small_rqt() };
        let rqt = Rqt::new(&config, features(), &params.builder()).unwrap();
        let params = Parameters::new(seed);
        let small = TigerConfig { dim: 16, heads: 2, head_dim: 8, hidden: 32, encoder_layers: 1, ..TigerConfig::default() };
        let config = TigerConfig { decoder_layers, separator, ..small };
        let tiger = Tiger::new(&config, features(), &params.builder()).unwrap();
        let read: Vec<&[ItemIdx]> = histories.iter().map(Vec::as_slice).collect();
        let mut session = RqtSession::new(&rqt, rqt.encode(&read).unwrap()).unwrap();
        let by_rqt = walk(read.len(), seed, |level, requests, parents, codes| {
            session.advance(level, requests, parents, codes).unwrap()
        });
        let read: Vec<History> = histories.iter().map(History::from).collect();
        let mut session = TigerSession::new(&tiger, &read).unwrap();
        let by_tiger = walk(read.len(), seed, |level, requests, parents, codes| {
            session.advance(level, requests, parents, codes).unwrap()
        });
        for (pair, sums) in by_rqt.into_iter().zip(by_tiger).enumerate() {
            let (Some(by_rqt), Some(by_tiger)) = sums else { continue };
            let (history, target) = (&histories[pair / ITEMS as usize], ItemIdx(pair as u32 % ITEMS));
            let items = history.iter().copied().chain([target]).collect();
            let window = Window { items, first_target: history.len() - 1 };
            let loss = rqt.loss(&[&window], Mode::Eval).unwrap().to_scalar::<f32>().unwrap();
            prop_assert!((by_rqt + loss).abs() < 1e-4, "rqt, {target:?} after {history:?}: {by_rqt} {loss}");
            let sample = Sample { history: history.clone(), user: None, target };
            let loss = tiger.loss(&[&sample], Mode::Eval).unwrap().to_scalar::<f32>().unwrap();
            prop_assert!((by_tiger + loss).abs() < 1e-4, "tiger, {target:?} after {history:?}: {by_tiger} {loss}");
        }
    }
}

/// Minus the loss of a target under `valid_only` is the score that search gives it, and the dense loss is the score that
/// guidance alone gives it.
#[test]
fn search_scores_are_the_trained_probabilities() {
    let trie = Trie::build(features().sids()).unwrap();
    let history = [ItemIdx(3), ItemIdx(17), ItemIdx(9)];
    let (model, _) = guided_rqt(3);
    let query = [Query { history: &history, user: None, exclude: &[] }];
    let list = |weight: f32| {
        let mut list = Generative::new(PackedRqt::new(&model).unwrap(), &trie, 64)
            .with_guide(weight)
            .retrieve(&query, 64)
            .unwrap()
            .remove(0);
        list.sort_by_key(|scored| scored.item.0);
        list
    };
    let (codes, mixed, items) = (list(0.0), list(0.25), list(1.0));
    for target in [ItemIdx(0), ItemIdx(22), ItemIdx(39)] {
        let path = history.iter().copied().chain([target]).collect();
        let loss = model.loss(&[&Window { items: path, first_target: 2 }], Mode::Eval).unwrap();
        let (p, m, q) =
            (codes[target.0 as usize].score, mixed[target.0 as usize].score, items[target.0 as usize].score);
        assert!((loss.to_scalar::<f32>().unwrap() + p + q).abs() < 1e-4, "{loss} {p} {q}");
        assert!((m - 0.75 * p - 0.25 * q).abs() < 1e-4, "{m} {p} {q}");
    }
    for list in [codes, items] {
        let total: f32 = list.iter().map(|scored| scored.score.exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "probabilities of all items sum to {total}");
    }
}

/// Draws stand for the whole catalogue: over many draws the sampled loss is the full one, and gradients still flow.
#[test]
fn sampled_negatives_stand_for_all_items() {
    let histories = histories();
    let windows = windows(&LeaveOneOut::new(&histories), 20);
    let rows: Vec<&Window> = windows.iter().collect();
    let model = |dense_negatives: usize| {
        let plain = RqtConfig { dropout: 0.0, item_dropout: 0.0, ..small_rqt() };
        let config = RqtConfig { dense_weight: 1.0, dense_negatives, code_weight: 0.0, ..plain };
        let params = Parameters::new(8);
        (Rqt::new(&config, features(), &params.builder()).unwrap(), params)
    };
    let value = |model: &Rqt, step| {
        let keys = StepKeys::new(&SeededRng::new(0), step);
        f64::from(model.loss(&rows, Mode::Train(&keys)).unwrap().to_scalar::<f32>().unwrap())
    };
    let (full, sampled) = (model(40).0, model(20).0);
    let mean = (0..40).map(|step| value(&sampled, step)).sum::<f64>() / 40.0;
    let expected = value(&full, 0);
    assert!((mean / expected - 1.0).abs() < 0.02, "{mean} {expected}");
    assert!((0..5).any(|step| (value(&sampled, step) - expected).abs() > 1e-6), "nothing was drawn");
    let (small, params) = model(5);
    let objective = WindowObjective { model: &small, windows: &windows };
    let keys = StepKeys::new(&SeededRng::new(0), 0);
    let all: Vec<u32> = (0..windows.len() as u32).collect();
    let grads = objective.prepare(&all).unwrap()(Mode::Train(&keys)).unwrap().backward().unwrap();
    for name in ["content.weight", "codes", "items"] {
        let size =
            grads.get(&params.all()[name]).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0, "{name}");
    }
}

#[test]
fn contradicting_options_are_named() {
    let bad = [
        (RqtConfig { guide: 0.5, ..RqtConfig::default() }, "guide"),
        (RqtConfig { guide: 1.5, dense_weight: 1.0, ..RqtConfig::default() }, "guide"),
        (RqtConfig { look_back: 21, ..RqtConfig::default() }, "look_back"),
        (RqtConfig { level_weights: vec![-1.0], ..RqtConfig::default() }, "level_weights"),
        (RqtConfig { code_weight: 0.0, ..RqtConfig::default() }, "code_weight"),
        (RqtConfig { dense_weight: f32::NAN, ..RqtConfig::default() }, "dense_weight"),
        (RqtConfig { valid_only: true, label_smoothing: 0.1, ..RqtConfig::default() }, "label_smoothing"),
    ];
    for (config, field) in bad {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn seen_items_are_left_out_and_a_wide_beam_returns_everything_else() {
    let (model, _) = rqt(4);
    let trie = Trie::build(features().sids()).unwrap();
    let history = [ItemIdx(1), ItemIdx(2)];
    let query = Query { history: &history, user: None, exclude: &history };
    let list = &Generative::new(PackedRqt::new(&model).unwrap(), &trie, 64).retrieve(&[query], 100).unwrap()[0];
    assert_eq!(list.len(), ITEMS as usize - 2);
    assert!(list.iter().all(|s| !history.contains(&s.item)));
    assert!(list.windows(2).all(|pair| pair[0].score >= pair[1].score));
}

/// Numbers of the runs below.
fn short() -> TrainConfig {
    TrainConfig { batch_size: 8, max_epochs: 4, eval_every: 1, warmup_steps: 3, ..TrainConfig::default() }
}

/// Trains a small rqt; stops before step `stop` where given.
fn train(
    config: &TrainConfig,
    dir: Option<&CheckpointDir>,
    resume: bool,
    stop: Option<u64>,
) -> (Stop, Vec<u8>, Vec<EpochRecord>) {
    let histories = histories();
    let split = LeaveOneOut::new(&histories);
    let windows = windows(&split, 20);
    let (model, params) = rqt(5);
    let identity = Identity { model: "rqt".into(), ..Identity::default() };
    let mut trainer = Trainer::new(config, &params, identity);
    if let Some(dir) = dir {
        trainer = trainer.with_checkpoints(dir, String::new());
    }
    let (steps, mut records) = (Cell::new(0), Vec::new());
    let objective = WindowObjective { model: &model, windows: &windows };
    let outcome = trainer
        .run(
            &objective,
            resume,
            &mut || {
                let all: Vec<u32> = (0..windows.len() as u32).collect();
                let loss = f64::from(objective.prepare(&all)?(Mode::Eval)?.to_scalar::<f32>()?);
                Ok(Validation { recall_at_10: 1.0 / loss, ndcg_at_10: 0.0 })
            },
            &mut |_, _, _| steps.set(steps.get() + 1),
            &mut |record| {
                let record = EpochRecord { seconds: 0.0, examples_per_second: 0.0, ..record.clone() };
                records.push(record);
                Ok(())
            },
            &|| stop.is_some_and(|stop| steps.get() >= stop),
        )
        .unwrap();
    let weights = crate::nn::save_parameters(params.snapshot().unwrap()).unwrap();
    (outcome.stop, weights, records)
}

#[test]
fn the_same_seed_gives_the_same_bits_and_the_loss_falls() {
    let (_, a, records) = train(&short(), None, false, None);
    let (_, b, again) = train(&short(), None, false, None);
    assert!(a == b && records == again);
    assert!(records.last().unwrap().loss < records[0].loss);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(&TrainConfig { max_epochs: 2, batch_size: 60, ..short() }, None, false, None))
    };
    let (_, weights, records) = on(1);
    for threads in [2, 5] {
        let (_, again, same) = on(threads);
        assert!(weights == again && records == same, "{threads} threads");
    }
}

#[test]
fn a_run_cut_anywhere_resumes_to_the_same_bits() {
    let averaged = TrainConfig { ema_decay: 0.9, micro_batch: 3, ..short() };
    let (_, plain, _) = train(&short(), None, false, None);
    for config in [short(), averaged] {
        let (_, whole, records) = train(&config, None, false, None);
        assert_eq!(whole == plain, config.ema_decay == 0.0);
        for stop in [0, 5, 9, 17] {
            let folder = tempfile::tempdir().unwrap();
            let dir = CheckpointDir::create(folder.path()).unwrap();
            let (why, _, first) = train(&config, Some(&dir), false, Some(stop));
            assert_eq!(why, Stop::Interrupted);
            let (why, weights, second) = train(&config, Some(&dir), true, None);
            assert_eq!(why, Stop::Epochs);
            assert!(weights == whole, "cut at step {stop}");
            let joined: Vec<_> = first.into_iter().chain(second).collect();
            assert_eq!(joined, records);
        }
    }
}

/// Without dropout, a step in parts is the step in one: parts weigh by their targets, not by their rows.
#[test]
fn micro_batches_add_up() {
    let histories = histories();
    let windows = windows(&LeaveOneOut::new(&histories), 20);
    let step = |micro_batch: usize| {
        let params = Parameters::new(6);
        let config = RqtConfig { dropout: 0.0, item_dropout: 0.0, dense_weight: 0.5, ..small_rqt() };
        let model = Rqt::new(&config, features(), &params.builder()).unwrap();
        let config =
            TrainConfig { batch_size: 64, micro_batch, max_epochs: 2, eval_every: 2, ..TrainConfig::default() };
        Trainer::new(&config, &params, Identity::default())
            .run(
                &WindowObjective { model: &model, windows: &windows },
                false,
                &mut || Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 }),
                &mut |_, _, _| {},
                &mut |_| Ok(()),
                &|| false,
            )
            .unwrap();
        params.snapshot().unwrap()
    };
    let (whole, parts) = (step(0), step(7));
    for (name, tensor) in &whole {
        let apart = (tensor - &parts[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        // AdamW divides by the root of the second moment, so rounding shows at the scale of the learning rate.
        assert!(apart < 1e-4, "{name}: {apart}");
    }
}

#[test]
fn another_configuration_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = CheckpointDir::create(folder.path()).unwrap();
    train(&short(), Some(&dir), false, Some(3));
    let (model, params) = rqt(5);
    let histories = histories();
    let windows = windows(&LeaveOneOut::new(&histories), 20);
    let config = TrainConfig::default();
    let other = Identity { model: "rqt".into(), sids: "another table".into(), ..Identity::default() };
    let error = Trainer::new(&config, &params, other)
        .with_checkpoints(&dir, String::new())
        .run(
            &WindowObjective { model: &model, windows: &windows },
            true,
            &mut || Ok(Validation { recall_at_10: 0.0, ndcg_at_10: 0.0 }),
            &mut |_, _, _| {},
            &mut |_| Ok(()),
            &|| false,
        )
        .unwrap_err();
    assert!(error.to_string().contains("SID table"), "{error}");
}
