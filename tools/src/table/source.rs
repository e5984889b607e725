//! Rows of a table file, one after another, whatever its format: JSON lines, CSV, TSV (plain, gzip, zstd) or Parquet.
//!
//! Limits against broken and hostile files: a line of at most 8 MB, a quoted CSV field over at most 1,000 lines,
//! inflated data of at most 1,000 times the file. What is wrong with one row comes back as that row's reason.

use super::cell::Cell;
use super::open::{Format, Guard, MAX_LINE_BYTES, Packing, lines, open, read_error, recognize};
use super::parquet;
use crate::error::bad_data;
use anyhow::Context;
use std::path::Path;

const MAX_RECORD_LINES: u64 = 1000;
/// JSON rows whose fields make up the columns of a table.
const PEEKED_ROWS: usize = 1000;

/// One row: the wanted cells in the wanted order, or why there are none.
pub(super) struct Record {
    /// Line of the file, or row in Parquet, from 1.
    pub(super) line: u64,
    /// How many rows this counts for when it is rejected.
    pub(super) weight: u64,
    /// The wanted cells; columns that the row lacks are null.
    pub(super) cells: Result<Vec<Cell>, String>,
}

/// What takes the rows of a table.
pub(super) type Sink<'a> = dyn FnMut(Record) -> anyhow::Result<()> + 'a;

/// The columns of a table: header, schema, or the fields of its first JSON rows.
///
/// # Errors
/// Input missing; bad data when the table is empty or unreadable.
pub(super) fn columns(path: &Path) -> anyhow::Result<Vec<String>> {
    let (format, packing) = recognize(path)?;
    let names = match format {
        Format::Parquet => parquet::columns(path)?,
        Format::Csv(delimiter) => csv_header(path, &mut csv_reader(path, delimiter, packing)?)?,
        Format::Jsonl => json_fields(path, packing)?,
    };
    if names.is_empty() {
        return Err(bad_data(format!("{}: the table is empty", path.display())));
    }
    Ok(names)
}

/// Reads all rows with the cells of the `wanted` columns and returns how many rows there are.
pub(super) fn scan(path: &Path, wanted: &[&str], sink: &mut Sink) -> anyhow::Result<usize> {
    let mut rows = 0;
    let mut counted = |record: Record| {
        rows += record.weight as usize;
        sink(record)
    };
    match recognize(path)? {
        (Format::Parquet, _) => parquet::scan(path, wanted, &mut counted)?,
        (Format::Csv(delimiter), packing) => {
            scan_csv(path, delimiter, packing, wanted, &mut counted)?;
        }
        (Format::Jsonl, packing) => scan_jsonl(path, packing, wanted, &mut counted)?,
    }
    Ok(rows)
}

fn csv_reader(path: &Path, delimiter: u8, packing: Packing) -> anyhow::Result<csv::Reader<Guard>> {
    let mut guard = open(path, packing)?;
    guard.max_line = MAX_LINE_BYTES;
    Ok(csv::ReaderBuilder::new()
        .delimiter(delimiter)
        // CRLF is handled where fields are cut: the reader's own handling loses count of the lines.
        .terminator(csv::Terminator::Any(b'\n'))
        .flexible(true)
        .from_reader(guard))
}

fn csv_error(path: &Path, error: csv::Error) -> anyhow::Error {
    let text = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(e) => read_error(path, e),
        _ => bad_data(format!("{}: {text}", path.display())),
    }
}

fn csv_header(path: &Path, reader: &mut csv::Reader<Guard>) -> anyhow::Result<Vec<String>> {
    let header = reader.byte_headers().map_err(|e| csv_error(path, e))?;
    let names: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(bad_data(format!("{}: two columns are called `{name}`", path.display())));
        }
    }
    Ok(names)
}

