//! The items of a catalogue: ids, texts and what people want to see of them.
//!
//! A column counts only for what it is named: `item_id`, `title`, `brand`, `categories`, `description`, `embedding` and
//! one of `first_seen`, `launched`, `launch_date`, `date`; with a text template the text comes from the columns that it
//! names. Nothing else reaches a model.

use super::cell::Cell;
use super::rejects::{Rejects, SHOWN};
use super::template::Template;
use super::{ItemKeys, ReadOptions, missing_column, source, time};
use crate::error::bad_data;
use rqvae::{ItemText, Vectors};
use std::collections::HashMap;
use std::path::Path;

const LAUNCH_COLUMNS: [&str; 4] = ["first_seen", "launched", "launch_date", "date"];

/// A catalogue as read; all lists are in catalogue order, (items,).
#[derive(Debug, Clone)]
pub struct Items {
    /// External ids.
    pub keys: ItemKeys,
    /// Texts for a content encoder.
    pub texts: Vec<ItemText>,
    /// Titles for people; empty where unknown.
    pub titles: Vec<String>,
    /// First category path, readable: `A > B > C`; empty where unknown.
    pub categories_top: Vec<String>,
    /// When the item was first offered, Unix seconds.
    pub first_seen: Vec<Option<i64>>,
    /// The `embedding` column, (items, dim), if there is one.
    pub embeddings: Option<Vectors>,
    /// Rows that were unusable.
    pub rejected: usize,
    /// Rows that repeated an item.
    pub duplicates: usize,
}

#[derive(Clone, PartialEq)]
struct Row {
    text: ItemText,
    title: String,
    category: String,
    first_seen: Option<i64>,
    embedding: Option<Vec<f32>>,
}

/// Where the cells of a row are; `None` where the table has no such column.
pub(super) struct Layout {
    pub(super) wanted: Vec<String>,
    template: Option<Template>,
    launch: Option<&'static str>,
    pub(super) embedding: bool,
}

impl Layout {
    pub(super) fn new(path: &Path, options: &ReadOptions) -> anyhow::Result<Self> {
        let found = source::columns(path)?;
        let has = |name: &str| found.iter().any(|column| column == name);
        if !has("item_id") {
            return Err(missing_column(path, "item_id", &found));
        }
        let template = options.text_template.as_deref().map(Template::parse).transpose()?;
        if let Some(template) = &template
            && let Some(missing) = template.columns().find(|column| !has(column))
        {
            return Err(missing_column(path, missing, &found));
        }
        let launch = LAUNCH_COLUMNS.into_iter().find(|column| has(column));
        let mut wanted: Vec<String> =
            ["item_id", "title", "brand", "categories", "description"].map(str::to_owned).to_vec();
        if let Some(template) = &template {
            wanted.extend(template.columns().map(str::to_owned));
        }
        wanted.extend(launch.map(str::to_owned));
        let embedding = has("embedding");
        if embedding {
            wanted.push("embedding".to_owned());
        }
        Ok(Self { wanted, template, launch, embedding })
    }

    fn row(&self, cells: &[Cell], dim: Option<usize>) -> Result<(String, Row), String> {
        let cell = |name: &str| {
            let at = self.wanted.iter().position(|wanted| wanted == name);
            at.map_or(&Cell::Null, |at| &cells[at])
        };
        let key = cell("item_id").key("item_id")?;
        let categories = cell("categories").paths();
        let title = cell("title").text();
        let category = categories.first().map(|path| path.join(" > ")).unwrap_or_default();
        let text = match &self.template {
            // A text that is nothing but free text is rendered without labels.
            Some(template) => ItemText {
                description: template.fill(|name| match name {
                    "categories" => join_paths(&categories),
                    name => cell(name).text(),
                }),
                ..ItemText::default()
            },
            None => ItemText {
                title: title.clone(),
                brand: cell("brand").text(),
                categories,
                description: cell("description").text(),
            },
        };
        let first_seen = match self.launch.map(|column| (column, cell(column))) {
            None | Some((_, Cell::Null)) => None,
            Some((column, cell)) => Some(time::instant(cell, column)?),
        };
        let embedding = self.embedding.then(|| cell("embedding").vector("embedding")).transpose()?;
        if let (Some(vector), Some(dim)) = (&embedding, dim)
            && vector.len() != dim
        {
            return Err(format!("`embedding` has {} numbers, the rows before have {dim}", vector.len()));
        }
        let row = Row { text, title, category, first_seen, embedding };
        Ok((key, row))
    }
}

