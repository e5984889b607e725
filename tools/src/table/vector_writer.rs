//! A Parquet file of vectors that is written block by block, whatever its size.

use super::vectors::EMBEDDING;
use crate::error::cannot_create;
use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::WriterProperties;
use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a row group.
const GROUP_ROWS: usize = 1 << 16;

/// Writes `item_id` (whole numbers) and `embedding` under a temporary name; the file appears when it is finished.
pub struct VectorWriter {
    path: PathBuf,
    temporary: PathBuf,
    schema: Arc<Schema>,
    item: Arc<Field>,
    dim: i32,
    writer: ArrowWriter<File>,
}

impl VectorWriter {
    /// A file of vectors of width `dim`.
    ///
    /// # Errors
    /// Cannot create.
    pub fn create(path: &Path, dim: usize) -> anyhow::Result<Self> {
        let dim = i32::try_from(dim)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let item = Arc::new(Field::new("item", DataType::Float32, false));
        let schema = Arc::new(Schema::new(vec![
            Field::new("item_id", DataType::Int64, false),
            Field::new(EMBEDDING, DataType::FixedSizeList(Arc::clone(&item), dim), false),
        ]));
        // Neither packing nor a dictionary helps random numbers.
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_dictionary_enabled(false)
            .set_created_by(concat!("sidrec ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let file = File::create(&temporary).map_err(|e| cannot_create(path, e))?;
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?;
        Ok(Self { path: path.to_owned(), temporary, schema, item, dim, writer })
    }

    /// Appends vectors `data` (items, dim) of the items called `ids`.
    ///
    /// # Errors
    /// Shapes differ, or the file cannot be written.
    pub fn push(&mut self, ids: Vec<i64>, data: Vec<f32>) -> anyhow::Result<()> {
        let values = Arc::new(Float32Array::from(data));
        let vectors: ArrayRef = Arc::new(FixedSizeListArray::try_new(Arc::clone(&self.item), self.dim, values, None)?);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::new(Int64Array::from(ids)), vectors])?;
        self.writer.write(&batch).map_err(|e| cannot_create(&self.path, e))
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { path, temporary, writer, .. } = self;
        let file = writer.into_inner().map_err(|e| cannot_create(&path, e))?;
        file.sync_all().and_then(|()| std::fs::rename(&temporary, &path)).map_err(|e| cannot_create(&path, e))
    }
}