fn scan_csv(path: &Path, delimiter: u8, packing: Packing, wanted: &[&str], sink: &mut Sink) -> anyhow::Result<()> {
    let mut reader = csv_reader(path, delimiter, packing)?;
    let names = csv_header(path, &mut reader)?;
    let places: Vec<Option<usize>> = wanted.iter().map(|wanted| names.iter().position(|name| name == wanted)).collect();
    let mut row = csv::ByteRecord::new();
    while reader.read_byte_record(&mut row).map_err(|e| csv_error(path, e))? {
        if matches!(row.as_slice(), b"" | b"\r") && row.len() <= 1 {
            continue;
        }
        let line = row.position().map_or(0, csv::Position::line);
        let lines = reader.position().line().saturating_sub(line).max(1);
        let cells = csv_cells(&row, names.len(), lines, &places);
        sink(Record { line, weight: if cells.is_ok() { 1 } else { lines }, cells })?;
    }
    Ok(())
}

fn csv_cells(row: &csv::ByteRecord, columns: usize, lines: u64, places: &[Option<usize>]) -> Result<Vec<Cell>, String> {
    if lines > MAX_RECORD_LINES {
        return Err(format!("spans {lines} lines; is a quote left open?"));
    }
    if row.len() != columns {
        return Err(format!("{} fields, the header has {columns} columns", row.len()));
    }
    if row.as_slice().contains(&0) {
        return Err("holds a NUL byte".to_owned());
    }
    let field = |at: usize| {
        let last = row[at].strip_suffix(b"\r").filter(|_| at + 1 == columns);
        last.unwrap_or(&row[at])
    };
    places
        .iter()
        .map(|place| match place.map(field) {
            None | Some([]) => Ok(Cell::Null),
            Some(bytes) => std::str::from_utf8(bytes)
                .map(|text| Cell::Text(text.to_owned()))
                .map_err(|_| "is not UTF-8".to_owned()),
        })
        .collect()
}

type Fields = serde_json::Map<String, serde_json::Value>;

fn json_row(line: Result<&[u8], String>) -> Result<Fields, String> {
    serde_json::from_slice::<Fields>(line?).map_err(|e| format!("is no JSON object: {e}"))
}

fn json_fields(path: &Path, packing: Packing) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let (mut rows, mut objects) = (0, 0);
    let mut trouble = None;
    lines(path, packing, &mut |line, text| {
        rows += 1;
        match json_row(text) {
            Ok(fields) => {
                objects += 1;
                for (name, _) in fields {
                    if !names.contains(&name) && names.len() < PEEKED_ROWS {
                        names.push(name);
                    }
                }
            }
            Err(reason) => {
                trouble.get_or_insert(format!("line {line} {reason}"));
            }
        }
        Ok(rows < PEEKED_ROWS)
    })?;
    match trouble {
        Some(trouble) if objects == 0 => {
            Err(bad_data(format!("{}: not one JSON object in it; {trouble}", path.display())))
        }
        _ => Ok(names),
    }
}