impl Layout {
    /// Id and rendered text of a row.
    pub(super) fn text(&self, cells: &[Cell]) -> Result<(String, String), String> {
        let (key, row) = self.row(cells, None)?;
        Ok((key, row.text.render()))
    }
}

fn join_paths(paths: &[Vec<String>]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.join(" > ")).collect();
    paths.join(", ")
}

/// Reads a catalogue.
///
/// # Errors
/// Input missing; bad data when a needed column is missing, too many rows are unusable, an id stands for two different
/// items, or nothing is left.
pub fn read_items(path: &Path, options: &ReadOptions) -> anyhow::Result<Items> {
    let layout = Layout::new(path, options)?;
    let wanted: Vec<&str> = layout.wanted.iter().map(String::as_str).collect();
    let mut rejects = Rejects::new(path, options.rejects_to.as_deref());
    let mut at: HashMap<String, usize> = HashMap::new();
    let mut keys: Vec<String> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut dim = None;
    let mut duplicates = 0;
    let mut conflicts: Vec<String> = Vec::new();
    let count = source::scan(path, &wanted, &mut |record| {
        let parsed = record.cells.and_then(|cells| layout.row(&cells, dim));
        let (key, row) = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => return rejects.push(record.line, record.weight, &reason),
        };
        dim = dim.or(row.embedding.as_ref().map(Vec::len));
        match at.get(&key) {
            None => {
                at.insert(key.clone(), rows.len());
                keys.push(key);
                rows.push(row);
            }
            Some(&first) => {
                duplicates += 1;
                if options.dedupe_last {
                    rows[first] = row;
                } else if rows[first] != row {
                    conflicts.push(format!("line {}: `{key}`", record.line));
                }
            }
        }
        Ok(())
    })?;
    drop(at);
    let rejected = rejects.finish(count, options.max_reject_fraction)?;
    if !conflicts.is_empty() {
        let more = conflicts.len();
        conflicts.truncate(SHOWN);
        return Err(bad_data(format!(
            "{}: {more} rows repeat an item_id with different content (--dedupe last keeps the last); the first:\n  {}",
            path.display(),
            conflicts.join("\n  ")
        )));
    }
    if rows.is_empty() {
        return Err(bad_data(format!("{}: no items in it", path.display())));
    }
    if duplicates > 0 {
        tracing::warn!(file = %path.display(), duplicates, "repeated items kept once");
    }
    assemble(path, keys, rows, dim, rejected, duplicates)
}

