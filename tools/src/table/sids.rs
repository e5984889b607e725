//! The table of semantic IDs, `sids.parquet`: the product of the offline job, readable by any other engine.
//!
//! Columns: `item_id` (as in the input), `sid` (fixed-size list of u16, suffix included), `collision_rank` (u32, 0 for
//! the first holder of the base codes), `residual_norm` (f32), `embedding_digest` (16 bytes: the first of the BLAKE3 digest
//! of the content vector, little-endian f32). Rows are sorted by (`sid`, `item_id`). Key-value metadata, all with the
//! prefix `sidrec.`: `format`, `version`, `spec` (JSON), `digest` and `meta` (JSON).

use super::vectors::id_column;
use super::{ItemKeys, missing_column, parquet, source};
use crate::error::{bad_data, cannot_create};
use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch,
    StringArray, UInt16Array, UInt32Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, UInt16Type, UInt32Type};
use rqvae::{Code, ItemIdx, SidSpec, SidTable, Vectors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const FORMAT: &str = "sid-table";
const VERSION: &str = "2";
const COLUMNS: [&str; 5] = ["item_id", "sid", "collision_rank", "residual_norm", "embedding_digest"];
const DIGEST: i32 = 16;

/// How the IDs came about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SidsMeta {
    /// Quantiser method, e.g. `rqvae`.
    pub method: String,
    /// Content encoder, e.g. `lsa-128`.
    pub encoder: String,
    /// Digest of the quantiser's file.
    pub quantizer_digest: String,
    /// Digest of the file of content vectors.
    pub content_digest: String,
    /// Seed of the fit.
    pub seed: u64,
}

/// A table as read; all lists are in the order of the file, which is by (`sid`, `item_id`).
#[derive(Debug, Clone)]
pub struct SidsFile {
    /// External ids.
    pub keys: ItemKeys,
    /// IDs.
    pub table: SidTable,
    /// Rank of each item among those with the same base codes.
    pub collision_ranks: Vec<u32>,
    /// What the last level left over.
    pub residual_norms: Vec<f32>,
    /// Digest of each content vector: a later run skips items whose digest is the same.
    pub embedding_digests: Vec<[u8; 16]>,
    /// Digest of the table in catalogue order, as written.
    pub digest: String,
    /// How the IDs came about.
    pub meta: SidsMeta,
}

/// Writes the table of a catalogue; `residual_norms` (items,), `content` (items, dim).
///
/// # Errors
/// Lengths differ, or the file cannot be written.
pub fn write_sids(
    path: &Path,
    table: &SidTable,
    keys: &ItemKeys,
    residual_norms: &[f32],
    content: &Vectors,
    meta: &SidsMeta,
) -> anyhow::Result<()> {
    let n = table.items();
    if keys.len() != n || residual_norms.len() != n || content.rows() != n {
        return Err(bad_data(format!(
            "{n} semantic IDs for {} items with {} residual norms and {} content vectors",
            keys.len(),
            residual_norms.len(),
            content.rows()
        )));
    }
    let codes = |row: usize| table.codes(ItemIdx(row as u32));
    let key = |row: usize| keys.key(ItemIdx(row as u32));
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| {
        let by_key =
            if keys.integer { key(a).parse::<i64>().ok().cmp(&key(b).parse().ok()) } else { key(a).cmp(key(b)) };
        codes(a).cmp(codes(b)).then(by_key)
    });
    let ranks = collision_ranks(table, keys);
    let flat: Vec<Code> = order.iter().flat_map(|&row| codes(row).to_vec()).collect();
    let digests: Vec<[u8; 16]> = order.iter().map(|&row| content.digest(row)).collect();
    let rows = Columns {
        ids: id_column(keys, order.iter().copied()),
        codes: flat,
        ranks: order.iter().map(|&row| ranks[row]).collect(),
        norms: order.iter().map(|&row| residual_norms[row]).collect(),
        digests: digests.concat(),
    };
    rows.write(path, table.spec(), &table.digest(), meta)
}

/// Some rows of a table that is written in shards, in the order of the table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SidRows {
    /// External ids.
    pub keys: Vec<String>,
    /// IDs, (rows, codes), suffix included.
    pub codes: Vec<Code>,
    /// Rank of each item among those with the same base codes.
    pub ranks: Vec<u32>,
    /// What the last level left over.
    pub norms: Vec<f32>,
    /// Digests of the content vectors.
    pub digests: Vec<[u8; 16]>,
}

/// Writes one shard of a table of IDs of shape `spec`; ids are stored as whole numbers where `integer` is set.
///
/// # Errors
/// A code is out of range, or the file cannot be written.
pub fn write_sid_rows(
    path: &Path,
    rows: SidRows,
    integer: bool,
    spec: &SidSpec,
    meta: &SidsMeta,
) -> anyhow::Result<()> {
    let SidRows { keys, codes, ranks, norms, digests } = rows;
    let table = SidTable::new(spec.clone(), codes)?;
    let ids: ArrayRef = if integer {
        Arc::new(keys.iter().map(|key| key.parse().ok()).collect::<Int64Array>())
    } else {
        Arc::new(keys.into_iter().map(Some).collect::<StringArray>())
    };
    let digest = table.digest();
    let columns = Columns { ids, codes: table.flat().to_vec(), ranks, norms, digests: digests.concat() };
    columns.write(path, spec, &digest, meta)
}

