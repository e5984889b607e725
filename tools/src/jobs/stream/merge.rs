//! Runs become one sequence: numbers among equal codes, repeated items, shards.

use super::run_file::{IdRecord, Record, RunReader, Stored};
use crate::error::bad_data;
use crate::table::{SidRows, SidsMeta, write_sid_rows};
use anyhow::Result;
use rqvae::{Code, SemanticId, SidSpec};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Most open runs, within what systems allow a process by default.
pub(super) const MAX_RUNS: usize = 900;
const SHOWN: usize = 10;

/// Hands over the records of all runs (path and digest each) in order.
fn merge<T: Stored>(runs: &[(PathBuf, String)], levels: usize, each: &mut dyn FnMut(T) -> Result<()>) -> Result<()> {
    let mut readers = Vec::with_capacity(runs.len());
    let mut heads = BinaryHeap::with_capacity(runs.len());
    for (at, (path, digest)) in runs.iter().enumerate() {
        let mut reader = RunReader::open(path, levels, digest)?;
        if let Some(record) = reader.next::<T>()? {
            heads.push(Reverse((record, at)));
        }
        readers.push(reader);
    }
    while let Some(Reverse((record, at))) = heads.pop() {
        if let Some(next) = readers[at].next::<T>()? {
            heads.push(Reverse((next, at)));
        }
        each(record)?;
    }
    Ok(())
}

/// Refuses items that occur twice with different vectors; gives back how many occur twice with the same.
pub(super) fn repeated(lists: &[(PathBuf, String)], table: &Path) -> Result<u64> {
    let mut last: Option<IdRecord> = None;
    let (mut same, mut different, mut first) = (0, 0u64, Vec::new());
    merge::<IdRecord>(lists, 0, &mut |record| {
        if let Some(last) = last.filter(|last| last.tie == record.tie) {
            if last.digest == record.digest {
                same += 1;
            } else {
                different += 1;
                if first.len() < SHOWN {
                    first.push(format!("lines {} and {}", last.line, record.line));
                }
            }
        }
        last = Some(record);
        Ok(())
    })?;
    if different > 0 {
        return Err(bad_data(format!(
            "{}: {different} rows repeat an item_id with different content; the first:\n  {}",
            table.display(),
            first.join("\n  ")
        )));
    }
    Ok(same)
}

/// How many items share their codes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Groups {
    pub(super) items: u64,
    pub(super) unique: u64,
    pub(super) largest: u64,
}

/// Hands over every item once, with its number among those of equal codes.
fn numbered(
    runs: &[(PathBuf, String)],
    levels: usize,
    each: &mut dyn FnMut(Record, u64) -> Result<()>,
) -> Result<Groups> {
    let mut groups = Groups::default();
    let mut last: Option<(SemanticId, u64, u64)> = None;
    merge::<Record>(runs, levels, &mut |record| {
        let rank = match last {
            // The same item again: `repeated` has found its vector to be the same.
            Some((codes, tie, _)) if codes == record.codes && tie == record.tie => return Ok(()),
            Some((codes, _, rank)) if codes == record.codes => rank + 1,
            _ => {
                groups.unique += 1;
                0
            }
        };
        last = Some((record.codes, record.tie, rank));
        groups.items += 1;
        groups.largest = groups.largest.max(rank + 1);
        each(record, rank)
    })?;
    Ok(groups)
}

/// Counts groups of equal codes.
///
/// # Errors
/// More than `max` items share their codes; a run is damaged.
pub(super) fn count(runs: &[(PathBuf, String)], levels: usize, max: u32) -> Result<Groups> {
    let mut too_large: Vec<(u64, SemanticId)> = Vec::new();
    let mut many = 0;
    let groups = numbered(runs, levels, &mut |record, rank| {
        match (rank.cmp(&u64::from(max)), too_large.last_mut()) {
            (Ordering::Less, _) => {}
            (Ordering::Greater, Some(group)) => group.0 = rank + 1,
            _ => {
                // The last one may still grow; those before it are sorted.
                many += 1;
                too_large.sort_by_key(|group| Reverse(group.0));
                too_large.truncate(SHOWN);
                too_large.push((rank + 1, record.codes));
            }
        }
        Ok(())
    })?;
    if many == 0 {
        return Ok(groups);
    }
    too_large.sort_by_key(|group| Reverse(group.0));
    let mut largest = String::new();
    for (size, codes) in too_large.iter().take(5) {
        let _ = write!(largest, "{}{codes} with {size} items", if largest.is_empty() { "" } else { "; " });
    }
    Err(rqvae::Error::Collisions { max, groups: many, largest }.into())
}

/// Name of a shard.
pub(super) fn shard_name(at: usize) -> String {
    format!("sids/part-{at:05}.parquet")
}

/// Writes the table in shards of `per_shard` items; those that an earlier attempt left are kept. `progress` hears how
/// many items are written. Gives back the number of shards.
pub(super) fn write_shards(
    runs: &[(PathBuf, String)],
    spec: &SidSpec,
    integer: bool,
    meta: &SidsMeta,
    (dir, per_shard): (&Path, usize),
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<usize> {
    let (mut rows, mut shards, mut written) = (SidRows::default(), 0, 0);
    let mut flush = |rows: SidRows, written: u64| -> Result<()> {
        let path = dir.join(shard_name(shards));
        if !path.is_file() {
            write_sid_rows(&path, rows, integer, spec, meta)?;
        }
        shards += 1;
        progress(written)
    };
    numbered(runs, spec.levels(), &mut |record, rank| {
        rows.keys.push(record.key);
        rows.codes.extend_from_slice(record.codes.codes());
        rows.codes.push(rank as Code);
        rows.ranks.push(rank as u32);
        rows.norms.push(f32::from_bits(record.norm));
        rows.digests.push(record.digest);
        written += 1;
        if rows.keys.len() < per_shard { Ok(()) } else { flush(std::mem::take(&mut rows), written) }
    })?;
    if !rows.keys.is_empty() {
        flush(rows, written)?;
    }
    Ok(shards)
}
