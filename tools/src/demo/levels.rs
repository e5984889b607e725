//! How predictable the demo is: leave-one-out recall@10 of simple methods and of the law itself.

use std::collections::BTreeMap;

use super::law::Situation;
use super::products::Shop;
use super::users::{self, Purchase};
use super::{DAY, DAYS, NEW_DAYS, START};

/// Every third user is tested, which leaves a standard error below 0.01.
const TESTED: usize = 3;

/// Recall@10 by method over users whose last product is the target.
fn levels(seed: u64) -> BTreeMap<&'static str, f64> {
    let shop = Shop::new(3_000, seed);
    let lives = users::simulate(&shop, 6_000, seed);
    let tastes = users::tastes(&shop, 6_000, seed);
    let items = shop.products.len();
    let products = |life: &[Purchase]| life.iter().map(|p| p.product).collect::<Vec<_>>();

    // Training: everything but the last two, as the protocol has it.
    let train: Vec<Vec<usize>> = lives.iter().map(|l| products(&l[..l.len() - 2])).collect();
    let mut counts = vec![0.0_f64; items];
    let mut together: Vec<BTreeMap<usize, f64>> = vec![BTreeMap::new(); items];
    for list in &train {
        for &a in list {
            counts[a] += 1.0;
            for &b in list.iter().filter(|&&b| b != a) {
                *together[a].entry(b).or_default() += 1.0;
            }
        }
    }
    // Markov over sub-categories: how often b's sub-category follows a's directly, popularity and same line.
    let subs = shop.subs.len();
    let mut follows = vec![1e-3_f64; subs * subs];
    for list in &train {
        for pair in list.windows(2) {
            follows[shop.products[pair[0]].sub * subs + shop.products[pair[1]].sub] += 1.0;
        }
    }
    for row in follows.chunks_mut(subs) {
        let total: f64 = row.iter().sum();
        for value in row {
            *value /= total;
        }
    }
    let content = content_vectors(&shop);

    let mut hits: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (life, taste) in lives.iter().zip(&tastes).step_by(TESTED) {
        let target = life[life.len() - 1].product;
        let held = products(&life[..life.len() - 1]);
        let mut add = |name, scores: &[f64]| {
            let better = (0..items).filter(|i| scores[*i] > scores[target] && !held.contains(i));
            *hits.entry(name).or_default() += f64::from(u8::from(scores[target] > 0.0 && better.count() < 10));
        };
        add("popularity", &counts);

        let (mut knn, mut near, mut markov) = (vec![0.0; items], vec![0.0; items], vec![0.0; items]);
        for (back, &h) in held.iter().rev().enumerate() {
            let recency = 0.7_f64.powf(back as f64);
            for (&i, &both) in &together[h] {
                knn[i] += recency * both / ((counts[h] * counts[i]).sqrt() + 10.0);
            }
            if back < 3 {
                let weight = 0.5_f64.powf(back as f64);
                for (i, vector) in content.iter().enumerate() {
                    near[i] += weight * dot(&content[h], vector);
                }
                let anchor = &shop.products[h];
                for (i, next) in shop.products.iter().enumerate() {
                    let line = if anchor.line == next.line { 8.0 } else { 1.0 };
                    let brand = if anchor.brand == next.brand { 2.0 } else { 1.0 };
                    markov[i] += weight * follows[anchor.sub * subs + next.sub] * counts[i] * line * brand;
                }
            }
        }
        add("item-knn", &knn);
        add("content-knn", &near);
        add("sub-category chain", &markov);
        let situation = Situation { shop: &shop, taste, held: &held, time: life[life.len() - 1].time };
        add("law", &situation.law());
    }
    let tested = lives.len().div_ceil(TESTED) as f64;
    for value in hits.values_mut() {
        *value /= tested;
    }

    let since = START + (DAYS - NEW_DAYS) * DAY;
    let new = |p: &Purchase| shop.products[p.product].launched >= since;
    let events: usize = lives.iter().map(Vec::len).sum();
    hits.insert("mean length", events as f64 / lives.len() as f64);
    let cold = lives.iter().filter(|l| l.last().is_some_and(new)).count();
    hits.insert("cold targets", cold as f64);
    let unsold = counts.iter().filter(|&&c| c == 0.0).count();
    hits.insert("items without training data", unsold as f64);
    hits
}

fn dot(a: &[(usize, f64)], b: &[(usize, f64)]) -> f64 {
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j].0) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                sum += a[i].1 * b[j].1;
                i += 1;
                j += 1;
            }
        }
    }
    sum
}

/// Unit TF-IDF vectors over the words of title, categories and description.
fn content_vectors(shop: &Shop) -> Vec<Vec<(usize, f64)>> {
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    let mut documents = Vec::new();
    for p in &shop.products {
        let text = format!("{} {} {} {}", p.title, p.brand_name, p.path.join(" "), p.description);
        let mut words: BTreeMap<usize, f64> = BTreeMap::new();
        for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()) {
            if !word.is_empty() {
                let next = ids.len();
                let id = *ids.entry(word.to_owned()).or_insert(next);
                *words.entry(id).or_default() += 1.0;
            }
        }
        documents.push(words);
    }
    let mut containing = vec![0.0_f64; ids.len()];
    for id in documents.iter().flat_map(BTreeMap::keys) {
        containing[*id] += 1.0;
    }
    let total = documents.len() as f64;
    let weigh = |words: BTreeMap<usize, f64>| {
        let vector: Vec<(usize, f64)> =
            words.into_iter().map(|(id, n)| (id, (1.0 + n.ln()) * (total / containing[id]).ln())).collect();
        let norm = dot(&vector, &vector).sqrt();
        vector.into_iter().map(|(id, v)| (id, v / norm)).collect()
    };
    documents.into_iter().map(weigh).collect()
}

#[test]
fn every_signal_works_somewhat_and_none_alone_is_enough() {
    let found = levels(42);
    let shown: Vec<String> = found.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let shown = shown.join(", ");
    println!("{shown}");
    assert!((0.025..0.060).contains(&found["popularity"]), "{shown}");
    assert!((0.07..0.16).contains(&found["item-knn"]), "{shown}");
    assert!((0.07..0.16).contains(&found["content-knn"]), "{shown}");
    let best = found["item-knn"].max(found["content-knn"]);
    assert!(found["sub-category chain"] > 1.2 * best, "{shown}");
    assert!(found["law"] > 1.5 * best, "{shown}");
    assert!((8.5..10.5).contains(&found["mean length"]), "{shown}");
    assert!(found["cold targets"] > 150.0, "{shown}");
}
