//! The hybrid and the two towers as wholes: gradients reach what learns, counts and frequencies stay, new items are found
//! by what they are like, lists do not depend on who else is asked about.

use super::{Hybrid, HybridConfig, HybridRetriever};
use crate::LearnsWindows;
use crate::data::{Histories, Window, windows};
use crate::dense::{TwoTower, TwoTowerConfig, TwoTowerRetriever};
use crate::loss::LogQ;
use crate::nn::Parameters;
use crate::rqt::{PackedRqt, RqtConfig};
use crate::{Generative, ItemFeatures, LeaveOneOut, Query, Retriever};
use beam::Trie;
use rqvae::{ItemIdx, Mode, SeededRng, SidSpec, SidTable, StepKeys, Vectors, mix};
use std::sync::Arc;

const ITEMS: u32 = 40;
/// Items from this one on never occur in a history; each has the content of one that does, eight before it, or nearly so.
const NEW: u32 = 32;

fn features() -> ItemFeatures {
    let spec = SidSpec { codebook_sizes: vec![5, 6], suffix_size: Some(4) };
    let codes = (0..ITEMS as u16).flat_map(|i| [i % 5, (i / 5) % 6, i / 30]).collect();
    let value = |item: u64, axis: u64| (mix(item * 7 + axis) % 1000) as f32 / 1000.0 - 0.5;
    let row = |item: u32| {
        let (like, noise) = if item < NEW { (item, 0.0) } else { (item - 8, 0.05) };
        (0..7).map(move |axis| value(u64::from(like), axis) + noise * value(u64::from(item) + 500, axis))
    };
    let content = Vectors::new(7, (0..ITEMS).flat_map(row).collect()).unwrap();
    ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), Some(Arc::new(content))).unwrap()
}

/// Users who walk through the items that are not new.
fn histories() -> Histories {
    let user = |u: u32| (0..5 + u % 6).map(|t| ItemIdx((u * 3 + t * (1 + u % 3)) % NEW)).collect();
    Histories::new((0..60).map(user).collect())
}

fn hybrid(new_share: f64) -> (Hybrid, Parameters) {
    let rqt = RqtConfig { dim: 16, heads: 2, head_dim: 8, hidden: 32, item_embedding: true, ..RqtConfig::default() };
    let params = Parameters::new(3);
    let config = HybridConfig { rqt, followers: 8, lenders: 2, borrowed: 0.5, new_share, ..HybridConfig::default() };
    let model = Hybrid::new(&config, features(), &params.builder()).unwrap();
    let histories = histories();
    let split = LeaveOneOut::new(&histories);
    let known: Vec<&[ItemIdx]> = (0..split.users()).map(|user| split.train(user)).collect();
    model.count(&known, 1).unwrap();
    (model, params)
}

fn search(model: &Hybrid) -> Generative {
    let trie = Trie::build(features().sids()).unwrap();
    Generative::new(PackedRqt::new(model.rqt()).unwrap(), &trie, 30)
}

fn ties() -> Vec<u64> {
    (0..u64::from(ITEMS)).map(mix).collect()
}

fn towers(config: &TwoTowerConfig) -> (TwoTower, Parameters) {
    let params = Parameters::new(2);
    let config = TwoTowerConfig { dim: 16, uniform_negatives: 12, ..config.clone() };
    (TwoTower::new(&config, features(), &params.builder()).unwrap(), params)
}