/// The columns of the file.
struct Columns {
    ids: ArrayRef,
    codes: Vec<Code>,
    ranks: Vec<u32>,
    norms: Vec<f32>,
    digests: Vec<u8>,
}

impl Columns {
    fn write(self, path: &Path, spec: &SidSpec, digest: &str, meta: &SidsMeta) -> anyhow::Result<()> {
        let item = Arc::new(Field::new("item", DataType::UInt16, false));
        let width = i32::try_from(spec.len())?;
        let sid = FixedSizeListArray::try_new(item, width, Arc::new(UInt16Array::from(self.codes)), None)?;
        let digests = FixedSizeBinaryArray::try_new(DIGEST, self.digests.into(), None)?;
        let columns: [ArrayRef; 5] = [
            self.ids,
            Arc::new(sid),
            Arc::new(UInt32Array::from(self.ranks)),
            Arc::new(Float32Array::from(self.norms)),
            Arc::new(digests),
        ];
        let batch = RecordBatch::try_from_iter(COLUMNS.into_iter().zip(columns))?;
        let metadata = BTreeMap::from(
            [
                ("format", FORMAT.to_owned()),
                ("version", VERSION.to_owned()),
                ("spec", serde_json::to_string(spec)?),
                ("digest", digest.to_owned()),
                ("meta", serde_json::to_string(meta)?),
            ]
            .map(|(key, value)| (format!("sidrec.{key}"), value)),
        );
        let bytes = parquet::to_bytes(&batch, &metadata)?;
        rqvae::write_atomic(path, &bytes).map_err(|e| cannot_create(path, e))
    }
}

/// Rank of every item among those with the same base codes: its suffix, or the order of the tie hashes.
fn collision_ranks(table: &SidTable, keys: &ItemKeys) -> Vec<u32> {
    let levels = table.spec().levels();
    let mut order: Vec<usize> = (0..table.items()).collect();
    order.sort_by_key(|&row| {
        let codes = table.codes(ItemIdx(row as u32));
        (codes.to_vec(), keys.tie_hash()[row])
    });
    let mut ranks = vec![0; table.items()];
    for pair in order.windows(2) {
        let base = |row: usize| &table.codes(ItemIdx(row as u32))[..levels];
        if base(pair[0]) == base(pair[1]) {
            ranks[pair[1]] = ranks[pair[0]] + 1;
        }
    }
    ranks
}

