//! Opening a table file: which format it is, whether it is packed, and limits against hostile ones.

use crate::error::{bad_data, input_missing};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Longest line of a text table.
pub(super) const MAX_LINE_BYTES: u64 = 8 << 20;
const INFLATED_FLOOR_BYTES: u64 = 64 << 20;
const MAX_INFLATION: u64 = 1000;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Format {
    Jsonl,
    Csv(u8),
    Parquet,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Format and packing by the file's name; the file must be there.
pub(super) fn recognize(path: &Path) -> anyhow::Result<(Format, Packing)> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (stem, packing) = if let Some(stem) = name.strip_suffix(".gz") {
        (stem, Packing::Gzip)
    } else if let Some(stem) = name.strip_suffix(".zst") {
        (stem, Packing::Zstd)
    } else {
        (name.as_str(), Packing::None)
    };
    let format = match stem.rsplit('.').next().unwrap_or_default() {
        "jsonl" | "ndjson" => Format::Jsonl,
        "csv" => Format::Csv(b','),
        "tsv" => Format::Csv(b'\t'),
        "parquet" if packing == Packing::None => Format::Parquet,
        _ => {
            return Err(bad_data(format!(
                "{}: unknown kind of table; expected .jsonl, .csv or .tsv (also .gz, .zst) or .parquet",
                path.display()
            )));
        }
    };
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(bad_data(format!("{}: is a directory, expected a file", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(input_missing(path)),
        _ => Ok((format, packing)),
    }
}

/// What reading went wrong with: the file's content, or the machine.
pub(super) fn read_error(path: &Path, error: std::io::Error) -> anyhow::Error {
    if error.raw_os_error().is_some() {
        anyhow::Error::new(error).context(format!("cannot read {}", path.display()))
    } else {
        bad_data(format!("{}: {error}", path.display()))
    }
}

/// The unpacked bytes of a file.
pub(super) fn open(path: &Path, packing: Packing) -> anyhow::Result<Guard> {
    let file = File::open(path).map_err(|e| read_error(path, e))?;
    let size = file.metadata().map_err(|e| read_error(path, e))?.len();
    let file = BufReader::new(file);
    let (inner, limit): (Box<dyn Read>, u64) = match packing {
        Packing::None => (Box::new(file), u64::MAX),
        Packing::Gzip => (Box::new(flate2::bufread::MultiGzDecoder::new(file)), size),
        Packing::Zstd => {
            let decoder = zstd::Decoder::with_buffer(file).map_err(|e| read_error(path, e))?;
            (Box::new(decoder), size)
        }
    };
    Ok(Guard {
        inner,
        left: limit.saturating_mul(MAX_INFLATION).max(INFLATED_FLOOR_BYTES),
        line: 0,
        max_line: u64::MAX,
    })
}

/// A reader that refuses endless lines and decompression bombs.
pub(super) struct Guard {
    inner: Box<dyn Read>,
    left: u64,
    line: u64,
    /// Bytes after which a line is too long.
    pub(super) max_line: u64,
}

impl Read for Guard {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        let refused = |what: &str| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return refused("inflates to more than 1000 times its size"),
        }
        self.line = match buf[..n].iter().rposition(|&b| b == b'\n') {
            Some(at) => (n - at - 1) as u64,
            None => self.line + n as u64,
        };
        if self.line > self.max_line {
            return refused("a line is longer than 8 MB");
        }
        Ok(n)
    }
}

/// Takes a line and its number; says whether to go on.
pub(super) type EachLine<'a> = dyn FnMut(u64, Result<&[u8], String>) -> anyhow::Result<bool> + 'a;

/// Lines of a file without their ends; over-long ones come as their reason, blank ones not at all.
pub(super) fn lines(path: &Path, packing: Packing, each: &mut EachLine) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, open(path, packing)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let n =
            (&mut reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes).map_err(|e| read_error(path, e))?;
        if n == 0 {
            break;
        }
        let whole = if n as u64 > MAX_LINE_BYTES && bytes.last() != Some(&b'\n') {
            skip_line(&mut reader).map_err(|e| read_error(path, e))?;
            Err("is longer than 8 MB".to_owned())
        } else {
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1);
            Ok(text.unwrap_or(&bytes).trim_ascii())
        };
        if !matches!(whole, Ok([])) && !each(line, whole)? {
            break;
        }
    }
    Ok(())
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|&b| b == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}
