//! Items of a table batch by batch, for catalogues that do not fit into memory.
//!
//! A batch covers a fixed range of the table's rows, unusable ones included, so that a reader that starts at a later
//! row gives the same batches from there on. Of Parquet, row groups in front of that row are not read at all.

use super::cell::Cell;
use super::items::Layout;
use super::open::{Format, recognize};
use super::rejects::{Rejects, SHOWN, refuse_many};
use super::vectors::EMBEDDING;
use super::{ReadOptions, parquet, source};
use crate::error::bad_data;
use arrow::array::{Array, ArrayRef, AsArray, Float32Array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the items of a batch bring along.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchContent {
    /// Vectors (items, dim), row-major; the width is 0 where no item has one.
    Vectors(usize, Vec<f32>),
    /// Texts for a content encoder.
    Texts(Vec<String>),
}

/// Some items of a table, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemBatch {
    /// Rows of the table that it covers, unusable ones included.
    pub rows: u64,
    /// External ids.
    pub keys: Vec<String>,
    /// Lines of the file, or rows of Parquet, from 1.
    pub lines: Vec<u64>,
    /// What they bring along.
    pub content: BatchContent,
    /// Unusable rows; one that swallowed several lines counts as that many.
    pub rejected: u64,
    /// The first of them, with line and reason.
    pub first_rejects: Vec<String>,
}

/// A table of items that is read from any row on.
pub struct ItemStream {
    path: PathBuf,
    options: ReadOptions,
    layout: Layout,
    vectors: bool,
}

/// Takes batches.
pub type EachBatch<'a> = dyn FnMut(ItemBatch) -> anyhow::Result<()> + 'a;

impl ItemStream {
    /// Opens a table: for its `embedding` column where it has one and `texts` is not set, else for its texts.
    ///
    /// # Errors
    /// Input missing; bad data when a needed column is missing.
    pub fn open(path: &Path, options: &ReadOptions, texts: bool) -> anyhow::Result<Self> {
        let mut layout = Layout::new(path, options)?;
        let vectors = layout.embedding && !texts;
        if vectors {
            layout.wanted = vec!["item_id".to_owned(), EMBEDDING.to_owned()];
        } else if layout.embedding {
            layout.embedding = false;
            layout.wanted.retain(|name| name != EMBEDDING);
        }
        Ok(Self { path: path.to_owned(), options: options.clone(), layout, vectors })
    }

    /// Whether items come with vectors rather than texts.
    pub fn has_vectors(&self) -> bool {
        self.vectors
    }

    /// Rows of the table, where its footer says so.
    pub fn rows(&self) -> anyhow::Result<Option<u64>> {
        let (format, _) = recognize(&self.path)?;
        if format == Format::Parquet { Ok(Some(parquet::row_count(&self.path)?)) } else { Ok(None) }
    }

    /// Reads batches of `per_batch` rows from row `from` on, a multiple of it. Vectors are of width `dim`, or of that of
    /// the first usable one; rejects are written down where `record` is set and the options say where.
    ///
    /// # Errors
    /// The file is broken, or `each` said so.
    pub fn read(
        &self,
        from: u64,
        per_batch: u64,
        dim: Option<usize>,
        record: bool,
        each: &mut EachBatch,
    ) -> anyhow::Result<()> {
        let to = self.options.rejects_to.as_deref().filter(|_| record);
        let mut gather = Gather {
            batch: self.empty(),
            dim: dim.unwrap_or(0),
            per_batch,
            rejects: Rejects::new(&self.path, to),
            each,
        };
        let wanted: Vec<&str> = self.layout.wanted.iter().map(String::as_str).collect();
        if recognize(&self.path)?.0 == Format::Parquet && self.vectors {
            let mut line = from;
            parquet::batches_from(&self.path, &wanted, from, &mut |batch| {
                let column = |name: &str| {
                    batch
                        .column_by_name(name)
                        .cloned()
                        .ok_or_else(|| bad_data(format!("{}: no column `{name}`", self.path.display())))
                };
                let wrong =
                    |name: &str, reason| bad_data(format!("{}: column `{name}`: {reason}", self.path.display()));
                let (ids, vectors) = (column("item_id")?, column(EMBEDDING)?);
                let ids = parquet::guarded(&self.path, || parquet::cells(&ids))?
                    .map_err(|reason| wrong("item_id", reason))?;
                let lists =
                    parquet::guarded(&self.path, || Lists::of(&vectors))?.map_err(|reason| wrong(EMBEDDING, reason))?;
                for (row, id) in ids.iter().enumerate() {
                    line += 1;
                    gather.vector(line, 1, id.key("item_id").and_then(|key| Ok((key, lists.row(row)?))))?;
                }
                Ok(())
            })?;
        } else {
            let mut row = 0;
            source::scan(&self.path, &wanted, &mut |found| {
                row += 1;
                if row <= from {
                    return Ok(());
                }
                let (line, weight) = (found.line, found.weight);
                if self.vectors {
                    let parsed = found.cells.and_then(|cells| Ok((cells[0].key("item_id")?, vector(&cells[1])?)));
                    let parsed = parsed.as_ref().map_err(Clone::clone);
                    gather.vector(line, weight, parsed.map(|(key, vector)| (key.clone(), vector.as_slice())))
                } else {
                    gather.text(line, weight, found.cells.and_then(|cells| self.layout.text(&cells)))
                }
            })?;
        }
        gather.flush()
    }

