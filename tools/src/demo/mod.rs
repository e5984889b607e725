//! The demo catalogue: products and purchase histories made up from a seed.
//!
//! A fresh clone has no data, and a recommender is judged on structure that random numbers do not have. The
//! generator plants four signals of comparable strength, so that no method is favoured:
//!
//! * **content**: titles, brands, product lines and categories say what goes together, and a product that was
//!   launched yesterday is as well described as an old one;
//! * **order**: purchases follow directed transitions between sub-categories (printer, then ink, then paper;
//!   seldom back), mostly within one product line, counted from one of the last four purchases;
//! * **popularity**: products, lines, sub-categories and departments differ by orders of magnitude, and part of
//!   the purchases just follow the trend;
//! * **taste**: a user has one to three departments, favorite brands and a price level.
//!
//! Popularity drifts: launches are promoted and age, sub-categories have seasons. About 5 % of the products
//! come out in the last four weeks ([`DemoData::new_since`]) and have no history before.
//!
//! The next purchase of a user is drawn from one law (`law.rs` states it) that depends on the products held
//! so far, the user's taste and the date; nobody buys an item twice. A test measures recall@10 of popularity,
//! of item and content neighbors and of the law itself, which bounds every model, and pins their levels.
//!
//! Item ids are numbers in random order and rows are shuffled, so neither carries information. Same
//! configuration, same bytes. Fewer than 1,920 items leave out departments rather than thin them.

mod law;
mod products;
mod users;
pub mod vectors;

#[cfg(test)]
mod levels;

use std::fmt::Write as _;
use std::path::Path;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

use crate::error::cannot_create;
use products::{Product, Shop};
use users::Purchase;

/// Start of the demo's year, 1 January 2024, as Unix seconds.
const START: i64 = 1_704_067_200;
const DAY: i64 = 86_400;
/// Days from the first to the last purchase.
const DAYS: i64 = 364;
/// Products launched in this many last days are the new ones.
const NEW_DAYS: i64 = 28;

/// How much to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoConfig {
    /// Products.
    pub items: usize,
    /// Users.
    pub users: usize,
    /// Seed of everything.
    pub seed: u64,
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self { items: 3_000, users: 6_000, seed: 42 }
    }
}

/// One product.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoItem {
    /// External id, e.g. "P04711".
    pub item_id: String,
    /// Title.
    pub title: String,
    /// Brand.
    pub brand: String,
    /// Department, category, sub-category.
    pub categories: Vec<String>,
    /// A few sentences.
    pub description: String,
    /// Launch, Unix seconds.
    pub launched: i64,
    /// Price.
    pub price: f32,
}

/// One purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoEvent {
    /// External id, e.g. "U01234".
    pub user_id: String,
    /// Row in [`DemoData::items`].
    pub item: usize,
    /// Unix seconds, distinct over all events.
    pub timestamp: i64,
}

/// A generated data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoData {
    /// Products in random order.
    pub items: Vec<DemoItem>,
    /// Purchases in time order.
    pub events: Vec<DemoEvent>,
    /// Products launched at or after this time (Unix seconds) are the new ones.
    pub new_since: i64,
}

/// Independent streams of randomness under one seed.
fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// Generates a data set; the same configuration gives the same data.
pub fn generate(config: &DemoConfig) -> DemoData {
    let shop = Shop::new(config.items, config.seed);
    let purchases = users::simulate(&shop, config.users, config.seed);
    publish(&shop, &purchases, config)
}

/// Gives shuffled rows and ids to products and users and puts all purchases in time order.
fn publish(shop: &Shop, purchases: &[Vec<Purchase>], config: &DemoConfig) -> DemoData {
    let mut rng = stream(config.seed, 3);
    let mut rows: Vec<usize> = (0..shop.products.len()).collect();
    rows.shuffle(&mut rng);
    let item_ids = shuffled_ids('P', rows.len(), &mut rng);
    let user_ids = shuffled_ids('U', purchases.len(), &mut rng);

    let mut row_of = vec![0; rows.len()];
    for (row, &product) in rows.iter().enumerate() {
        row_of[product] = row;
    }
    let items = rows.iter().zip(item_ids).map(|(&product, id)| describe(&shop.products[product], id)).collect();

    let mut all: Vec<(i64, usize, usize)> = Vec::new();
    for (user, list) in purchases.iter().enumerate() {
        all.extend(list.iter().map(|p| (p.time, user, row_of[p.product])));
    }
    all.sort_unstable();
    // Two purchases in one second: the later one moves by a second, which keeps the order of every user.
    let mut last = i64::MIN;
    let events = all
        .into_iter()
        .map(|(time, user, item)| {
            last = time.max(last.saturating_add(1));
            DemoEvent { user_id: user_ids[user].clone(), item, timestamp: last }
        })
        .collect();
    DemoData { items, events, new_since: START + (DAYS - NEW_DAYS) * DAY }
}

