//! Encoding, part by part: each leaves a sorted run, a list of ids, and then its summary, which makes it count.

use super::super::build_sids;
use super::merge::MAX_RUNS;
use super::plan::{Fitted, Workplace};
use super::run_file::{IdRecord, Record, write};
use crate::error::{Fault, fault};
use crate::progress::Stage;
use crate::table::{BatchContent, ItemBatch, ItemStream, is_integer, tie_hash};
use anyhow::Result;
use beam::cuda::Device;
use rayon::prelude::*;
use rqvae::{Code, ContentEncoder, Encoded, SemanticId, SidEncoder, Vectors};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Batches that are read ahead while others are encoded.
const AHEAD: usize = 2;

/// What is known of a part that is on disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summary {
    /// Rows of the table, unusable ones included.
    pub(super) rows: u64,
    pub(super) items: u64,
    pub(super) rejected: u64,
    pub(super) first_rejects: Vec<String>,
    /// Whether every id is a whole number.
    pub(super) integer: bool,
    /// Items per code, by level.
    pub(super) counts: Vec<Vec<u64>>,
    /// Sum of content minus the mean of the fit, by dimension; of its squared length; of squared errors.
    pub(super) sum: Vec<f64>,
    pub(super) spread: f64,
    pub(super) errors: f64,
    /// Seconds in the quantiser.
    pub(super) encode_seconds: f64,
    /// Digests of the run and of the list of ids.
    pub(super) run: String,
    pub(super) ids: String,
    /// Whether the table ends here.
    pub(super) last: bool,
}

/// Sizes of what is done at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: u64,
    pub(super) batches_per_part: u64,
}

impl Sizes {
    const BATCH: u64 = 1 << 14;

    /// Parts of about `items` rows.
    pub(super) fn of(items: usize) -> Self {
        let items = (items as u64).max(1);
        let batch = items.min(Self::BATCH);
        Self { batch, batches_per_part: items.div_ceil(batch) }
    }

    fn part(self) -> u64 {
        self.batch * self.batches_per_part
    }
}

/// What makes codes of items.
pub(super) struct Encoders<'a> {
    /// Of texts, where there are no vectors.
    pub(super) content: Option<&'a dyn ContentEncoder>,
    pub(super) quantizer: &'a dyn SidEncoder,
    /// Where the quantiser computes, `None` for the processor.
    pub(super) device: Option<&'a Arc<dyn Device>>,
}

/// Items of the part at hand.
#[derive(Default)]
struct Part {
    summary: Summary,
    codes: Vec<Code>,
    keys: Vec<String>,
    ties: Vec<u64>,
    lines: Vec<u64>,
    norms: Vec<f32>,
    digests: Vec<[u8; 16]>,
}

/// Encodes whatever no earlier attempt has, and gives back the summaries of all parts.
///
/// # Errors
/// The table is broken, an encoder failed, `stopped` said so, or the disk did.
pub(super) fn encode(
    place: &Workplace,
    stream: &ItemStream,
    how: &Encoders,
    fitted: &Fitted,
    sizes: Sizes,
    stopped: &dyn Fn() -> Result<()>,
) -> Result<Vec<Summary>> {
    let mut done: Vec<Summary> = Vec::new();
    while done.last().is_none_or(|part| !part.last)
        && let Some(summary) = place.read(&summary_name(done.len()))?
    {
        done.push(summary);
    }
    if done.last().is_some_and(|part| part.last) {
        return Ok(done);
    }
    let total = stream.rows()?.unwrap_or(0);
    let from = done.len() as u64 * sizes.part();
    let mut stage = Stage::new("encode items", total);
    let (began, mut rows) = (Instant::now(), from);
    // A batch, or nothing where the table ends; a reader in trouble says neither.
    let (send, receive) = sync_channel::<Option<ItemBatch>>(AHEAD);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let say = |word| send.send(word).map_err(|_| anyhow::anyhow!("nobody listens"));
            let dim = Some(fitted.dim).filter(|_| stream.has_vectors());
            stream.read(from, sizes.batch, dim, true, &mut |batch| say(Some(batch)))?;
            say(None)
        });
        let mut work = || -> Result<()> {
            let (mut part, mut batches) = (Part::default(), 0);
            for word in &receive {
                stopped()?;
                let Some(batch) = word else {
                    done.push(std::mem::take(&mut part).write(place, done.len(), how.quantizer, true)?);
                    break;
                };
                rows += batch.rows;
                part.add(batch, how, fitted)?;
                batches += 1;
                if batches == sizes.batches_per_part {
                    done.push(std::mem::take(&mut part).write(place, done.len(), how.quantizer, false)?);
                    batches = 0;
                }
                let rate = (rows - from) as f64 / began.elapsed().as_secs_f64().max(1e-9);
                stage.at(rows, total, &format!("{rate:.0} items/s"));
            }
            Ok(())
        };
        let worked = work();
        drop(receive);
        let read = reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the reading thread panicked")));
        worked.and(read)
    })?;
    let items: u64 = done.iter().map(|part| part.items).sum();
    stage.done(&format!("{items} items in {} parts", done.len()));
    Ok(done)
}