    /// Stops when too many rows were unusable.
    ///
    /// # Errors
    /// Bad data with the `first` of them.
    pub fn refuse_many(&self, rejected: u64, rows: u64, first: &[String]) -> anyhow::Result<()> {
        refuse_many(&self.path, rejected as usize, rows as usize, first, self.options.max_reject_fraction)
    }

    fn empty(&self) -> ItemBatch {
        let content = if self.vectors { BatchContent::Vectors(0, Vec::new()) } else { BatchContent::Texts(Vec::new()) };
        ItemBatch { rows: 0, keys: Vec::new(), lines: Vec::new(), content, rejected: 0, first_rejects: Vec::new() }
    }
}

fn vector(cell: &Cell) -> Result<Vec<f32>, String> {
    cell.vector(EMBEDDING)
}

struct Gather<'a, 'b> {
    batch: ItemBatch,
    /// Width of all vectors, 0 before the first.
    dim: usize,
    per_batch: u64,
    rejects: Rejects,
    each: &'a mut EachBatch<'b>,
}

impl Gather<'_, '_> {
    fn vector(&mut self, line: u64, weight: u64, parsed: Result<(String, &[f32]), String>) -> anyhow::Result<()> {
        let checked = parsed.and_then(|(key, vector)| {
            if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
                return Err(format!("`{EMBEDDING}` holds {} at place {at}", vector[at]));
            }
            match (vector.len(), self.dim) {
                (0, _) => return Err(format!("`{EMBEDDING}` is empty")),
                (found, 0) => self.dim = found,
                (found, dim) if found != dim => {
                    return Err(format!("`{EMBEDDING}` has {found} numbers, the rows before have {dim}"));
                }
                _ => {}
            }
            Ok((key, vector))
        });
        match checked {
            Ok((key, vector)) => {
                if let BatchContent::Vectors(dim, data) = &mut self.batch.content {
                    *dim = self.dim;
                    data.extend_from_slice(vector);
                }
                self.batch.keys.push(key);
                self.batch.lines.push(line);
                self.row(1)
            }
            Err(reason) => self.reject(line, weight, &reason),
        }
    }

    fn text(&mut self, line: u64, weight: u64, parsed: Result<(String, String), String>) -> anyhow::Result<()> {
        match parsed {
            Ok((key, text)) => {
                if let BatchContent::Texts(texts) = &mut self.batch.content {
                    texts.push(text);
                }
                self.batch.keys.push(key);
                self.batch.lines.push(line);
                self.row(1)
            }
            Err(reason) => self.reject(line, weight, &reason),
        }
    }

    fn reject(&mut self, line: u64, weight: u64, reason: &str) -> anyhow::Result<()> {
        self.rejects.push(line, weight, reason)?;
        self.batch.rejected += weight;
        if self.batch.first_rejects.len() < SHOWN {
            self.batch.first_rejects.push(format!("line {line}: {reason}"));
        }
        self.row(1)
    }

    fn row(&mut self, rows: u64) -> anyhow::Result<()> {
        self.batch.rows += rows;
        if self.batch.rows == self.per_batch { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.batch.rows == 0 {
            return Ok(());
        }
        let content = match self.batch.content {
            BatchContent::Vectors(..) => BatchContent::Vectors(self.dim, Vec::new()),
            BatchContent::Texts(_) => BatchContent::Texts(Vec::new()),
        };
        let next =
            ItemBatch { rows: 0, keys: Vec::new(), lines: Vec::new(), content, rejected: 0, first_rejects: Vec::new() };
        (self.each)(std::mem::replace(&mut self.batch, next))
    }
}

/// A column of lists of numbers, laid out flat.
struct Lists {
    numbers: Float32Array,
    places: Vec<Option<Range<usize>>>,
}

