//! Content vectors on disk: `.npy`, `.safetensors` and `.parquet`.
//!
//! Parquet and our own safetensors files carry item ids and are joined by them, so they may be in any order and hold
//! more items than the catalogue. `NumPy` files, and safetensors files without ids, are in catalogue order.

use super::cell::Cell;
use super::open::read_error;
use super::rejects::SHOWN;
use super::{ItemKeys, missing_column, npy, parquet, source};
use crate::error::{bad_data, cannot_create, input_missing};
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use rqvae::{ItemIdx, Vectors};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Name of the vectors in Parquet and safetensors files.
pub(super) const EMBEDDING: &str = "embedding";

/// Reads the vectors of a catalogue, (items, dim) in catalogue order.
///
/// # Errors
/// Input missing; bad data when an item has no vector, widths differ, a number is not finite, or the file is broken.
pub fn read_vectors(path: &Path, keys: &ItemKeys) -> anyhow::Result<Vectors> {
    match ending(path) {
        "npy" => {
            let (rows, dim, data) =
                npy::parse(&read(path)?).map_err(|reason| bad_data(format!("{}: {reason}", path.display())))?;
            in_order(path, keys, rows, dim, data)
        }
        "safetensors" => from_safetensors(path, keys, &read(path)?),
        "parquet" => from_parquet(path, keys),
        _ => Err(unknown_ending(path)),
    }
}

/// Writes the vectors of a catalogue, (items, dim) in catalogue order.
///
/// # Errors
/// Unknown ending, or the file cannot be written.
pub fn write_vectors(path: &Path, vectors: &Vectors, keys: &ItemKeys) -> anyhow::Result<()> {
    if vectors.rows() != keys.len() {
        return Err(bad_data(format!("{} vectors for {} items", vectors.rows(), keys.len())));
    }
    let bytes = match ending(path) {
        "npy" => npy::to_bytes(vectors.rows(), vectors.dim, &vectors.data),
        "safetensors" => {
            let data: Vec<u8> = vectors.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            to_safetensors(Dtype::F32, &data, (vectors.rows(), vectors.dim), keys)?
        }
        "parquet" => to_parquet(vectors, keys)?,
        _ => return Err(unknown_ending(path)),
    };
    rqvae::write_atomic(path, &bytes).map_err(|e| cannot_create(path, e))
}

/// Writes the vectors of a catalogue to a safetensors file in 16 bits: half the size, some three digits.
///
/// # Errors
/// The file cannot be written.
pub fn write_half_vectors(path: &Path, vectors: &Vectors, keys: &ItemKeys) -> anyhow::Result<()> {
    let data: Vec<u8> = vectors.data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    let bytes = to_safetensors(Dtype::F16, &data, (vectors.rows(), vectors.dim), keys)?;
    rqvae::write_atomic(path, &bytes).map_err(|e| cannot_create(path, e))
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

fn unknown_ending(path: &Path) -> anyhow::Error {
    bad_data(format!("{}: unknown kind of vectors; expected .npy, .safetensors or .parquet", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => input_missing(path),
        _ => read_error(path, e),
    })
}

/// Rows that are in catalogue order already.
fn in_order(path: &Path, keys: &ItemKeys, rows: usize, dim: usize, data: Vec<f32>) -> anyhow::Result<Vectors> {
    if rows != keys.len() {
        return Err(bad_data(format!(
            "{}: {rows} vectors for {} items; without item ids there must be one for each, in their order",
            path.display(),
            keys.len()
        )));
    }
    if dim == 0 {
        return Err(bad_data(format!("{}: vectors of width 0", path.display())));
    }
    finite(path, keys, &data, dim)?;
    Ok(Vectors::new(dim, data)?)
}

fn finite(path: &Path, keys: &ItemKeys, data: &[f32], dim: usize) -> anyhow::Result<()> {
    match data.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(bad_data(format!(
            "{}: the vector of item `{}` (row {}) holds {} at place {}",
            path.display(),
            keys.key(ItemIdx((at / dim) as u32)),
            at / dim,
            data[at],
            at % dim
        ))),
    }
}

/// Puts vectors that came with ids into catalogue order.
struct Join<'a> {
    path: &'a Path,
    keys: &'a ItemKeys,
    dim: usize,
    data: Vec<f32>,
    seen: Vec<bool>,
}

impl<'a> Join<'a> {
    fn new(path: &'a Path, keys: &'a ItemKeys) -> Self {
        Self { path, keys, dim: 0, data: Vec::new(), seen: vec![false; keys.len()] }
    }

