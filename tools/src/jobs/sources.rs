//! Content from one or several sources side by side: item i of all of them makes up row i.
//!
//! The first source is the one that `--embeddings` and `--encoder` name, further ones come from `--source`. Each is
//! saved like a single one, further ones in folders of their own, so that new items are encoded the same way.
//!
//! Shapes: sources (items, width of each) -> content (items, sum of the widths).

use super::build_sids::Content;
use crate::error::{Fault, fault};
use crate::table::Items;
use anyhow::{Context, Result};
use rqvae::Vectors;
use std::path::{Path, PathBuf};

/// Most further sources.
const MOST: usize = 15;

/// One source or several.
pub struct Sources {
    parts: Vec<Content>,
}

/// Vectors and the widths they are made up of.
pub struct Joined {
    /// One row per item.
    pub vectors: Vectors,
    /// Width of every source.
    pub widths: Vec<usize>,
}

impl Sources {
    /// The main source as [`Content::choose`] finds it, and one for each of `more`: a file of vectors or the name of an
    /// encoder.
    pub fn choose(
        items: &Items,
        embeddings: Option<&Path>,
        encoder: Option<&str>,
        more: &[String],
        seed: u64,
    ) -> Result<Self> {
        if more.len() > MOST {
            return Err(fault(Fault::Usage, format!("--source: {} of them, at most {MOST}", more.len())));
        }
        let mut parts = vec![Content::choose(items, embeddings, encoder, seed)?];
        for source in more {
            let file = as_file(source);
            let encoder = file.is_none().then_some(source.as_str());
            let part = Content::choose(items, file, encoder, seed);
            parts.push(part.with_context(|| format!("--source {source}"))?);
        }
        Ok(Self { parts })
    }

    /// The sources that [`Sources::save`] left in `dir`; `more` stand in for further ones that are files, or
    /// say where their encoders are now, in their order.
    ///
    /// # Errors
    /// As [`Content::reopen`], for every source; `more` has another number of sources than were saved.
    pub fn reopen(
        items: &Items,
        dir: &Path,
        embeddings: Option<&Path>,
        encoder: Option<&str>,
        more: &[String],
    ) -> Result<Self> {
        let mut parts = vec![Content::reopen(items, dir, embeddings, encoder)?];
        let saved: Vec<PathBuf> = (1..=MOST).map(|at| folder(dir, at)).take_while(|dir| dir.is_dir()).collect();
        if !more.is_empty() && more.len() != saved.len() {
            let found = more.len();
            return Err(fault(
                Fault::Usage,
                format!("--source: the catalogue has {} further sources, found {found}", saved.len()),
            ));
        }
        for (at, dir) in saved.iter().enumerate() {
            let source = more.get(at);
            let file = source.and_then(|source| as_file(source));
            let encoder = source.filter(|_| file.is_none()).map(String::as_str);
            let part = Content::reopen(items, dir, file, encoder);
            parts.push(part.with_context(|| format!("--source: further source {}", at + 1))?);
        }
        Ok(Self { parts })
    }

    /// Names for reports.
    pub fn name(&self) -> String {
        self.parts.iter().map(Content::name).collect::<Vec<_>>().join(" + ")
    }

    /// Digests of what makes the encoders, of sources that have one, in their order.
    pub fn digest(&self) -> String {
        let digests = self.parts.iter().map(|part| part.record().digest).filter(|digest| !digest.is_empty());
        digests.collect::<Vec<_>>().join(" + ")
    }

    /// One vector per item.
    pub fn vectors(&self, items: &Items) -> Result<Joined> {
        let mut parts = self.parts.iter().map(|part| part.vectors(items)).collect::<Result<Vec<_>>>()?;
        let widths: Vec<usize> = parts.iter().map(|part| part.dim).collect();
        if parts.len() == 1 {
            return Ok(Joined { vectors: parts.remove(0), widths });
        }
        let rows = 0..items.keys.len();
        let data = rows.flat_map(|row| parts.iter().flat_map(move |part| part.row(row))).copied().collect();
        Ok(Joined { vectors: Vectors::new(widths.iter().sum(), data)?, widths })
    }

    /// Saves what is needed to encode further items the same way.
    pub fn save(&self, dir: &Path) -> Result<()> {
        for (at, part) in self.parts.iter().enumerate() {
            let dir = if at == 0 { dir.to_path_buf() } else { folder(dir, at) };
            if at > 0 {
                std::fs::create_dir(&dir).map_err(rqvae::Error::io(&dir))?;
            }
            part.save(&dir)?;
        }
        Ok(())
    }
}

/// Whether [`Sources::save`] left more than one source in `dir`.
pub fn are_several(dir: &Path) -> bool {
    folder(dir, 1).is_dir()
}

/// The file of vectors that a source names; `None` where it names an encoder.
fn as_file(source: &str) -> Option<&Path> {
    let path = Path::new(source);
    let endings = ["npy", "safetensors", "parquet"];
    let vectors = path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e));
    (path.is_file() || vectors && !path.is_dir()).then_some(path)
}

fn folder(dir: &Path, at: usize) -> PathBuf {
    dir.join(format!("source-{at}"))
}