impl Lists {
    fn of(column: &ArrayRef) -> Result<Self, String> {
        let place = |row: usize| -> Range<usize> {
            let at = |offset: i64| usize::try_from(offset).unwrap_or(0);
            match column.data_type() {
                DataType::List(_) => {
                    let ends = column.as_list::<i32>().value_offsets();
                    at(ends[row].into())..at(ends[row + 1].into())
                }
                DataType::LargeList(_) => {
                    let ends = column.as_list::<i64>().value_offsets();
                    at(ends[row])..at(ends[row + 1])
                }
                _ => {
                    let list = column.as_fixed_size_list();
                    let start = at(list.value_offset(row).into());
                    start..start + at(list.value_length().into())
                }
            }
        };
        let values = match column.data_type() {
            DataType::List(_) => column.as_list::<i32>().values(),
            DataType::LargeList(_) => column.as_list::<i64>().values(),
            DataType::FixedSizeList(..) => column.as_fixed_size_list().values(),
            other => return Err(format!("is of type {other}; expected a list of numbers")),
        };
        if !values.data_type().is_numeric() {
            return Err(format!("is a list of {}; expected numbers", values.data_type()));
        }
        let numbers = cast(values, &DataType::Float32).map_err(|e| e.to_string())?;
        let places = (0..column.len()).map(|row| (!column.is_null(row)).then(|| place(row))).collect();
        Ok(Self { numbers: numbers.as_primitive().clone(), places })
    }

    fn row(&self, row: usize) -> Result<&[f32], String> {
        let Some(place) = &self.places[row] else { return Err(format!("`{EMBEDDING}` is missing")) };
        if self.numbers.null_count() > 0
            && let Some(at) = place.clone().position(|at| self.numbers.is_null(at))
        {
            return Err(format!("`{EMBEDDING}` holds nothing at place {at}"));
        }
        Ok(&self.numbers.values()[place.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ItemKeys, write_vectors};
    use super::*;
    use rqvae::Vectors;

    fn batches(path: &Path, from: u64, texts: bool) -> Vec<ItemBatch> {
        let stream = ItemStream::open(path, &ReadOptions::default(), texts).unwrap();
        let mut found = Vec::new();
        stream
            .read(from, 10, None, false, &mut |batch| {
                found.push(batch);
                Ok(())
            })
            .unwrap();
        found
    }

    /// A reader that starts later gives the batches that one from the beginning gives.
    #[test]
    fn batches_do_not_depend_on_where_reading_begins() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ItemKeys::new((0..57).map(|i| format!("k{i}")).collect()).unwrap();
        let vectors = Vectors::new(3, (0..57 * 3).map(|x| x as f32).collect()).unwrap();
        let (parquet, csv) = (dir.path().join("v.parquet"), dir.path().join("v.csv"));
        write_vectors(&parquet, &vectors, &keys).unwrap();
        let rows = (0..57).map(|i| format!("k{i},{} {} {}\n", 3 * i, 3 * i + 1, 3 * i + 2));
        std::fs::write(&csv, format!("item_id,embedding\n{}", rows.collect::<String>())).unwrap();
        let whole = batches(&parquet, 0, false);
        assert_eq!(whole.iter().map(|b| b.rows).collect::<Vec<_>>(), [10, 10, 10, 10, 10, 7]);
        assert_eq!(whole[5].content, BatchContent::Vectors(3, (150..171).map(|x| x as f32).collect()));
        for from in [0, 10, 30, 50] {
            assert_eq!(batches(&parquet, from, false), whole[from as usize / 10..]);
            let lines = |found: Vec<ItemBatch>| found.into_iter().map(|b| (b.keys, b.content)).collect::<Vec<_>>();
            assert_eq!(lines(batches(&csv, from, false)), lines(whole[from as usize / 10..].to_vec()));
        }
    }

    #[test]
    fn unusable_rows_are_counted_with_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.jsonl");
        let text = "{\"item_id\":1,\"embedding\":[1,2.5]}\n{\"item_id\":2,\"embedding\":[1]}\nx\n{\"item_id\":3}\n\
                    {\"item_id\":4,\"embedding\":[0.5,1e999]}\n{\"item_id\":5,\"embedding\":[3,4.5]}\n";
        std::fs::write(&path, text).unwrap();
        let found = batches(&path, 0, false);
        assert_eq!((found[0].keys.as_slice(), found[0].rejected), (&["1".to_owned(), "5".to_owned()][..], 4));
        assert!(found[0].first_rejects[0].contains("line 2: `embedding` has 1 numbers"), "{:?}", found[0]);
        let stream = ItemStream::open(&path, &ReadOptions::default(), false).unwrap();
        let error = stream.refuse_many(4, 6, &found[0].first_rejects).unwrap_err().to_string();
        assert!(error.contains("4 of 6 rows") && error.contains("line 3"), "{error}");
        let texts = batches(&path, 0, true);
        // What is no JSON is no row of texts either.
        assert_eq!((texts[0].rejected, texts[0].keys.len()), (2, 4));
    }
}
