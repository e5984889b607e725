//! Rows that could not be used: counted, written down, and a reason to stop when there are many.

use crate::error::{bad_data, cannot_create};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// How many rejects an error message lists.
pub(super) const SHOWN: usize = 10;

/// Rejects of one file; the rejects file is opened at the first of them and only ever appended to.
pub(super) struct Rejects {
    file: PathBuf,
    to: Option<PathBuf>,
    writer: Option<BufWriter<File>>,
    first: Vec<String>,
    count: usize,
}

impl Rejects {
    pub(super) fn new(file: &Path, to: Option<&Path>) -> Self {
        Self { file: file.to_owned(), to: to.map(Path::to_owned), writer: None, first: Vec::new(), count: 0 }
    }

    /// Counts one row (a record of several lines counts as that many) and writes it down.
    pub(super) fn push(&mut self, line: u64, lines: u64, reason: &str) -> anyhow::Result<()> {
        self.count += lines as usize;
        if self.first.len() < SHOWN {
            self.first.push(format!("line {line}: {reason}"));
        }
        let Some(to) = &self.to else { return Ok(()) };
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(to).map_err(|e| cannot_create(to, e))?;
                none.insert(BufWriter::new(file))
            }
        };
        let row = json!({"file": self.file.to_string_lossy(), "line": line, "reason": reason});
        writeln!(writer, "{row}").map_err(|e| cannot_create(to, e))
    }

    /// Rows rejected of `rows` in all.
    ///
    /// # Errors
    /// Bad data with the first of them when their share is above `max_fraction`.
    pub(super) fn finish(mut self, rows: usize, max_fraction: f64) -> anyhow::Result<usize> {
        if let (Some(writer), Some(to)) = (&mut self.writer, &self.to) {
            writer.flush().map_err(|e| cannot_create(to, e))?;
        }
        refuse_many(&self.file, self.count, rows, &self.first, max_fraction)?;
        if self.count > 0 {
            tracing::warn!(
                file = %self.file.display(),
                rejected = self.count,
                rows,
                first = %self.first[0],
                "unusable rows left out"
            );
        }
        Ok(self.count)
    }
}

/// Stops when more than a fraction of `max_fraction` of `rows` rows was rejected, with the `first` of them.
pub(super) fn refuse_many(
    file: &Path,
    count: usize,
    rows: usize,
    first: &[String],
    max_fraction: f64,
) -> anyhow::Result<()> {
    if count as f64 <= max_fraction * rows as f64 {
        return Ok(());
    }
    Err(bad_data(format!(
        "{}: {count} of {rows} rows are unusable, at most a fraction of {max_fraction} may be \
         (--max-reject-fraction); the first:\n  {}",
        file.display(),
        first.join("\n  ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rejects_are_written_down_and_many_stop_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("rejects.jsonl");
        for (rows, ok) in [(1000, true), (999, false)] {
            let mut rejects = Rejects::new(Path::new("items.csv"), Some(&to));
            rejects.push(7, 1, "no \"id\"").unwrap();
            let finished = rejects.finish(rows, 0.001);
            assert_eq!(finished.is_ok(), ok);
            if let Err(error) = finished {
                assert!(error.to_string().contains("line 7: no \"id\""));
            }
        }
        let text = std::fs::read_to_string(&to).unwrap();
        assert_eq!(text.lines().count(), 2);
        let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(row, json!({"file": "items.csv", "line": 7, "reason": "no \"id\""}));
    }
}