    fn put(&mut self, key: &str, vector: &[f32]) -> Result<(), String> {
        if self.dim == 0 {
            self.dim = vector.len();
            self.data = vec![0.0; self.dim * self.keys.len()];
        }
        if vector.len() != self.dim {
            return Err(format!(
                "the vector of item `{key}` has {} numbers, those before have {}",
                vector.len(),
                self.dim
            ));
        }
        let Some(ItemIdx(row)) = self.keys.find(key) else {
            return Ok(());
        };
        let row = row as usize;
        if std::mem::replace(&mut self.seen[row], true) {
            return Err(format!("item `{key}` has two vectors"));
        }
        self.data[row * self.dim..][..self.dim].copy_from_slice(vector);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Vectors> {
        let lacking: Vec<String> =
            self.keys.iter().zip(&self.seen).filter(|(_, seen)| !**seen).map(|(key, _)| format!("`{key}`")).collect();
        if !lacking.is_empty() {
            return Err(bad_data(format!(
                "{}: {} of {} items have no vector, such as {}",
                self.path.display(),
                lacking.len(),
                self.keys.len(),
                lacking[..lacking.len().min(SHOWN)].join(", ")
            )));
        }
        finite(self.path, self.keys, &self.data, self.dim.max(1))?;
        Ok(Vectors::new(self.dim, self.data)?)
    }
}

fn from_parquet(path: &Path, keys: &ItemKeys) -> anyhow::Result<Vectors> {
    let found = source::columns(path)?;
    for name in ["item_id", EMBEDDING] {
        if !found.iter().any(|column| column == name) {
            return Err(missing_column(path, name, &found));
        }
    }
    let mut join = Join::new(path, keys);
    source::scan(path, &["item_id", EMBEDDING], &mut |record| {
        let put = |cells: Vec<Cell>| {
            let key = cells[0].key("item_id")?;
            let vector = cells[1].vector(EMBEDDING).map_err(|reason| format!("item `{key}`: {reason}"))?;
            join.put(&key, &vector)
        };
        record
            .cells
            .and_then(put)
            .map_err(|reason| bad_data(format!("{}: row {}: {reason}", path.display(), record.line)))
    })?;
    join.finish()
}

fn to_parquet(vectors: &Vectors, keys: &ItemKeys) -> anyhow::Result<Vec<u8>> {
    let values: ArrayRef = Arc::new(Float32Array::from(vectors.data.clone()));
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let width = i32::try_from(vectors.dim)?;
    let embedding: ArrayRef = Arc::new(FixedSizeListArray::try_new(item, width, values, None)?);
    let batch = RecordBatch::try_from_iter([("item_id", id_column(keys, 0..keys.len())), (EMBEDDING, embedding)])?;
    parquet::to_bytes(&batch, &BTreeMap::new())
}

/// Ids of the given rows: whole numbers where the input had them, texts otherwise.
pub(super) fn id_column(keys: &ItemKeys, rows: impl Iterator<Item = usize>) -> ArrayRef {
    let rows = rows.map(|row| keys.key(ItemIdx(row as u32)));
    if keys.integer {
        Arc::new(rows.map(|key| key.parse().ok()).collect::<Int64Array>())
    } else {
        Arc::new(rows.map(Some).collect::<StringArray>())
    }
}

fn to_safetensors(dtype: Dtype, data: &[u8], (rows, dim): (usize, usize), keys: &ItemKeys) -> anyhow::Result<Vec<u8>> {
    let key_bytes: Vec<u8> = keys.iter().flat_map(str::bytes).collect();
    let mut end = 0_u64;
    let mut offsets: Vec<u8> = end.to_le_bytes().to_vec();
    for key in keys.iter() {
        end += key.len() as u64;
        offsets.extend(end.to_le_bytes());
    }
    let entries = [
        (EMBEDDING, TensorView::new(dtype, vec![rows, dim], data)?),
        ("key_offsets", TensorView::new(Dtype::U64, vec![keys.len() + 1], &offsets)?),
        ("key_bytes", TensorView::new(Dtype::U8, vec![key_bytes.len()], &key_bytes)?),
    ];
    let metadata = HashMap::from([("format".to_owned(), "content-vectors".to_owned())]);
    Ok(safetensors::serialize(entries, Some(metadata))?)
}

fn from_safetensors(path: &Path, keys: &ItemKeys, bytes: &[u8]) -> anyhow::Result<Vectors> {
    let wrong = |reason: String| bad_data(format!("{}: {reason}", path.display()));
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
    let flat: Vec<_> = file.tensors().into_iter().filter(|(_, tensor)| tensor.shape().len() == 2).collect();
    let (name, tensor) = match flat.as_slice() {
        [one] => one,
        several => several.iter().find(|(name, _)| name == EMBEDDING || name == "embeddings").ok_or_else(|| {
            let names: Vec<&str> = file.names();
            wrong(format!("no entry `{EMBEDDING}` of shape (items, dim); entries found: {}", names.join(", ")))
        })?,
    };
    let (rows, dim) = (tensor.shape()[0], tensor.shape()[1]);
    let data = match tensor.dtype() {
        Dtype::F16 => npy::halves(tensor.data()),
        Dtype::BF16 => npy::brain_halves(tensor.data()),
        Dtype::F32 => npy::singles(tensor.data()),
        Dtype::F64 => npy::doubles(tensor.data()),
        other => {
            return Err(wrong(format!("`{name}` is {other:?}; expected F16, BF16, F32 or F64")));
        }
    };
    let (Ok(offsets), Ok(text)) = (file.tensor("key_offsets"), file.tensor("key_bytes")) else {
        return in_order(path, keys, rows, dim, data);
    };
    let offsets: Vec<usize> = offsets.data().as_chunks().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect();
    if offsets.len() != rows + 1 || dim == 0 {
        return Err(wrong(format!("`key_offsets` has {} entries for {rows} vectors of width {dim}", offsets.len())));
    }
    // A file that was written for this catalogue has its order, and nothing needs to be looked up.
    let key_of = |row: usize| text.data().get(offsets[row]..offsets[row + 1]);
    let same_order =
        rows == keys.len() && keys.iter().enumerate().all(|(row, key)| key_of(row) == Some(key.as_bytes()));
    if same_order {
        return in_order(path, keys, rows, dim, data);
    }
    let mut join = Join::new(path, keys);
    for (ends, vector) in offsets.windows(2).zip(data.chunks_exact(dim)) {
        let key = text
            .data()
            .get(ends[0]..ends[1])
            .and_then(|key| std::str::from_utf8(key).ok())
            .ok_or_else(|| wrong("`key_offsets` and `key_bytes` do not fit".to_owned()))?;
        join.put(key, vector).map_err(wrong)?;
    }
    join.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> ItemKeys {
        ItemKeys::new(names.iter().map(|&s| s.to_owned()).collect()).unwrap()
    }

    #[test]
    fn all_formats_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        for names in [["a", "bc", "007"], ["1", "22", "3"]] {
            let keys = keys(&names);
            let vectors = Vectors::new(2, vec![1.0, 2.0, 3.0, 4.5, -5.0, 0.0]).unwrap();
            for file in ["v.npy", "v.safetensors", "v.parquet"] {
                let path = dir.path().join(file);
                write_vectors(&path, &vectors, &keys).unwrap();
                assert_eq!(read_vectors(&path, &keys).unwrap().data, vectors.data);
            }
        }
    }