impl Part {
    fn add(&mut self, batch: ItemBatch, how: &Encoders, fitted: &Fitted) -> Result<()> {
        let summary = &mut self.summary;
        summary.rows += batch.rows;
        summary.rejected += batch.rejected;
        let room = 10 - summary.first_rejects.len().min(10);
        summary.first_rejects.extend(batch.first_rejects.into_iter().take(room));
        if batch.keys.is_empty() {
            return Ok(());
        }
        let vectors = match (batch.content, how.content) {
            (BatchContent::Vectors(dim, data), _) => Vectors::new(dim, data)?,
            (BatchContent::Texts(texts), Some(encoder)) => encoder.encode(&texts, &mut |_| ())?,
            (BatchContent::Texts(_), None) => return Err(fault(Fault::Usage, "texts need an encoder")),
        };
        let began = Instant::now();
        let encoded = build_sids::encode(how.quantizer, &vectors, how.device)?;
        summary.encode_seconds += began.elapsed().as_secs_f64();
        summary.items += batch.keys.len() as u64;
        summary.measure(&vectors, &encoded, how.quantizer.codebook_sizes(), &fitted.mean);
        self.codes.extend_from_slice(encoded.codes.flat());
        self.ties.par_extend(batch.keys.par_iter().map(|key| tie_hash(key)));
        self.digests.par_extend((0..vectors.rows()).into_par_iter().map(|row| vectors.digest(row)));
        self.norms.extend(encoded.residual_norms);
        self.lines.extend(batch.lines);
        self.keys.extend(batch.keys);
        Ok(())
    }

    fn write(mut self, place: &Workplace, at: usize, quantizer: &dyn SidEncoder, last: bool) -> Result<Summary> {
        if at >= MAX_RUNS {
            let message = format!("--shard-items: more than {MAX_RUNS} parts; give a larger one");
            return Err(fault(Fault::Usage, message));
        }
        let levels = quantizer.codebook_sizes().len();
        let codes = |row: u32| &self.codes[row as usize * levels..][..levels];
        let mut order: Vec<u32> = (0..self.keys.len() as u32).collect();
        order.par_sort_unstable_by_key(|&row| (self.ties[row as usize], self.lines[row as usize]));
        let ids = order.iter().map(|&row| {
            let row = row as usize;
            IdRecord { tie: self.ties[row], line: self.lines[row], digest: self.digests[row] }
        });
        self.summary.ids = write(&list_path(&place.dir, at), ids)?;
        // Stable: among equal codes the order by hash and line stays.
        order.par_sort_by(|&a, &b| codes(a).cmp(codes(b)));
        let mut unreadable = None;
        let records = order.iter().map_while(|&row| {
            let codes = SemanticId::new(codes(row)).map_err(|e| unreadable = Some(e)).ok()?;
            let row = row as usize;
            let (tie, line, norm) = (self.ties[row], self.lines[row], self.norms[row].to_bits());
            Some(Record { codes, tie, line, key: self.keys[row].clone(), norm, digest: self.digests[row] })
        });
        self.summary.run = write(&run_path(&place.dir, at), records)?;
        if let Some(error) = unreadable {
            return Err(error.into());
        }
        self.summary.integer = self.keys.iter().all(|key| is_integer(key));
        self.summary.last = last;
        place.write(&summary_name(at), &self.summary)?;
        Ok(self.summary)
    }
}

impl Summary {
    fn measure(&mut self, vectors: &Vectors, encoded: &Encoded, sizes: &[u32], mean: &[f64]) {
        if self.counts.is_empty() {
            self.counts = sizes.iter().map(|&size| vec![0; size as usize]).collect();
            self.sum = vec![0.0; mean.len()];
        }
        for (row, &norm) in encoded.residual_norms.iter().enumerate() {
            for (counts, &code) in self.counts.iter_mut().zip(encoded.codes.row(row)) {
                counts[usize::from(code)] += 1;
            }
            self.errors += f64::from(norm).powi(2);
            for ((sum, &x), mean) in self.sum.iter_mut().zip(vectors.row(row)).zip(mean) {
                let away = f64::from(x) - mean;
                *sum += away;
                self.spread += away * away;
            }
        }
    }
}

fn summary_name(at: usize) -> String {
    format!("parts/{at:05}.json")
}

/// The run of a part.
pub(super) fn run_path(dir: &Path, at: usize) -> PathBuf {
    dir.join(format!("parts/{at:05}.run"))
}

/// The list of the ids of a part.
pub(super) fn list_path(dir: &Path, at: usize) -> PathBuf {
    dir.join(format!("parts/{at:05}.ids"))
}
