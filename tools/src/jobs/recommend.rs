//! Batch recommendation: histories in, ranked items out, part by part.

use crate::catalogue::Catalogue;
use crate::error::{Fault, cannot_create, fault};
use crate::models::{Asking, Model};
use crate::progress::Stage;
use crate::table::Interactions;
use anyhow::{Result, bail};
use arrow::array::{Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rqvae::ItemIdx;
use seqmodel::{History, Query, Scored};
use serde::Serialize;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Users asked at once.
const BATCH: usize = 512;

/// Users per part.
const PART: usize = if cfg!(test) { 64 } else { 8 * BATCH };

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

/// What is asked for, and of whom.
pub struct Asked<'a> {
    /// Items per user.
    pub k: usize,
    /// Beams.
    pub beam: usize,
    /// The run that the model was read from.
    pub run: &'a Path,
    /// How the model is asked.
    pub asking: Asking,
}

/// Best items for every user, seen items left out, written to `out` part by part: after an interruption the same command
/// goes on behind the last whole part. Users with an empty history get no row.
///
/// # Errors
/// Cannot create; parts of another question are in the way; interrupted by a signal.
pub fn recommend_to(
    out: &Path,
    model: &Model,
    catalogue: &Catalogue,
    histories: &Interactions,
    asked: &Asked,
    signal: &dyn Fn() -> Option<i32>,
) -> Result<()> {
    let parts = Parts::open(out, &question(catalogue, histories, asked))?;
    let retriever = model.retriever(&catalogue.trie, asked.beam, catalogue.keys.tie_hash())?;
    let all = &histories.histories;
    let read = |user: usize| History { items: all.of(user), user: all.hash(user) };
    let users: Vec<History> = (0..all.users()).map(read).collect();
    let total = users.len() as u64;
    let mut stage = Stage::new("recommend", total);
    let (began, mut fresh) = (Instant::now(), 0);
    for (at, (chunk, names)) in users.chunks(PART).zip(histories.users.chunks(PART)).enumerate() {
        if parts.has(at) {
            continue;
        }
        let mut rows = Vec::new();
        for (chunk, names) in chunk.chunks(BATCH).zip(names.chunks(BATCH)) {
            if let Some(signal) = signal() {
                let message = "interrupted; the same command goes on where this one stopped";
                return Err(fault(Fault::Interrupted(signal), message));
            }
            // Removed items are not in the trie; models that rank without it are told.
            let exclude: Vec<Vec<ItemIdx>> =
                chunk.iter().map(|history| [history.items, &catalogue.removed[..]].concat()).collect();
            let both = chunk.iter().zip(&exclude);
            let queries: Vec<_> =
                both.map(|(of, exclude)| Query { history: of.items, user: of.user, exclude }).collect();
            for (user, list) in names.iter().zip(retriever.retrieve(&queries, asked.k)?) {
                rows.extend(list.iter().enumerate().map(|(at, scored)| row(catalogue, user, at, scored)));
            }
            fresh += chunk.len();
            let rate = fresh as f64 / began.elapsed().as_secs_f64();
            let done = (at * PART + rows.len() / asked.k.max(1)) as u64;
            stage.at(done.min(total), total, &format!("users, {rate:.0}/s"));
        }
        parts.write(at, &rows)?;
    }
    let rows = parts.join(users.len().div_ceil(PART))?;
    let rate = fresh as f64 / began.elapsed().as_secs_f64();
    stage.done(&format!("{total} users, {rows} rows, {rate:.0} users/s"));
    Ok(())
}

/// Digest of everything that the answer depends on.
fn question(catalogue: &Catalogue, histories: &Interactions, asked: &Asked) -> String {
    let mut hasher = blake3::Hasher::new();
    let run = std::fs::canonicalize(asked.run).unwrap_or_else(|_| asked.run.to_path_buf());
    let best = std::fs::read_to_string(run.join("best")).unwrap_or_default();
    let numbers = format!("{} {} {:?} {best}", asked.k, asked.beam, asked.asking);
    for part in [run.to_string_lossy().as_bytes(), catalogue.version().as_bytes(), numbers.as_bytes()] {
        hasher.update(part);
    }
    for (user, history) in histories.users.iter().zip(histories.histories.iter()) {
        hasher.update(user.as_bytes()).update(&[0]);
        history.iter().for_each(|item| {
            hasher.update(&item.0.to_le_bytes());
        });
        hasher.update(&[0xff]);
    }
    hasher.finalize().to_hex().to_string()
}

/// A folder `OUT.parts` of whole parts, each written aside and renamed into place.
struct Parts {
    out: PathBuf,
    dir: PathBuf,
    ending: String,
}

impl Parts {
    fn open(out: &Path, question: &str) -> Result<Self> {
        let mut name = out.as_os_str().to_os_string();
        name.push(".parts");
        let dir = PathBuf::from(name);
        let ending = out.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        let job = dir.join("question");
        match std::fs::read_to_string(&job) {
            Ok(found) if found == question => {}
            Ok(_) => {
                let why = "it holds parts of another run, catalogue or set of histories; remove it first";
                return Err(cannot_create(&dir, why));
            }
            Err(_) => {
                std::fs::create_dir_all(&dir).map_err(|e| cannot_create(&dir, e))?;
                rqvae::write_atomic(&job, question.as_bytes())?;
            }
        }
        Ok(Self { out: out.to_path_buf(), dir, ending })
    }