/// Reads a table.
///
/// # Errors
/// Input missing; bad data when the file is broken, of another format or version, or holds impossible IDs.
pub fn read_sids(path: &Path) -> anyhow::Result<SidsFile> {
    let found = source::columns(path)?;
    for name in COLUMNS {
        if !found.iter().any(|column| column == name) {
            return Err(missing_column(path, name, &found));
        }
    }
    let wrong = |reason: String| bad_data(format!("{}: {reason}", path.display()));
    let metadata = parquet::metadata(path)?;
    let text = |key: &str| {
        metadata.get(&format!("sidrec.{key}")).ok_or_else(|| wrong(format!("metadata lacks `sidrec.{key}`")))
    };
    if text("format")? != FORMAT || text("version")? != VERSION {
        return Err(wrong(format!(
            "format `{}` version {}; this program reads `{FORMAT}` version {VERSION}",
            text("format")?,
            text("version")?
        )));
    }
    let spec: SidSpec =
        serde_json::from_str(text("spec")?).map_err(|e| wrong(format!("metadata `sidrec.spec`: {e}")))?;
    let meta: SidsMeta =
        serde_json::from_str(text("meta")?).map_err(|e| wrong(format!("metadata `sidrec.meta`: {e}")))?;
    let width = i32::try_from(spec.len())?;
    let (mut keys, mut codes) = (Vec::new(), Vec::<Code>::new());
    let (mut collision_ranks, mut residual_norms) = (Vec::new(), Vec::new());
    let mut embedding_digests = Vec::<[u8; 16]>::new();
    source::scan(path, &["item_id"], &mut |record| {
        let key = record.cells.and_then(|cells| cells[0].key("item_id"));
        keys.push(key.map_err(|reason| wrong(format!("row {}: {reason}", record.line)))?);
        Ok(())
    })?;
    parquet::batches(path, &COLUMNS[1..], &mut |batch| {
        let column = |name: &str, kind: &DataType| -> anyhow::Result<ArrayRef> {
            let column = batch.column_by_name(name).ok_or_else(|| wrong(format!("no column `{name}`")))?;
            let cast = cast(column, kind).map_err(|e| wrong(format!("column `{name}`: {e}")))?;
            if cast.null_count() > 0 {
                return Err(wrong(format!("column `{name}` holds nulls")));
            }
            Ok(cast)
        };
        let item = Arc::new(Field::new("item", DataType::UInt16, true));
        let sid = column("sid", &DataType::FixedSizeList(item, width))?;
        let sid = sid.as_fixed_size_list().values().clone();
        if sid.null_count() > 0 {
            return Err(wrong("column `sid` holds null codes".to_owned()));
        }
        codes.extend(sid.as_primitive::<UInt16Type>().values());
        let ranks = column("collision_rank", &DataType::UInt32)?;
        collision_ranks.extend(ranks.as_primitive::<UInt32Type>().values());
        let norms = column("residual_norm", &DataType::Float32)?;
        residual_norms.extend(norms.as_primitive::<Float32Type>().values());
        let digests = column("embedding_digest", &DataType::FixedSizeBinary(DIGEST))?;
        embedding_digests.extend(digests.as_fixed_size_binary().iter().flatten().map(|bytes| {
            let mut digest = [0; 16];
            digest.copy_from_slice(bytes);
            digest
        }));
        Ok(())
    })?;
    let table = SidTable::new(spec, codes).map_err(|e| wrong(e.to_string()))?;
    let keys = ItemKeys::new(keys)?;
    if table.items() != keys.len() {
        return Err(wrong(format!("{} semantic IDs for {} items", table.items(), keys.len())));
    }
    let digest = text("digest")?.clone();
    Ok(SidsFile { keys, table, collision_ranks, residual_norms, embedding_digests, digest, meta })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> ItemKeys {
        ItemKeys::new(names.iter().map(|&s| s.to_owned()).collect()).unwrap()
    }

    fn meta() -> SidsMeta {
        SidsMeta { method: "rkmeans".to_owned(), seed: 7, ..SidsMeta::default() }
    }

    #[test]
    fn a_table_round_trips_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sids.parquet");
        let spec = SidSpec { codebook_sizes: vec![4, 300], suffix_size: Some(2) };
        let table = SidTable::new(spec, vec![3, 299, 0, 1, 0, 1, 1, 0, 0]).unwrap();
        let keys = keys(&["10", "9", "8"]);
        let content = Vectors::new(2, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        write_sids(&path, &table, &keys, &[0.5, 0.25, 0.0], &content, &meta()).unwrap();
        let read = read_sids(&path).unwrap();
        assert_eq!(read.keys.iter().collect::<Vec<_>>(), ["8", "9", "10"]);
        assert!(read.keys.integer);
        assert_eq!(read.table.flat(), [1, 0, 0, 1, 0, 1, 3, 299, 0]);
        assert_eq!(read.table.spec(), table.spec());
        assert_eq!(read.collision_ranks, [0, 1, 0]);
        assert_eq!(read.residual_norms, [0.0, 0.25, 0.5]);
        assert_eq!(read.embedding_digests, [2, 1, 0].map(|row| content.digest(row)));
        assert_eq!(read.digest, table.digest());
        assert_eq!(read.meta, meta());
    }

    #[test]
    fn shared_ids_are_ranked_by_their_hashes() {
        let spec = SidSpec { codebook_sizes: vec![2], suffix_size: None };
        let table = SidTable::new(spec, vec![1, 0, 1, 1]).unwrap();
        let keys = keys(&["a", "b", "c", "d"]);
        let mut ranks = collision_ranks(&table, &keys);
        assert_eq!(ranks[1], 0);
        let hash = keys.tie_hash();
        let first = [0, 2, 3].into_iter().min_by_key(|&row: &usize| hash[row]);
        assert_eq!(ranks[first.unwrap()], 0);
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 0, 1, 2]);
    }

    #[test]
    fn broken_tables_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sids.parquet");
        assert!(read_sids(&path).is_err());
        let spec = SidSpec { codebook_sizes: vec![2], suffix_size: None };
        let table = SidTable::new(spec, vec![1, 0]).unwrap();
        let keys = keys(&["a", "b"]);
        let content = Vectors::new(1, vec![0.0, 1.0]).unwrap();
        assert!(write_sids(&path, &table, &keys, &[0.0], &content, &meta()).is_err());
        write_sids(&path, &table, &keys, &[0.0, 0.0], &content, &meta()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        let error = read_sids(&path).unwrap_err().to_string();
        assert!(error.contains("sids.parquet"), "{error}");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, &bytes).unwrap();
            // An error or a table, never a panic.
            let _ = read_sids(&path);
        }
        let other = dir.path().join("v.parquet");
        let vectors = rqvae::Vectors::new(1, vec![0.0, 1.0]).unwrap();
        super::super::write_vectors(&other, &vectors, &keys).unwrap();
        let error = read_sids(&other).unwrap_err().to_string();
        assert!(error.contains("no column `sid`"), "{error}");
    }
}
