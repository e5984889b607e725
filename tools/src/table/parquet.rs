//! Parquet tables as rows, and the one way we write them.
//!
//! Foreign files are read under `catch_unwind`: whatever a decoder does with broken bytes becomes an error that names
//! the file.

use super::cell::Cell;
use super::open::read_error;
use super::source::{Record, Sink};
use crate::error::{bad_data, input_missing};
use ::parquet::arrow::ArrowWriter;
use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const BATCH_ROWS: usize = 8192;

/// Names of the root columns.
pub(super) fn columns(path: &Path) -> anyhow::Result<Vec<String>> {
    let builder = open(path)?;
    let fields = builder.schema().fields();
    Ok(fields.iter().map(|f| f.name().clone()).collect())
}

/// The key-value metadata of the file.
pub(super) fn metadata(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let builder = open(path)?;
    let pairs = builder.metadata().file_metadata().key_value_metadata();
    Ok(pairs.into_iter().flatten().filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect())
}

/// Reads all rows with the cells of the `wanted` columns.
pub(super) fn scan(path: &Path, wanted: &[&str], sink: &mut Sink) -> anyhow::Result<()> {
    let mut row = 0;
    batches(path, wanted, &mut |batch| {
        let columns: Vec<Option<Vec<Cell>>> = wanted
            .iter()
            .map(|name| {
                let Some(column) = batch.column_by_name(name) else {
                    return Ok(None);
                };
                guarded(path, || cells(column))?
                    .map(Some)
                    .map_err(|reason| bad_data(format!("{}: column `{name}`: {reason}", path.display())))
            })
            .collect::<anyhow::Result<_>>()?;
        let mut columns: Vec<Option<std::vec::IntoIter<Cell>>> =
            columns.into_iter().map(|column| column.map(Vec::into_iter)).collect();
        for _ in 0..batch.num_rows() {
            row += 1;
            let cells = columns
                .iter_mut()
                .map(|column| column.as_mut().and_then(Iterator::next).unwrap_or(Cell::Null))
                .collect();
            sink(Record { line: row, weight: 1, cells: Ok(cells) })?;
        }
        Ok(())
    })
}

/// Hands over the record batches of the `wanted` root columns.
pub(super) fn batches(
    path: &Path,
    wanted: &[&str],
    each: &mut dyn FnMut(RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    batches_from(path, wanted, 0, each)
}

/// As [`batches`] from row `from` on, counted from 0; row groups before it are not read.
pub(super) fn batches_from(
    path: &Path,
    wanted: &[&str],
    from: u64,
    each: &mut dyn FnMut(RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let builder = open(path)?;
    let roots: Vec<usize> = builder
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| wanted.contains(&field.name().as_str()))
        .map(|(at, _)| at)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let mut before = 0;
    let mut groups = Vec::new();
    for (at, group) in builder.metadata().row_groups().iter().enumerate() {
        let rows = group.num_rows().max(0) as u64;
        if !groups.is_empty() || before + rows > from {
            groups.push(at);
        } else {
            before += rows;
        }
    }
    let skipped = usize::try_from(from - before.min(from))?;
    let build = || {
        let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS).with_row_groups(groups);
        if skipped == 0 { builder.build() } else { builder.with_offset(skipped).build() }
    };
    let mut reader: ParquetRecordBatchReader = guarded(path, build)?.map_err(|e| broken(path, &e.to_string()))?;
    while let Some(batch) = guarded(path, || reader.next())? {
        each(batch.map_err(|e| broken(path, &e.to_string()))?)?;
    }
    Ok(())
}

/// Number of rows, by the footer.
pub(super) fn row_count(path: &Path) -> anyhow::Result<u64> {
    let builder = open(path)?;
    Ok(builder.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as u64).sum())
}

/// One Parquet file in memory, zstd-compressed, with key-value metadata.
pub(super) fn to_bytes(batch: &RecordBatch, metadata: &BTreeMap<String, String>) -> anyhow::Result<Vec<u8>> {
    let pairs = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by(concat!("sidrec ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(pairs))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

fn open(path: &Path) -> anyhow::Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound { input_missing(path) } else { read_error(path, e) }
    })?;
    guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file))?.map_err(|e| broken(path, &e.to_string()))
}

fn broken(path: &Path, reason: &str) -> anyhow::Error {
    bad_data(format!("{}: broken or truncated Parquet: {reason}", path.display()))
}

pub(super) fn guarded<T>(path: &Path, read: impl FnOnce() -> T) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| broken(path, "the decoder gave up"))
}

