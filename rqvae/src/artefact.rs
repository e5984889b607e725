//! Self-describing files: safetensors whose header carries format, version, writer and a digest of everything.
//!
//! The header is written here, keys sorted, because the library's order of metadata differs from run to run.

use crate::{Error, Result};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const WRITER: &str = concat!("sidrec ", env!("CARGO_PKG_VERSION"));
const METADATA: &str = "__metadata__";

/// Writes `bytes` under a temporary name beside `path`, syncs, renames, and syncs the folder.
///
/// # Errors
/// [`Error::Io`]; what was at `path` before is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(source) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(path)(source));
    }
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io(parent))
}

/// BLAKE3 of a file, in hex.
pub fn file_digest(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(Error::io(path))?;
    hasher.update_reader(file).map_err(Error::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[derive(Debug, Clone)]
struct Entry {
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Collects arrays and metadata, then writes them in one go.
#[derive(Debug, Clone)]
pub struct ArtefactWriter {
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
}

macro_rules! arrays {
    ($($name:ident $kind:ty, $dtype:literal;)*) => {
        impl ArtefactWriter {
            $(
                #[doc = concat!("Adds an array of `", stringify!($kind), "` with `shape`.")]
                ///
                /// # Errors
                /// [`Error::ShapeMismatch`] when `shape` and the number of elements differ.
                pub fn $name(&mut self, name: &str, shape: &[usize], data: &[$kind]) -> Result<()> {
                    if shape.iter().product::<usize>() != data.len() {
                        return Err(Error::shape(name, format!("shape {shape:?}"), format!("{} elements", data.len())));
                    }
                    let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                    self.entries.insert(name.to_string(), Entry { dtype: $dtype, shape: shape.to_vec(), bytes });
                    Ok(())
                }
            )*
        }
        impl Artefact {
            $(
                #[doc = concat!("An array of `", stringify!($kind), "` and its shape.")]
                ///
                /// # Errors
                /// [`Error::Corrupt`] when there is none of this name and type.
                pub fn $name(&self, name: &str) -> Result<(Vec<usize>, Vec<$kind>)> {
                    const SIZE: usize = size_of::<$kind>();
                    let slot = self.slot(name, $dtype)?;
                    let bytes = &self.bytes[slot.start..slot.end];
                    let number = |chunk: &[u8]| {
                        let mut le = [0; SIZE];
                        le.copy_from_slice(chunk);
                        <$kind>::from_le_bytes(le)
                    };
                    Ok((slot.shape.clone(), bytes.chunks_exact(SIZE).map(number).collect()))
                }
            )*
        }
    };
}

arrays! {
    f32s f32, "F32";
    f64s f64, "F64";
    u8s u8, "U8";
    u16s u16, "U16";
    u32s u32, "U32";
    u64s u64, "U64";
}

impl ArtefactWriter {
    /// A file of `format` in `version`, still empty.
    pub fn new(format: &str, version: u32) -> Self {
        let metadata = [("format", format), ("version", &version.to_string()), ("writer", WRITER)]
            .map(|(key, value)| (key.to_string(), value.to_string()));
        Self { metadata: BTreeMap::from(metadata), entries: BTreeMap::new() }
    }

    /// Adds a line of metadata; `format`, `version`, `writer` and `digest` are taken.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.metadata.insert(key.to_string(), value.to_string());
    }

    /// The whole file: the same content gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Wide types first keeps every array aligned, as the format asks.
        let width = |e: &Entry| e.bytes.len() / e.shape.iter().product::<usize>().max(1);
        let mut entries: Vec<(&String, &Entry)> = self.entries.iter().collect();
        entries.sort_by_key(|(name, e)| (std::cmp::Reverse(width(e)), *name));
        let mut header = Map::new();
        header.insert(METADATA.into(), json!(self.metadata));
        let mut data = Vec::new();
        for (name, entry) in entries {
            let start = data.len();
            data.extend_from_slice(&entry.bytes);
            let slot = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), slot);
        }
        let digest = digest(&header, &data);
        if let Some(Value::Object(metadata)) = header.get_mut(METADATA) {
            metadata.insert("digest".into(), digest.into());
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes.extend(data);
        bytes
    }

    /// Writes the file atomically.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_bytes())
    }
}

fn digest(header: &Map<String, Value>, data: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(Value::Object(header.clone()).to_string().as_bytes());
    hasher.update(data);
    hasher.finalize().to_hex().to_string()
}

#[derive(Debug, Clone)]
struct Slot {
    dtype: String,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A file that was read and found whole.
#[derive(Debug, Clone)]
pub struct Artefact {
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    slots: BTreeMap<String, Slot>,
    bytes: Vec<u8>,
}

impl Artefact {
    /// Reads and checks a file of `format` in `version`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`], [`Error::WrongVersion`] or [`Error::DigestMismatch`].
    pub fn open(path: &Path, format: &str, version: u32) -> Result<Self> {
        Self::from_bytes(path, fs::read(path).map_err(Error::io(path))?, format, version)
    }