fn assemble(
    path: &Path,
    keys: Vec<String>,
    rows: Vec<Row>,
    dim: Option<usize>,
    rejected: usize,
    duplicates: usize,
) -> anyhow::Result<Items> {
    let n = rows.len();
    let milliseconds = time::in_milliseconds(rows.iter().filter_map(|row| row.first_seen))
        .map_err(|reason| bad_data(format!("{}: launch dates: {reason}", path.display())))?;
    let mut items = Items {
        keys: ItemKeys::new(keys)?,
        texts: Vec::with_capacity(n),
        titles: Vec::with_capacity(n),
        categories_top: Vec::with_capacity(n),
        first_seen: Vec::with_capacity(n),
        embeddings: None,
        rejected,
        duplicates,
    };
    let mut data = Vec::with_capacity(n * dim.unwrap_or(0));
    for row in rows {
        items.texts.push(row.text);
        items.titles.push(row.title);
        items.categories_top.push(row.category);
        items.first_seen.push(row.first_seen.map(|t| if milliseconds { t.div_euclid(1000) } else { t }));
        data.extend(row.embedding.unwrap_or_default());
    }
    if let Some(dim) = dim {
        items.embeddings = Some(Vectors::new(dim, data)?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rqvae::ItemIdx;
    use std::path::PathBuf;

    fn read(name: &str, text: &str, options: &ReadOptions) -> anyhow::Result<Items> {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_items(&path, options)
    }

    fn lax() -> ReadOptions {
        ReadOptions { max_reject_fraction: 1.0, ..ReadOptions::default() }
    }

    const TWO: &str = r#"{"item_id":7,"title":" A  lamp ","brand":"Lux","categories":[["Home","Lamps"]],"launched":"2024-01-02","price":3}
{"item_id":8,"title":"B","brand":null,"categories":[],"launched":null}
"#;

    #[test]
    fn jsonl_items_are_read() {
        let items = read("items.jsonl", TWO, &ReadOptions::default()).unwrap();
        assert_eq!(items.keys.key(ItemIdx(0)), "7");
        assert!(items.keys.integer);
        assert_eq!(items.titles, ["A lamp", "B"]);
        assert_eq!(items.categories_top, ["Home > Lamps", ""]);
        assert_eq!(items.first_seen, [Some(1_704_153_600), None]);
        assert_eq!(items.texts[0].render(), "Title: A lamp. Brand: Lux. Categories: Home > Lamps");
        assert_eq!(items.texts[1].render(), "Title: B");
        assert!(items.embeddings.is_none());
    }

    #[test]
    fn a_template_makes_the_text() {
        let options = ReadOptions {
            text_template: Some("{title} ({price}) in {categories}".to_owned()),
            ..ReadOptions::default()
        };
        let items = read("items.jsonl", TWO, &options).unwrap();
        assert_eq!(items.texts[0].render(), "A lamp (3) in Home > Lamps");
        assert_eq!(items.titles[0], "A lamp");
        let options = ReadOptions { text_template: Some("{titel}".to_owned()), ..ReadOptions::default() };
        let error = read("items.jsonl", TWO, &options).unwrap_err().to_string();
        assert!(error.contains("did you mean `title`?"), "{error}");
    }

    #[test]
    fn csv_items_with_embeddings_reject_bad_vectors() {
        let text = "item_id,embedding\n01,\"0.5, 1\"\n02,\"1 2\"\n03,nan 1\n04,1 2 3\n05,\n,1 2\n";
        let items = read("items.csv", text, &lax()).unwrap();
        assert_eq!(items.keys.iter().collect::<Vec<_>>(), ["01", "02"]);
        assert!(!items.keys.integer);
        assert_eq!(items.rejected, 4);
        assert_eq!(items.embeddings.unwrap().data, [0.5, 1.0, 1.0, 2.0]);
        let error = read("items.csv", text, &ReadOptions::default()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("4 of 6 rows"), "{error}");
        assert!(error.contains("line 4: `embedding` holds NaN"), "{error}");
    }

    #[test]
    fn a_repeated_item_is_kept_once_or_refused() {
        let same = "item_id\ttitle\n1\ta\n1\ta\n2\tb\n";
        let items = read("items.tsv", same, &ReadOptions::default()).unwrap();
        assert_eq!((items.keys.len(), items.duplicates), (2, 1));
        let different = "item_id\ttitle\n1\ta\n2\tb\n1\tc\n";
        let error = read("items.tsv", different, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("line 4: `1`"), "{error}");
        let last = ReadOptions { dedupe_last: true, ..ReadOptions::default() };
        assert_eq!(read("items.tsv", different, &last).unwrap().titles, ["c", "b"]);
    }

    #[test]
    fn tables_without_items_are_refused() {
        let error = read("items.csv", "item_id,title\n", &lax()).unwrap_err();
        assert!(error.to_string().contains("no items"), "{error}");
        let error = read("items.csv", "itemid,title\n1,a\n", &lax()).unwrap_err();
        assert!(error.to_string().contains("did you mean `itemid`"), "{error}");
    }

    #[test]
    fn launch_dates_in_mixed_units_are_refused() {
        let text = "item_id,first_seen\n1,1406073600\n2,1406073600000\n";
        let error = read("items.csv", text, &lax()).unwrap_err();
        assert!(error.to_string().contains("mixed units"), "{error}");
    }
}