/// A column as cells; arrow types that no column of ours can have are refused.
pub(super) fn cells(column: &ArrayRef) -> Result<Vec<Cell>, String> {
    let as_type = |to: &DataType| cast(column, to).map_err(|e| e.to_string());
    let len = column.len();
    match column.data_type() {
        DataType::Null => Ok(vec![Cell::Null; len]),
        DataType::Boolean => {
            let values: &BooleanArray = column.as_boolean();
            Ok(values.iter().map(|v| v.map_or(Cell::Null, Cell::Bool)).collect())
        }
        DataType::UInt64 => {
            let values = column.as_primitive::<arrow::datatypes::UInt64Type>();
            Ok(unsigned(values))
        }
        kind if kind.is_integer() => {
            let values = as_type(&DataType::Int64)?;
            let values: &Int64Array = values.as_primitive();
            Ok(values.iter().map(|v| v.map_or(Cell::Null, Cell::Int)).collect())
        }
        kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..)) => {
            let values = as_type(&DataType::Float64)?;
            let values: &Float64Array = values.as_primitive();
            Ok(values.iter().map(|v| v.map_or(Cell::Null, Cell::Float)).collect())
        }
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => {
            let values = as_type(&DataType::Utf8)?;
            let values: &StringArray = values.as_string();
            Ok(values.iter().map(|v| v.map_or(Cell::Null, |s| Cell::Text(s.to_owned()))).collect())
        }
        DataType::Dictionary(_, values) => cells(&as_type(values)?),
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => {
            let seconds = as_type(&DataType::Timestamp(TimeUnit::Second, None))?;
            cells(&cast(&seconds, &DataType::Int64).map_err(|e| e.to_string())?)
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => lists(column),
        other => Err(format!("cannot read values of type {other}")),
    }
}

fn unsigned(values: &UInt64Array) -> Vec<Cell> {
    values
        .iter()
        .map(|v| match v.map(|v| (v, i64::try_from(v))) {
            None => Cell::Null,
            Some((_, Ok(v))) => Cell::Int(v),
            Some((v, Err(_))) => Cell::Text(v.to_string()),
        })
        .collect()
}

/// Lists of floating-point numbers become dense, all others lists of cells.
fn lists(column: &ArrayRef) -> Result<Vec<Cell>, String> {
    let item = |row: usize| -> Option<ArrayRef> {
        if column.is_null(row) {
            return None;
        }
        Some(match column.data_type() {
            DataType::List(_) => column.as_list::<i32>().value(row),
            DataType::LargeList(_) => column.as_list::<i64>().value(row),
            _ => column.as_fixed_size_list().value(row),
        })
    };
    (0..column.len())
        .map(|row| match item(row) {
            None => Ok(Cell::Null),
            Some(values) if values.data_type().is_floating() => {
                let values = cast(&values, &DataType::Float32).map_err(|e| e.to_string())?;
                let values: &Float32Array = values.as_primitive();
                Ok(Cell::Numbers(values.iter().map(|v| v.unwrap_or(f32::NAN)).collect()))
            }
            Some(values) => cells(&values).map(Cell::List),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        Date32Array, FixedSizeListArray, ListArray, TimestampMillisecondArray, types::Float32Type, types::Int64Type,
    };
    use std::sync::Arc;

    fn sample() -> Vec<u8> {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from(vec![Some(9_007_199_254_740_993), None]))),
            ("name", Arc::new(StringArray::from(vec![Some("007"), None]))),
            ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 1]))),
            ("day", Arc::new(Date32Array::from(vec![1, 2]))),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![1_999, -1]))),
            (
                "history",
                Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1), Some(2)]), None])),
            ),
            (
                "embedding",
                Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
                    vec![Some(vec![Some(0.5), Some(1.0)]), Some(vec![Some(2.0), None])],
                    2,
                )),
            ),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
                .unwrap();
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        to_bytes(&batch, &metadata).unwrap()
    }

    fn read(bytes: &[u8], wanted: &[&str]) -> anyhow::Result<Vec<Vec<Cell>>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        std::fs::write(&path, bytes).unwrap();
        let mut rows = Vec::new();
        scan(&path, wanted, &mut |record| {
            rows.push(record.cells.unwrap());
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn typed_columns_become_cells() {
        let wanted = ["name", "id", "big", "day", "at", "history", "embedding", "none"];
        let rows = read(&sample(), &wanted).unwrap();
        let text = |s: &str| Cell::Text(s.to_owned());
        assert_eq!(
            rows[0],
            [
                text("007"),
                Cell::Int(9_007_199_254_740_993),
                text("18446744073709551615"),
                Cell::Int(86_400),
                Cell::Int(1),
                Cell::List(vec![Cell::Int(1), Cell::Int(2)]),
                Cell::Numbers(vec![0.5, 1.0]),
                Cell::Null,
            ]
        );
        assert_eq!(rows[1][0], Cell::Null);
        assert_eq!(rows[1][5], Cell::Null);
        assert!(rows[1][6].vector("embedding").is_err());
    }

    #[test]
    fn metadata_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        std::fs::write(&path, sample()).unwrap();
        assert_eq!(metadata(&path).unwrap()["k"], "v");
        assert_eq!(columns(&path).unwrap().len(), 7);
    }

    #[test]
    fn truncated_and_mutated_files_never_panic_out() {
        let whole = sample();
        for cut in [0, 3, 4, 8, whole.len() / 2, whole.len() - 1] {
            let error = read(&whole[..cut], &["id"]).unwrap_err();
            assert!(error.to_string().contains("t.parquet"), "{error}");
        }
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            if let Err(error) = read(&bytes, &["id", "name", "embedding", "history"]) {
                assert!(error.to_string().contains("t.parquet"), "{error}");
            }
        }
    }
}