    #[test]
    fn half_vectors_keep_three_digits() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, path) = (keys(&["a", "b"]), dir.path().join("v.safetensors"));
        write_half_vectors(&path, &Vectors::new(2, vec![0.123_456, -1.0, 3e-3, 0.0]).unwrap(), &keys).unwrap();
        let read = read_vectors(&path, &keys).unwrap();
        for (found, expected) in read.data.iter().zip([0.123_456_f32, -1.0, 3e-3, 0.0]) {
            assert!((found - expected).abs() <= 1e-3 * expected.abs(), "{found} {expected}");
        }
    }

    #[test]
    fn vectors_with_ids_are_joined_by_them() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = Vectors::new(1, vec![1.0, 2.0, 3.0]).unwrap();
        for file in ["v.safetensors", "v.parquet"] {
            let path = dir.path().join(file);
            write_vectors(&path, &vectors, &keys(&["a", "b", "c"])).unwrap();
            let turned = read_vectors(&path, &keys(&["c", "a"])).unwrap();
            assert_eq!(turned.data, [3.0, 1.0]);
            let error = read_vectors(&path, &keys(&["c", "d"])).unwrap_err();
            assert!(error.to_string().contains("`d`"), "{error}");
        }
    }

    #[test]
    fn broken_files_are_told_by_name_and_fault() {
        let dir = tempfile::tempdir().unwrap();
        let three = keys(&["a", "b", "c"]);
        let path = dir.path().join("v.npy");
        assert!(read_vectors(&path, &three).unwrap_err().to_string().contains("v.npy"));
        std::fs::write(&path, npy::to_bytes(2, 1, &[1.0, 2.0])).unwrap();
        let error = read_vectors(&path, &three).unwrap_err().to_string();
        assert!(error.contains("2 vectors for 3 items"), "{error}");
        std::fs::write(&path, npy::to_bytes(3, 1, &[1.0, f32::NAN, 1.0])).unwrap();
        let error = read_vectors(&path, &three).unwrap_err().to_string();
        assert!(error.contains("`b` (row 1) holds NaN"), "{error}");
        for file in ["w.safetensors", "w.parquet", "w.npy"] {
            let path = dir.path().join(file);
            let good = Vectors::new(1, vec![1.0, 2.0, 3.0]).unwrap();
            write_vectors(&path, &good, &three).unwrap();
            let whole = std::fs::read(&path).unwrap();
            for cut in [0, 5, whole.len() / 2, whole.len() - 1] {
                std::fs::write(&path, &whole[..cut]).unwrap();
                let error = read_vectors(&path, &three).unwrap_err().to_string();
                assert!(error.contains(file), "{error}");
            }
        }
        assert!(read_vectors(&dir.path().join("v.txt"), &three).is_err());
    }
}