#[test]
fn gradients_reach_what_learns_and_leave_what_is_counted() {
    let histories = histories();
    let windows: Vec<Window> = windows(&LeaveOneOut::new(&histories), 20);
    let rows: Vec<&Window> = windows.iter().collect();
    let keys = StepKeys::new(&SeededRng::new(0), 0);
    let (hybrid, of_hybrid) = hybrid(0.1);
    let mut found = vec![(hybrid.learn(&rows).unwrap()(Mode::Train(&keys)).unwrap(), of_hybrid, "rqt.", true)];
    for log_q in [LogQ::None, LogQ::Classic, LogQ::Corrected] {
        let (model, params) = towers(&TwoTowerConfig { log_q, ..TwoTowerConfig::default() });
        found.push((model.loss(&rows, Mode::Train(&keys)).unwrap(), params, "frequency.", false));
    }
    for (loss, params, prefix, learns) in found {
        let grads = loss.backward().unwrap();
        for (name, var) in params.all() {
            let size = grads.get(&var).map(|g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            if name.starts_with(prefix) == learns {
                assert!(size.is_some_and(|size| size > 0.0 && size.is_finite()), "{name}: {size:?}");
            } else {
                assert!(size.is_none(), "{name} is counted, not learned");
            }
        }
    }
}

/// After an item, the new item that is like it comes first among the new ones, within the share that is asked for.
#[test]
fn new_items_are_found_by_what_they_are_like() {
    let (model, params) = hybrid(0.1);
    let retriever = HybridRetriever::new(&model, search(&model), &ties(), None).unwrap();
    let histories: Vec<[ItemIdx; 1]> = (24..NEW).map(|item| [ItemIdx(item)]).collect();
    let queries: Vec<Query> = histories.iter().map(|h| Query { history: h, user: None, exclude: h }).collect();
    let ranked = retriever.ranked(&queries, 5).unwrap();
    let right = ranked.iter().zip(24..).filter(|(ranked, item)| ranked.new[0].item == ItemIdx(item + 8)).count();
    assert!(right >= 6, "{right} of 8");
    assert!(ranked.iter().all(|r| r.warm.iter().all(|s| s.item.0 < NEW) && r.new.iter().all(|s| s.item.0 >= NEW)));
    // Without a share, nothing new; with everything warm left out, nothing but new.
    let none = HybridRetriever::new(&model, search(&model), &ties(), Some(0.0)).unwrap();
    let lists = none.retrieve(&queries, 10).unwrap();
    assert!(lists.iter().flatten().all(|s| s.item.0 < NEW));
    let warm: Vec<ItemIdx> = (0..NEW).map(ItemIdx).collect();
    let only_new = retriever.retrieve(&[Query { history: &histories[0], user: None, exclude: &warm }], 4).unwrap();
    assert!(only_new[0].len() == 4 && only_new[0].iter().all(|s| s.item.0 >= NEW));
    assert!(HybridRetriever::new(&model, search(&model), &ties(), Some(1.5)).is_err());
    // Counts are part of a checkpoint: the same parameters answer the same.
    let other = Parameters::new(9);
    let again = Hybrid::new(model.config(), features(), &other.builder()).unwrap();
    other.assign(&params.snapshot().unwrap().into_iter().collect()).unwrap();
    let again = HybridRetriever::new(&again, search(&again), &ties(), None).unwrap();
    assert_eq!(again.retrieve(&queries, 5).unwrap(), retriever.retrieve(&queries, 5).unwrap());
}

/// A list is the same whoever is asked about beside it, nothing excluded comes back, and an inverted file whose lists are
/// all scanned finds what a scan finds.
#[test]
fn lists_do_not_depend_on_the_batch_or_on_the_index() {
    let histories = histories();
    let some: Vec<&[ItemIdx]> = histories.iter().take(9).collect();
    let queries: Vec<Query> = some.iter().map(|history| Query { history, user: None, exclude: history }).collect();
    let (model, _) = hybrid(0.2);
    let (exact, _) = towers(&TwoTowerConfig::default());
    let (ivf, _) = towers(&TwoTowerConfig { ivf_lists: 4, ivf_probes: 4, ..TwoTowerConfig::default() });
    let retrievers: [Box<dyn Retriever>; 3] = [
        Box::new(HybridRetriever::new(&model, search(&model), &ties(), None).unwrap()),
        Box::new(TwoTowerRetriever::new(&exact, &ties()).unwrap()),
        Box::new(TwoTowerRetriever::new(&ivf, &ties()).unwrap()),
    ];
    let items = |lists: Vec<Vec<crate::Scored>>| -> Vec<Vec<u32>> {
        lists.iter().map(|list| list.iter().map(|s| s.item.0).collect()).collect()
    };
    let found: Vec<_> = retrievers.iter().map(|r| items(r.retrieve(&queries, 6).unwrap())).collect();
    for (retriever, together) in retrievers.iter().zip(&found) {
        let alone: Vec<_> = queries.iter().flat_map(|q| items(retriever.retrieve(&[*q], 6).unwrap())).collect();
        assert_eq!(&alone, together, "{}", retriever.name());
        for (list, query) in together.iter().zip(&queries) {
            assert!(list.len() == 6 && list.iter().all(|item| !query.exclude.contains(&ItemIdx(*item))));
        }
        assert!(retriever.retrieve(&[Query { history: &[], user: None, exclude: &[] }], 3).unwrap()[0].is_empty());
    }
    assert_eq!(found[1], found[2]);
}
