//! Sorted runs on disk: what a part leaves for the merge, read back record by record with little memory.
//!
//! A run holds items sorted by (codes, hash of the id, line); beside it a list of ids by their hash, 32 bytes an item,
//! finds items that occur twice. Both are scratch files of one build and carry no format version; their digests stand
//! in the summary of the part, and are checked when they are read to the end.

use crate::error::{bad_data, cannot_create};
use anyhow::{Context, Result};
use rqvae::{Code, SemanticId};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// An item of a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Record {
    /// Codes, suffix left out.
    pub(super) codes: SemanticId,
    /// Hash of the id.
    pub(super) tie: u64,
    /// Line of the table.
    pub(super) line: u64,
    /// External id.
    pub(super) key: String,
    /// Bits of what the last level left over.
    pub(super) norm: u32,
    /// Digest of the content vector.
    pub(super) digest: [u8; 16],
}

/// An id in the list that finds repeated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdRecord {
    /// Hash of the id.
    pub(super) tie: u64,
    /// Line of the table.
    pub(super) line: u64,
    /// Digest of the content vector.
    pub(super) digest: [u8; 16],
}

/// What a run is made of.
pub(super) trait Stored: Ord + Sized {
    /// Appends the record.
    fn put(&self, out: &mut impl Write) -> io::Result<()>;
    /// The record whose first byte was `first`.
    fn take(first: u8, levels: usize, from: &mut impl Read) -> io::Result<Self>;
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Stored for Record {
    fn put(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&(self.key.len() as u16).to_le_bytes())?;
        for code in self.codes.codes() {
            out.write_all(&code.to_le_bytes())?;
        }
        out.write_all(&self.tie.to_le_bytes())?;
        out.write_all(&self.line.to_le_bytes())?;
        out.write_all(&self.norm.to_le_bytes())?;
        out.write_all(&self.digest)?;
        out.write_all(self.key.as_bytes())
    }

    fn take(first: u8, levels: usize, from: &mut impl Read) -> io::Result<Self> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let length = u16::from_le_bytes([first, bytes::<1>(from)?[0]]);
        let mut codes: Vec<Code> = Vec::with_capacity(levels);
        for _ in 0..levels {
            codes.push(Code::from_le_bytes(bytes(from)?));
        }
        let codes = SemanticId::new(&codes).map_err(|_| broken("too many codes"))?;
        let tie = u64::from_le_bytes(bytes(from)?);
        let line = u64::from_le_bytes(bytes(from)?);
        let norm = u32::from_le_bytes(bytes(from)?);
        let digest = bytes(from)?;
        let mut key = vec![0; usize::from(length)];
        from.read_exact(&mut key)?;
        let key = String::from_utf8(key).map_err(|_| broken("an id is not UTF-8"))?;
        Ok(Self { codes, tie, line, key, norm, digest })
    }
}

impl Stored for IdRecord {
    fn put(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.tie.to_le_bytes())?;
        out.write_all(&self.line.to_le_bytes())?;
        out.write_all(&self.digest)
    }

    fn take(first: u8, _: usize, from: &mut impl Read) -> io::Result<Self> {
        let mut tie = [first; 8];
        from.read_exact(&mut tie[1..])?;
        let line = u64::from_le_bytes(bytes(from)?);
        Ok(Self { tie: u64::from_le_bytes(tie), line, digest: bytes(from)? })
    }
}

/// Hashes what goes through.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Writes sorted records under a temporary name, syncs and renames; gives back the digest of the file.
pub(super) fn write<T: Stored>(path: &Path, records: impl Iterator<Item = T>) -> Result<String> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<String> {
        let file = Hashing { inner: File::create(&temporary)?, hasher: blake3::Hasher::new() };
        let mut out = BufWriter::with_capacity(1 << 18, file);
        for record in records {
            record.put(&mut out)?;
        }
        let Hashing { inner, hasher } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        inner.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    write().map_err(|e| cannot_create(path, e))
}

/// A run that is being read.
pub(super) struct RunReader {
    path: PathBuf,
    levels: usize,
    expected: String,
    from: BufReader<Hashing<File>>,
}

impl RunReader {
    /// Opens the run whose digest should be `expected`.
    pub(super) fn open(path: &Path, levels: usize, expected: &str) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let from = BufReader::with_capacity(1 << 16, Hashing { inner: file, hasher: blake3::Hasher::new() });
        Ok(Self { path: path.to_owned(), levels, expected: expected.to_owned(), from })
    }

    /// The next record; none at the end, where the digest is checked.
    pub(super) fn next<T: Stored>(&mut self) -> Result<Option<T>> {
        let mut first = [0];
        let taken = match self.from.read(&mut first) {
            Ok(0) => {
                let found = self.from.get_ref().hasher.finalize().to_hex().to_string();
                if found == self.expected {
                    return Ok(None);
                }
                let (path, expected) = (self.path.display(), &self.expected);
                return Err(bad_data(format!("{path}: damaged; expected digest {expected}, found {found}")));
            }
            Ok(_) => T::take(first[0], self.levels, &mut self.from),
            Err(e) => Err(e),
        };
        taken.map(Some).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                bad_data(format!("{}: damaged: {e}", self.path.display()))
            }
            _ => anyhow::Error::new(e).context(self.path.display().to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let record = |at: u64| Record {
            codes: SemanticId::new(&[at as u16, 7]).unwrap(),
            tie: at * 1_000_003,
            line: at,
            key: "k".repeat(at as usize % 600),
            norm: (at as f32).to_bits(),
            digest: [at as u8; 16],
        };
        (0..700).map(record).collect()
    }

    fn read<T: Stored>(path: &Path, digest: &str) -> Result<Vec<T>> {
        let mut reader = RunReader::open(path, 2, digest)?;
        let mut found = Vec::new();
        while let Some(record) = reader.next()? {
            found.push(record);
        }
        Ok(found)
    }

    #[test]
    fn a_run_round_trips_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.run");
        let digest = write(&path, records().into_iter()).unwrap();
        assert_eq!(read::<Record>(&path, &digest).unwrap(), records());
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 60) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(read::<Record>(&path, &digest).is_err());
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read::<Record>(&path, &digest).is_err());
        }
        let ids: Vec<IdRecord> = (0..90).map(|at| IdRecord { tie: at, line: 9 * at, digest: [at as u8; 16] }).collect();
        let digest = write(&path, ids.iter().copied()).unwrap();
        assert_eq!(read::<IdRecord>(&path, &digest).unwrap(), ids);
        assert_eq!(fs::metadata(&path).unwrap().len(), 32 * 90);
    }
}
