//! Tables on disk: items, interactions, vectors and semantic IDs, in every file format that sidrec reads or writes.
//!
//! JSON lines, CSV and TSV (all of them also `.gz` or `.zst`) and Parquet become typed rows in `source`; this is the
//! only place that knows these formats. A row that cannot be used is counted and written to a rejects file; a file
//! that cannot be used is an error which names the file, the column, what was expected and what was found.

mod cell;
mod interactions;
mod items;
mod keys;
mod npy;
mod open;
mod parquet;
mod rejects;
mod sids;
mod source;
mod stream;
mod template;
mod time;
mod vector_writer;
mod vectors;

pub use interactions::{Interactions, read_histories, read_interactions};
pub use items::{Items, read_items};
pub use keys::{ItemKeys, is_integer, tie_hash};
pub use sids::{SidRows, SidsFile, SidsMeta, read_sids, write_sid_rows, write_sids};
pub use stream::{BatchContent, EachBatch, ItemBatch, ItemStream};
pub use vector_writer::VectorWriter;
pub use vectors::{read_vectors, write_half_vectors, write_vectors};

use crate::error::{bad_data, input_missing};
use std::path::{Path, PathBuf};

/// How strict the readers are and where unusable rows go.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Text of an item, e.g. `{title} {brand}`; by default title, brand, categories and description, with labels.
    pub text_template: Option<String>,
    /// Largest share of unusable rows, in [0, 1], before the run stops.
    pub max_reject_fraction: f64,
    /// Largest share of interactions with unknown items, in [0, 1], before the run stops.
    pub max_unknown_fraction: f64,
    /// JSON lines file to which unusable rows are appended (file, line, reason).
    pub rejects_to: Option<PathBuf>,
    /// Of two rows with the same item id and different content keep the last instead of stopping.
    pub dedupe_last: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            text_template: None,
            max_reject_fraction: 0.001,
            max_unknown_fraction: 0.2,
            rejects_to: None,
            dedupe_last: false,
        }
    }
}

/// Endings of tables, in the order in which [`find_in`] looks for them.
const ENDINGS: [&str; 10] =
    ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "csv.zst", "tsv", "tsv.gz", "tsv.zst"];

/// The table called `stem` (`items`, `interactions`) in a data directory, whatever its ending.
///
/// # Errors
/// Input missing when there is none, bad data when there are several.
pub fn find_in(dir: &Path, stem: &str) -> anyhow::Result<PathBuf> {
    if !dir.is_dir() {
        return Err(input_missing(dir).context(format!("{} is not a directory that holds {stem}.*", dir.display())));
    }
    let found: Vec<PathBuf> =
        ENDINGS.iter().map(|ending| dir.join(format!("{stem}.{ending}"))).filter(|path| path.is_file()).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(input_missing(&dir.join(format!("{stem}.*"))).context(format!(
            "no table `{stem}` in {}: expected one of {stem}.{{{}}}",
            dir.display(),
            ENDINGS.join(", ")
        ))),
        several => Err(bad_data(format!(
            "several tables `{stem}` in {}: {}; keep one",
            dir.display(),
            several
                .iter()
                .filter_map(|path| path.file_name())
                .map(|name| name.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(", ")
        ))),
    }
}

/// Error for a column that the table lacks: names it, what there is, and the nearest name.
fn missing_column(path: &Path, wanted: &str, found: &[String]) -> anyhow::Error {
    let nearest = found
        .iter()
        .map(|name| (strsim::jaro_winkler(&name.to_lowercase(), &wanted.to_lowercase()), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.7);
    let hint = nearest.map_or(String::new(), |(_, name)| format!("; did you mean `{name}`?"));
    let columns = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    bad_data(format!("{}: no column `{wanted}`; columns found: {columns}{hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_found_whatever_its_ending() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_in(dir.path(), "items").unwrap_err().to_string().contains("no table `items`"));
        std::fs::write(dir.path().join("items.tsv.zst"), b"").unwrap();
        assert!(find_in(dir.path(), "items").unwrap().ends_with("items.tsv.zst"));
        std::fs::write(dir.path().join("items.csv"), b"").unwrap();
        assert!(find_in(dir.path(), "items").unwrap_err().to_string().contains("several"));
    }

    #[test]
    fn a_missing_column_comes_with_the_nearest_name() {
        let found = ["user".to_owned(), "itemid".to_owned()];
        let text = missing_column(Path::new("x.csv"), "item_id", &found).to_string();
        assert!(text.contains("no column `item_id`"), "{text}");
        assert!(text.contains("user, itemid"), "{text}");
        assert!(text.contains("did you mean `itemid`?"), "{text}");
    }
}
