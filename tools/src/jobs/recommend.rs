//! Batch recommendation: histories in, ranked items out.

use crate::catalogue::Catalogue;
use crate::error::cannot_create;
use crate::models::Model;
use crate::progress::Stage;
use crate::table::Interactions;
use anyhow::{Result, bail};
use arrow::array::{Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use rqvae::ItemIdx;
use seqmodel::{Query, Scored};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

/// Users asked at once.
const BATCH: usize = 512;

/// One row of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// User, as in the input.
    pub user_id: String,
    /// From 1.
    pub rank: u32,
    /// External id.
    pub item_id: String,
    /// Natural-log probability where the model has one.
    pub score: f32,
    /// Semantic ID, e.g. `12,7,201,0`.
    pub sid: String,
}

/// Best `k` items for every user, seen items left out. Users with an empty history get no row.
pub fn recommend(
    model: &Model,
    catalogue: &Catalogue,
    histories: &Interactions,
    k: usize,
    beam: usize,
) -> Result<Vec<Row>> {
    let retriever = model.retriever(&catalogue.trie, beam, catalogue.keys.tie_hash())?;
    let users: Vec<&[ItemIdx]> = histories.histories.iter().collect();
    let mut stage = Stage::new("recommend", users.len() as u64);
    let mut rows = Vec::new();
    for (chunk, names) in users.chunks(BATCH).zip(histories.users.chunks(BATCH)) {
        // Removed items are not in the trie; models that rank without it are told.
        let exclude: Vec<Vec<ItemIdx>> =
            chunk.iter().map(|history| [history, &catalogue.removed[..]].concat()).collect();
        let queries: Vec<_> = chunk.iter().zip(&exclude).map(|(history, exclude)| Query { history, exclude }).collect();
        for (user, list) in names.iter().zip(retriever.retrieve(&queries, k)?) {
            rows.extend(list.iter().enumerate().map(|(at, scored)| row(catalogue, user, at, scored)));
        }
        stage.at((rows.len() / k.max(1)) as u64, users.len() as u64, "users");
    }
    stage.done(&format!("{} users, {} rows", users.len(), rows.len()));
    Ok(rows)
}

fn row(catalogue: &Catalogue, user: &str, at: usize, scored: &Scored) -> Row {
    Row {
        user_id: user.to_string(),
        rank: at as u32 + 1,
        item_id: catalogue.keys.key(scored.item).to_string(),
        score: scored.score,
        sid: catalogue.sids.sid(scored.item).to_string(),
    }
}

/// Writes rows as Parquet, CSV or JSON lines by the ending of `path`.
///
/// # Errors
/// Cannot create; an ending that is none of the three.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let create = || File::create(path).map_err(|e| cannot_create(path, e));
    match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => {
            let schema = Arc::new(Schema::new(vec![
                Field::new("user_id", DataType::Utf8, false),
                Field::new("rank", DataType::UInt32, false),
                Field::new("item_id", DataType::Utf8, false),
                Field::new("score", DataType::Float32, false),
                Field::new("sid", DataType::Utf8, false),
            ]));
            let strings = |f: fn(&Row) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(f)));
            let batch = RecordBatch::try_new(
                Arc::clone(&schema),
                vec![
                    strings(|r| &r.user_id),
                    Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.rank))),
                    strings(|r| &r.item_id),
                    Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| r.score))),
                    strings(|r| &r.sid),
                ],
            )?;
            let mut writer = ArrowWriter::try_new(create()?, schema, None)?;
            writer.write(&batch)?;
            writer.close()?;
        }
        Some("csv") => {
            let mut writer = csv::Writer::from_writer(create()?);
            rows.iter().try_for_each(|row| writer.serialize(row))?;
            writer.flush()?;
        }
        Some("jsonl") => {
            let mut writer = BufWriter::new(create()?);
            for row in rows {
                serde_json::to_writer(&mut writer, row)?;
                writer.write_all(b"\n")?;
            }
            writer.flush()?;
        }
        _ => bail!("{}: expected an ending of .parquet, .csv or .jsonl", path.display()),
    }
    Ok(())
}