    fn path(&self, at: usize) -> PathBuf {
        self.dir.join(format!("{at:08}.{}", self.ending))
    }

    fn has(&self, at: usize) -> bool {
        self.path(at).is_file()
    }

    fn write(&self, at: usize, rows: &[Row]) -> Result<()> {
        let aside = self.dir.join(format!("next.{}", self.ending));
        write(&aside, rows)?;
        std::fs::rename(&aside, self.path(at)).map_err(|e| cannot_create(&self.path(at), e))
    }

    /// All parts as one file; the folder goes. Returns the rows.
    fn join(self, count: usize) -> Result<usize> {
        let mut aside = self.out.as_os_str().to_os_string();
        aside.push(".next");
        let aside = PathBuf::from(aside);
        let create = || File::create(&aside).map_err(|e| cannot_create(&aside, e));
        let open = |at: usize| File::open(self.path(at)).map_err(rqvae::Error::io(&self.path(at)));
        let mut rows = 0;
        if self.ending == "parquet" {
            let mut writer = ArrowWriter::try_new(create()?, schema(), None)?;
            for at in 0..count {
                for batch in ParquetRecordBatchReaderBuilder::try_new(open(at)?)?.build()? {
                    let batch = batch?;
                    rows += batch.num_rows();
                    writer.write(&batch)?;
                }
            }
            writer.close()?;
        } else {
            let mut writer = BufWriter::new(create()?);
            for at in 0..count {
                for (line, text) in BufReader::new(open(at)?).lines().enumerate() {
                    let heading = self.ending == "csv" && line == 0;
                    if heading && at > 0 {
                        continue;
                    }
                    rows += usize::from(!heading);
                    writer.write_all(text?.as_bytes())?;
                    writer.write_all(b"\n")?;
                }
            }
            writer.flush()?;
        }
        std::fs::rename(&aside, &self.out).map_err(|e| cannot_create(&self.out, e))?;
        std::fs::remove_dir_all(&self.dir).map_err(rqvae::Error::io(&self.dir))?;
        Ok(rows)
    }
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("rank", DataType::UInt32, false),
        Field::new("item_id", DataType::Utf8, false),
        Field::new("score", DataType::Float32, false),
        Field::new("sid", DataType::Utf8, false),
    ]))
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
fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let create = || File::create(path).map_err(|e| cannot_create(path, e));
    match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => {
            let schema = schema();
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
            if rows.is_empty() {
                writer.write_record(["user_id", "rank", "item_id", "score", "sid"])?;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{DemoConfig, generate};
    use crate::jobs::build_sids::{Content, build};
    use crate::models::RunConfig;
    use crate::table::{ReadOptions, find_in, read_interactions, read_items};
    use rqvae::QuantizerConfig;
    use std::cell::Cell;

    #[test]
    fn an_interrupted_job_goes_on_and_ends_with_the_same_bytes() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        crate::demo::write(&at("data"), &generate(&DemoConfig { items: 300, users: 200, seed: 3 }))?;
        let options = ReadOptions::default();
        let items = read_items(&find_in(&at("data"), "items")?, &options)?;
        let histories = read_interactions(&find_in(&at("data"), "interactions")?, &items.keys, &options)?;
        let source = Content::choose(&items, None, Some("hashed"), 1)?;
        let quantizer = QuantizerConfig { levels: 2, codebook_size: 8, ..QuantizerConfig::default() };
        let catalogue = build(&items, &source.vectors(&items)?, "hashed", &quantizer, &|_| true)?.catalogue;
        let config = RunConfig::preset("rqt", "quick")?;
        let model = Model::new(&config.model, &crate::jobs::train::features(&catalogue)?, 1)?;
        let run = at("run");
        let asked = |k| Asked { k, beam: 10, run: &run, asking: Asking::default() };
        let whole = |out: &Path, k| recommend_to(out, &model, &catalogue, &histories, &asked(k), &|| None);
        for ending in ["jsonl", "csv", "parquet"] {
            let (plain, stopped) = (at(&format!("plain.{ending}")), at(&format!("stopped.{ending}")));
            whole(&plain, 4)?;
            let turns = Cell::new(0);
            let signal = || {
                turns.set(turns.get() + 1);
                (turns.get() == 3).then_some(2)
            };
            let error = recommend_to(&stopped, &model, &catalogue, &histories, &asked(4), &signal).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 130);
            assert!(!stopped.exists());
            // Another question must not be mixed into its parts.
            assert_eq!(crate::error::exit_code(&whole(&stopped, 5).unwrap_err()), 73);
            whole(&stopped, 4)?;
            assert_eq!(std::fs::read(&plain)?, std::fs::read(&stopped)?, "{ending}");
            assert!(!at(&format!("stopped.{ending}.parts")).exists());
        }
        let lines = std::fs::read_to_string(at("plain.csv"))?.lines().count();
        let users = histories.histories.iter().filter(|history| !history.is_empty()).count();
        assert_eq!(lines, 1 + 4 * users);
        Ok(())
    }
}