fn describe(product: &Product, item_id: String) -> DemoItem {
    DemoItem {
        item_id,
        title: product.title.clone(),
        brand: product.brand_name.clone(),
        categories: product.path.clone(),
        description: product.description.clone(),
        launched: product.launched,
        price: product.price,
    }
}

/// `count` distinct ids, drawn from a range twice as large, in random order.
fn shuffled_ids(letter: char, count: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut numbers: Vec<usize> = (1..=2 * count).collect();
    numbers.shuffle(rng);
    let digits = (2 * count).to_string().len().max(5);
    numbers.into_iter().take(count).map(|n| format!("{letter}{n:0digits$}")).collect()
}

/// Writes `items.jsonl` and `interactions.csv` (`user_id,item_id,timestamp`) into a directory, which is made if
/// needed; refuses to overwrite.
pub fn write(dir: &Path, data: &DemoData) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).map_err(|why| cannot_create(dir, why))?;
    let mut items = String::new();
    for item in &data.items {
        items.push_str(&serde_json::to_string(item)?);
        items.push('\n');
    }
    let mut events = String::from("user_id,item_id,timestamp\n");
    for event in &data.events {
        let item_id = &data.items[event.item].item_id;
        writeln!(events, "{},{item_id},{}", event.user_id, event.timestamp)?;
    }
    for (name, text) in [("items.jsonl", items), ("interactions.csv", events)] {
        let path = dir.join(name);
        if path.exists() {
            return Err(cannot_create(&path, "it exists already"));
        }
        std::fs::write(&path, text).map_err(|why| cannot_create(&path, why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn small() -> DemoData {
        generate(&DemoConfig { items: 500, users: 400, seed: 7 })
    }

    #[test]
    fn same_seed_same_data_and_another_seed_other_data() {
        assert_eq!(small(), small());
        let other = generate(&DemoConfig { items: 500, users: 400, seed: 8 });
        assert_ne!(small().events, other.events);
    }

    #[test]
    fn histories_have_no_repeats_and_the_promised_length() {
        let data = small();
        let mut histories: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for event in &data.events {
            histories.entry(&event.user_id).or_default().push(event.item);
        }
        assert_eq!(histories.len(), 400);
        for history in histories.values() {
            assert!((5..=40).contains(&history.len()), "{}", history.len());
            let distinct: BTreeSet<_> = history.iter().collect();
            assert_eq!(distinct.len(), history.len());
        }
    }

    #[test]
    fn times_are_distinct_and_nothing_sells_before_its_launch() {
        let data = small();
        assert!(data.events.windows(2).all(|w| w[0].timestamp < w[1].timestamp));
        for event in &data.events {
            assert!(data.items[event.item].launched <= event.timestamp);
        }
        let new = data.items.iter().filter(|i| i.launched >= data.new_since).count();
        assert!((15..=35).contains(&new), "{new} of 500 items are new");
    }

    #[test]
    fn titles_and_ids_are_distinct_at_any_size() {
        for items in [1, 40, 500, 12_000] {
            let shop = Shop::new(items, 1);
            assert_eq!(shop.products.len(), items);
            let titles: BTreeSet<_> = shop.products.iter().map(|p| &p.title).collect();
            assert_eq!(titles.len(), items);
        }
        let data = small();
        let ids: BTreeSet<_> = data.items.iter().map(|i| &i.item_id).collect();
        assert_eq!(ids.len(), data.items.len());
    }

    #[test]
    fn ids_say_nothing_about_the_department() {
        let data = small();
        let mut sorted: Vec<_> = data.items.iter().collect();
        sorted.sort_by(|a, b| a.item_id.cmp(&b.item_id));
        let same = sorted.windows(2).filter(|w| w[0].categories[2] == w[1].categories[2]).count();
        assert!(same < 60, "{same} of 499 neighbors share a sub-category");
    }

    #[test]
    fn files_have_one_line_per_row_and_are_not_overwritten() {
        let data = small();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &data).unwrap();
        let events = std::fs::read_to_string(dir.path().join("interactions.csv")).unwrap();
        assert_eq!(events.lines().count(), data.events.len() + 1);
        let items = std::fs::read_to_string(dir.path().join("items.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(items.lines().next().unwrap()).unwrap();
        assert_eq!(first["title"], data.items[0].title.as_str());
        assert!(write(dir.path(), &data).is_err());
    }
}
