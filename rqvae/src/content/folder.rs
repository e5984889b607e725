//! The files of an encoder's folder, and the digest of all that were read.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest JSON file: a tokenizer of some hundred thousand words.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A folder whose reads are remembered.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    read: RefCell<BTreeMap<String, blake3::Hash>>,
}

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), read: RefCell::default() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    /// The bytes of the file `name`, which may stand in a folder below.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        self.read.borrow_mut().insert(name.to_owned(), blake3::hash(&bytes));
        Ok(bytes)
    }

    /// The file `name` as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path(name);
        serde_json::from_slice(&self.small(name)?).map_err(|e| Error::corrupt(&path, e.to_string()))
    }

    /// The bytes of a file that is not as large as weights.
    pub(super) fn small(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        let size = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if size > MAX_JSON_BYTES {
            return Err(Error::corrupt(&path, format!("{size} bytes; at most {MAX_JSON_BYTES} are read")));
        }
        self.read(name)
    }

    /// BLAKE3 of the names and contents of all files read so far, in hex.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, digest) in self.read.borrow().iter() {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(digest.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}