    /// Checks bytes read from `path`.
    ///
    /// # Errors
    /// As [`Artefact::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>, format: &str, version: u32) -> Result<Self> {
        SafeTensors::deserialize(&bytes).map_err(|e| Error::corrupt(path, e))?;
        // The library has just checked lengths, offsets and overlaps; what is read again here is known to be there.
        let broken = || Error::corrupt(path, "header is not that of an artefact");
        let prefix: [u8; 8] = bytes.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(broken)?;
        let start = usize::try_from(u64::from_le_bytes(prefix)).ok().and_then(|n| n.checked_add(8));
        let start = start.filter(|&n| n <= bytes.len()).ok_or_else(broken)?;
        let mut header: Map<String, Value> =
            serde_json::from_slice(&bytes[8..start]).map_err(|e| Error::corrupt(path, e))?;
        let metadata = header.get_mut(METADATA).and_then(Value::as_object_mut).ok_or_else(broken)?;
        let text = |metadata: &Map<String, Value>, key: &str| {
            let value = metadata.get(key).and_then(Value::as_str).map(str::to_string);
            value.ok_or_else(|| Error::corrupt(path, format!("metadata lacks `{key}`")))
        };
        let found = text(metadata, "format")?;
        if found != format {
            return Err(Error::corrupt(path, format!("format is `{found}`, expected `{format}`")));
        }
        let found = text(metadata, "version")?;
        let found = found.parse().map_err(|_| Error::corrupt(path, format!("version is `{found}`")))?;
        if found != version {
            return Err(Error::WrongVersion { path: path.to_path_buf(), found, supported: version });
        }
        let expected = text(metadata, "digest")?;
        metadata.shift_remove("digest");
        let pairs = metadata.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
        let found = digest(&header, &bytes[start..]);
        if found != expected {
            return Err(Error::DigestMismatch { path: path.to_path_buf(), expected, found });
        }
        header.shift_remove(METADATA);
        let mut slots = BTreeMap::new();
        for (name, value) in &header {
            slots.insert(name.clone(), slot(value, start).ok_or_else(broken)?);
        }
        Ok(Self { path: path.to_path_buf(), metadata: pairs, slots, bytes })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A line of metadata.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not there.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let value = self.metadata.get(key);
        value.map(String::as_str).ok_or_else(|| Error::corrupt(&self.path, format!("metadata lacks `{key}`")))
    }

    /// Names of the arrays, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    fn slot(&self, name: &str, dtype: &str) -> Result<&Slot> {
        let slot = self.slots.get(name);
        let slot = slot.ok_or_else(|| Error::corrupt(&self.path, format!("array `{name}` is missing")))?;
        if slot.dtype != dtype {
            let reason = format!("array `{name}` is {}, expected {dtype}", slot.dtype);
            return Err(Error::corrupt(&self.path, reason));
        }
        Ok(slot)
    }
}

fn slot(value: &Value, start: usize) -> Option<Slot> {
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let shape = value.get("shape")?.as_array()?.iter().map(number).collect::<Option<_>>()?;
    let offsets = value.get("data_offsets")?;
    let offset = |i: usize| Some(number(offsets.get(i)?)? + start);
    Some(Slot { dtype: value.get("dtype")?.as_str()?.to_string(), shape, start: offset(0)?, end: offset(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> ArtefactWriter {
        let mut writer = ArtefactWriter::new("sample", 3);
        writer.metadata("spec", "{\"a\":1}");
        writer.u8s("bytes", &[3], &[1, 2, 3]).unwrap();
        writer.f32s("floats", &[2, 2], &[1.0, -2.0, 3.5, 0.0]).unwrap();
        writer.u32s("empty", &[0], &[]).unwrap();
        writer
    }

    fn read(bytes: Vec<u8>) -> Result<Artefact> {
        Artefact::from_bytes(Path::new("x"), bytes, "sample", 3)
    }

    #[test]
    fn round_trip_through_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample().write(&path).unwrap();
        let artefact = Artefact::open(&path, "sample", 3).unwrap();
        assert_eq!(artefact.metadata("spec").unwrap(), "{\"a\":1}");
        assert_eq!(artefact.u8s("bytes").unwrap(), (vec![3], vec![1, 2, 3]));
        assert_eq!(artefact.f32s("floats").unwrap(), (vec![2, 2], vec![1.0, -2.0, 3.5, 0.0]));
        assert_eq!(artefact.u32s("empty").unwrap(), (vec![0], vec![]));
        assert_eq!(artefact.names().collect::<Vec<_>>(), ["bytes", "empty", "floats"]);
        assert!(matches!(artefact.u8s("floats"), Err(Error::Corrupt { .. })));
        assert!(matches!(Artefact::open(&path, "other", 3), Err(Error::Corrupt { .. })));
        assert!(matches!(Artefact::open(&path, "sample", 2), Err(Error::WrongVersion { found: 3, .. })));
        assert!(matches!(Artefact::open(&dir.path().join("no"), "sample", 3), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(file_digest(&path).unwrap(), blake3::hash(&sample().to_bytes()).to_hex().to_string());
    }

    #[test]
    fn wrong_shape_is_refused() {
        assert!(ArtefactWriter::new("x", 1).u8s("a", &[2], &[1]).is_err());
    }

    proptest! {
        /// Invariant 7: a flipped bit is an error, never a panic (padding aside, which carries nothing).
        #[test]
        fn a_flipped_bit_is_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let bytes = sample().to_bytes();
            let mut flipped = bytes.clone();
            let at = at.index(bytes.len());
            flipped[at] ^= 1 << bit;
            prop_assert!(bytes[at] == b' ' || read(flipped).is_err());
        }

        #[test]
        fn a_torn_file_is_an_error(at in any::<prop::sample::Index>()) {
            let bytes = sample().to_bytes();
            prop_assert!(read(bytes[..at.index(bytes.len())].to_vec()).is_err());
        }
    }
}
