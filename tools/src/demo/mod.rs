//! The demo catalogue (being written).
use std::path::Path;
/// How much to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoConfig { /// Products.
 pub items: usize, /// Users.
 pub users: usize, /// Seed of everything.
 pub seed: u64 }
impl Default for DemoConfig { fn default() -> Self { Self { items: 3000, users: 6000, seed: 42 } } }
/// One product.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DemoItem { /// External id.
 pub item_id: String, /// Title.
 pub title: String, /// Brand.
 pub brand: String, /// Path: department, category, sub-category.
 pub categories: Vec<String>, /// Description.
 pub description: String, /// Launch, Unix seconds.
 pub launched: i64, /// Price.
 pub price: f32 }
/// One purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoEvent { /// External id.
 pub user_id: String, /// Index into [`DemoData::items`].
 pub item: usize, /// Unix seconds, distinct over all events.
 pub timestamp: i64 }
/// A generated data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoData { /// Products, in random order.
 pub items: Vec<DemoItem>, /// Purchases in time order.
 pub events: Vec<DemoEvent>, /// Products launched at or after this time (Unix seconds) are the new ones.
 pub new_since: i64 }
/// Generates a data set.
pub fn generate(_config: &DemoConfig) -> DemoData { DemoData { items: vec![], events: vec![], new_since: 0 } }
/// Writes `items.jsonl` and `interactions.csv`.
pub fn write(_dir: &Path, _data: &DemoData) -> anyhow::Result<()> { Ok(()) }