fn scan_jsonl(path: &Path, packing: Packing, wanted: &[&str], sink: &mut Sink) -> anyhow::Result<()> {
    lines(path, packing, &mut |line, text| {
        let cells = json_row(text).map(|mut fields| {
            wanted
                .iter()
                .map(|&name| fields.get_mut(name).map_or(Cell::Null, |value| Cell::from_json(value.take())))
                .collect()
        });
        sink(Record { line, weight: 1, cells })?;
        Ok(true)
    })
    .with_context(|| format!("while reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    type Rows = Vec<(u64, Result<Vec<Cell>, String>)>;

    fn read(name: &str, bytes: &[u8], wanted: &[&str]) -> anyhow::Result<(usize, Rows)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        columns(&path)?;
        let mut rows = Vec::new();
        let n = scan(&path, wanted, &mut |record| {
            rows.push((record.line, record.cells));
            Ok(())
        })?;
        Ok((n, rows))
    }

    fn text(s: &str) -> Cell {
        Cell::Text(s.to_owned())
    }

    #[test]
    fn csv_knows_bom_crlf_quotes_and_ragged_rows() {
        let bytes = b"\xef\xbb\xbfa,b\r\n1,\"x,\n\"\"y\"\"\"\r\n2\r\n3,\xff\r\n4,\0\r\n\r\n5,\r\n";
        let (n, rows) = read("t.csv", bytes, &["b", "a", "c"]).unwrap();
        assert_eq!(n, 5);
        assert_eq!(rows[0], (2, Ok(vec![text("x,\n\"y\""), text("1"), Cell::Null])));
        assert_eq!(rows[1].0, 4);
        assert_eq!(rows[4].0, 8);
        assert!(rows[1].1.as_ref().unwrap_err().contains("1 fields"));
        assert!(rows[2].1.as_ref().unwrap_err().contains("UTF-8"));
        assert!(rows[3].1.as_ref().unwrap_err().contains("NUL"));
        assert_eq!(rows[4].1, Ok(vec![Cell::Null, text("5"), Cell::Null]));
    }

    #[test]
    fn an_open_quote_counts_for_all_rows_that_it_swallows() {
        let mut bytes = b"a\tb\n1\t\"open\n".to_vec();
        bytes.extend(b"2\tx\n".repeat(1500));
        let (n, rows) = read("t.tsv", &bytes, &["a"]).unwrap();
        assert_eq!(rows.len(), 1);
        assert!(rows[0].1.as_ref().unwrap_err().contains("quote"));
        assert!(n >= 1500, "{n}");
    }

    #[test]
    fn jsonl_rejects_what_is_no_object_and_skips_blank_lines() {
        let bytes = b"\xef\xbb\xbf{\"a\":1}\n\n[1]\n{\"a\":\n{\"a\":\"x\",\"z\":{}}";
        let (n, rows) = read("t.jsonl", bytes, &["a"]).unwrap();
        assert_eq!(n, 4);
        assert_eq!(rows[0], (1, Ok(vec![Cell::Int(1)])));
        assert!(rows[1].1.is_err() && rows[2].1.is_err());
        assert_eq!(rows[3], (5, Ok(vec![text("x")])));
    }

    #[test]
    fn deep_nesting_and_long_lines_are_rejects() {
        let mut bytes = b"{\"a\":1}\n".to_vec();
        bytes.extend(format!("{{\"a\":{}}}\n", "[".repeat(100_000)).bytes());
        bytes.extend(b"{\"a\":\"");
        bytes.extend(vec![b'x'; 9 << 20]);
        bytes.extend(b"\"}\n{\"a\":2}\n");
        let (_, rows) = read("t.jsonl", &bytes, &["a"]).unwrap();
        assert!(rows[1].1.is_err());
        assert!(rows[2].1.as_ref().unwrap_err().contains("8 MB"));
        assert_eq!(rows[3], (4, Ok(vec![Cell::Int(2)])));
        let csv = [b"a\n".as_slice(), &vec![b'x'; 9 << 20]].concat();
        assert!(read("t.csv", &csv, &["a"]).unwrap_err().to_string().contains("8 MB"));
    }

    #[test]
    fn packed_tables_read_alike_and_broken_ones_name_the_file() {
        let plain = b"a,b\n1,2\n".repeat(500);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(plain.as_slice(), 3).unwrap();
        for (name, packed) in [("t.csv.gz", gz), ("t.csv.zst", zst)] {
            assert_eq!(read(name, &packed, &["a"]).unwrap().0, 999);
            let error = read(name, &packed[..packed.len() - 9], &["a"]).unwrap_err();
            assert!(format!("{error:#}").contains(name), "{error:#}");
            let error = read(name, b"nonsense", &["a"]).unwrap_err();
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let zst = zstd::encode_all(std::io::repeat(b'\n').take(100 << 20), 3).unwrap();
        let error = read("t.jsonl.zst", &zst, &["a"]).unwrap_err();
        assert!(format!("{error:#}").contains("1000 times"), "{error:#}");
    }

    #[test]
    fn missing_unknown_and_empty_files_are_told_apart() {
        assert!(columns(Path::new("nowhere/t.csv")).unwrap_err().to_string().contains("nowhere"));
        assert!(read("t.xlsx", b"", &[]).unwrap_err().to_string().contains("unknown kind"));
        for name in ["t.csv", "t.jsonl"] {
            assert!(read(name, b"", &[]).unwrap_err().to_string().contains("empty"));
        }
        assert!(read("t.parquet", b"", &[]).is_err());
        assert!(read("t.csv", b"a,a\n", &[]).is_err());
    }
}
