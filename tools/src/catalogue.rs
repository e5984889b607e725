//! A catalogue directory: keys, IDs, trie, titles and content as one checked unit. Layout in the README.
//!
//! Written into a temporary sibling folder and renamed, the manifest last; opened only when every digest fits.

use crate::error::{Fault, bad_data, cannot_create, fault};
use crate::table::{ItemKeys, SidsMeta, write_half_vectors, write_sids, write_vectors};
use anyhow::{Context, Result};
use beam::{Trie, TrieDelta};
use rayon::prelude::*;
use rqvae::{Artefact, ArtefactWriter, ItemIdx, SidEncoder, SidTable, Vectors, file_digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const FORMAT: &str = "catalogue";
const INDEX_FORMAT: &str = "catalogue-index";
const VERSION: u32 = 1;
const QUANTIZER: &str = "quantizer/quantizer.safetensors";
const VECTORS: &str = "vectors.safetensors";

/// What people see of an item; never read by a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemCard {
    /// External id, a string or an integer as in the input.
    pub item_id: serde_json::Value,
    /// Title.
    pub title: String,
    /// Readable category path.
    pub category: String,
    /// Launch or first sight, Unix seconds.
    pub first_seen: Option<i64>,
}

/// How the catalogue came about, and the health of its IDs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Quantiser method.
    pub method: String,
    /// Content encoder.
    pub encoder: String,
    /// Digest of what makes the encoder, those of several joined by ` + `; empty where vectors came from a
    /// file, and in catalogues of older versions.
    #[serde(default)]
    pub encoder_digest: String,
    /// Seed of the fit.
    pub seed: u64,
    /// Mean squared error per vector.
    pub reconstruction_mse: f64,
    /// Share of the variance that the codes leave unexplained.
    pub relative_error: f64,
    /// Seconds to fit the quantiser.
    pub fit_seconds: f64,
    /// Items encoded per second.
    pub encode_items_per_second: f64,
    /// What was done about items with equal codes; `None` in catalogues of older versions.
    #[serde(default)]
    pub collisions: Option<Collisions>,
}

/// What was done about items with equal codes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Collisions {
    /// `suffix`, `nearest-free`, `min-cost` or `share`.
    pub policy: String,
    /// Distinct code tuples as the quantiser gave them.
    pub unique_prefixes_before: usize,
    /// Most items with equal codes as the quantiser gave them.
    pub max_group_before: usize,
    /// Items that moved to another code of the last level.
    pub moved: usize,
    /// Share of the variance that the codes of the IDs leave unexplained, where items moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    items: usize,
    /// Digest of the SID table; models name the table they were trained on by it.
    sids: String,
    /// Digests of what the IDs were derived from: the quantiser's file and that of the content vectors.
    #[serde(default)]
    quantizer_digest: String,
    #[serde(default)]
    content_digest: String,
    integer_ids: bool,
    /// Digests of the SID tables that this one extends, oldest first.
    #[serde(default)]
    lineage: Vec<String>,
    /// Rows of items that were removed, ascending: they keep their IDs and are never found.
    #[serde(default)]
    removed: Vec<ItemIdx>,
    origin: Origin,
    /// BLAKE3 of every file.
    files: BTreeMap<String, String>,
}

/// Everything about the items of one catalogue version.
#[derive(Clone)]
pub struct Catalogue {
    /// External ids.
    pub keys: ItemKeys,
    /// Semantic IDs.
    pub sids: SidTable,
    /// The IDs of all items that can be found, as a trie: those in `removed` are not in it.
    pub trie: Trie,
    /// Digests of the SID tables that this one extends, oldest first: models trained on them fit.
    pub lineage: Vec<String>,
    /// Items that were removed, ascending: they keep rows and IDs, as histories and models know them.
    pub removed: Vec<ItemIdx>,
    /// For people.
    pub cards: Vec<ItemCard>,
    /// Content vectors, which some models read.
    pub content: Vectors,
    /// How it came about.
    pub origin: Origin,
}

/// Refuses to write over anything: `dir` must not exist or be empty.
///
/// # Errors
/// Cannot create (exit 73).
pub fn require_empty(dir: &Path) -> Result<()> {
    if dir.is_file() {
        return Err(cannot_create(dir, "a file of that name exists"));
    }
    if dir.is_dir() && fs::read_dir(dir).with_context(|| dir.display().to_string())?.next().is_some() {
        return Err(cannot_create(dir, "the directory is not empty; choose another or remove it first"));
    }
    let above = dir.ancestors().find(|above| above.exists());
    match above.filter(|above| !above.is_dir()) {
        Some(above) => Err(cannot_create(dir, format!("{} is no directory", above.display()))),
        None => Ok(()),
    }
}

/// Makes room for the new file `path`: its folder is made where it is missing.
///
/// # Errors
/// Usage when its ending is none of `endings` (any where there are none); cannot create.
pub fn require_writable(option: &str, path: &Path, endings: &[&str]) -> Result<()> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !endings.is_empty() && !endings.contains(&ending) {
        let known: Vec<String> = endings.iter().map(|ending| format!(".{ending}")).collect();
        return Err(fault(Fault::Usage, format!("{option} {}: expected {}", path.display(), known.join(", "))));
    }
    if path.is_dir() {
        return Err(cannot_create(path, "a directory of that name exists"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| cannot_create(path, e))
}

impl Catalogue {
    /// Writes the directory `dir`, with the quantiser and whatever `encoder` saves beside it.
    pub fn write(
        &self,
        dir: &Path,
        residual_norms: &[f32],
        quantizer: &dyn SidEncoder,
        encoder: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<()> {
        self.write_with(dir, &|at| {
            fs::create_dir(at.join("quantizer")).map_err(|e| cannot_create(dir, e))?;
            fs::create_dir(at.join("encoder")).map_err(|e| cannot_create(dir, e))?;
            quantizer.save(&at.join("quantizer"))?;
            encoder(&at.join("encoder"))?;
            write_vectors(&at.join(VECTORS), &self.content, &self.keys)?;
            let meta = SidsMeta {
                method: self.origin.method.clone(),
                encoder: self.origin.encoder.clone(),
                quantizer_digest: file_digest(&at.join(QUANTIZER))?,
                content_digest: file_digest(&at.join(VECTORS))?,
                seed: self.origin.seed,
            };
            write_sids(&at.join("sids.parquet"), &self.sids, &self.keys, residual_norms, &self.content, &meta)?;
            write_cards(&self.cards, &at.join("items.jsonl"))?;
            Ok(Digests { quantizer: meta.quantizer_digest, content: meta.content_digest })
        })
    }

    /// Writes only what recommending needs into `dir`: IDs, trie and 16-bit content vectors, and titles where
    /// `titles` is set. New items cannot be added to such a catalogue.
    pub fn write_packed(&self, dir: &Path, titles: bool) -> Result<()> {
        self.write_with(dir, &|at| {
            let bare = |card: &ItemCard| ItemCard { item_id: card.item_id.clone(), ..ItemCard::default() };
            let cards = self.cards.iter().map(|card| if titles { card.clone() } else { bare(card) });
            write_cards(&cards.collect::<Vec<_>>(), &at.join("items.jsonl"))?;
            write_half_vectors(&at.join(VECTORS), &self.content, &self.keys)?;
            Ok(Digests { quantizer: String::new(), content: file_digest(&at.join(VECTORS))? })
        })
    }

    /// Writes the directory as one: the index, what `rest` adds to it, the manifest last.
    fn write_with(&self, dir: &Path, rest: &dyn Fn(&Path) -> Result<Digests>) -> Result<()> {
        require_empty(dir)?;
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| cannot_create(parent, e))?;
        let temporary =
            tempfile::Builder::new().prefix(".catalogue-").tempdir_in(parent).map_err(|e| cannot_create(dir, e))?;
        let at = temporary.path();
        self.write_index(&at.join("index.safetensors"))?;
        let digests = rest(at)?;
        let mut files = BTreeMap::new();
        for path in files_below(at)? {
            let name = path.strip_prefix(at)?.to_string_lossy().replace('\\', "/");
            files.insert(name, file_digest(&path)?);
        }
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            items: self.sids.items(),
            sids: self.sids.digest(),
            quantizer_digest: digests.quantizer,
            content_digest: digests.content,
            integer_ids: self.keys.integer,
            lineage: self.lineage.clone(),
            removed: self.removed.clone(),
            origin: self.origin.clone(),
            files,
        };
        rqvae::write_atomic(&at.join("manifest.json"), &serde_json::to_vec_pretty(&manifest)?)?;
        if dir.is_dir() {
            fs::remove_dir(dir).map_err(|e| cannot_create(dir, e))?;
        }
        // The temporary folder was made for its owner alone; the catalogue is read by others too.
        let kept = temporary.keep();
        open_to_readers(&kept)?;
        fs::rename(&kept, dir).map_err(|e| cannot_create(dir, e))
    }

    fn write_index(&self, path: &Path) -> Result<()> {
        let mut writer = ArtefactWriter::new(INDEX_FORMAT, VERSION);
        writer.metadata("sids", &self.sids.digest());
        writer.u16s("codes", &[self.sids.items(), self.sids.spec().len()], self.sids.flat())?;
        let (mut bytes, mut offsets) = (Vec::new(), vec![0u32]);
        for key in self.keys.iter() {
            bytes.extend_from_slice(key.as_bytes());
            offsets.push(u32::try_from(bytes.len()).context("item ids take more than 4 GiB")?);
        }
        writer.u32s("key_offsets", &[offsets.len()], &offsets)?;
        writer.u8s("key_bytes", &[bytes.len()], &bytes)?;
        if self.removed.is_empty() {
            self.trie.save_into(&mut writer)?;
        } else {
            Trie::build(&self.sids)?.save_into(&mut writer)?;
        }
        Ok(writer.write(path)?)
    }

    /// Opens a directory that [`Catalogue::write`] made.
    ///
    /// # Errors
    /// Input missing when it is none; bad data naming the file that is damaged, of another version, or does not fit.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("manifest.json");
        if !path.is_file() {
            return Err(crate::error::input_missing(&path).context(format!("{} is no catalogue", dir.display())));
        }
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let unread = |e: serde_json::Error| bad_data(format!("{}: {e}", path.display()));
        let format: Format = serde_json::from_slice(&bytes).map_err(unread)?;
        if format.format == crate::jobs::stream::SHARDS {
            let why = "shards of IDs by `sids build --stream`, no catalogue with an index to search";
            return Err(bad_data(format!("{}: {why}", dir.display())));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(unread)?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(bad_data(format!(
                "{}: expected format `{FORMAT}` version {VERSION}, found `{}` version {}; build it again with `sidrec sids build`",
                path.display(),
                manifest.format,
                manifest.version
            )));
        }
        for (name, expected) in &manifest.files {
            if name.split('/').any(|part| part == "..") || Path::new(name).is_absolute() {
                return Err(bad_data(format!("{}: file name `{name}` leaves the catalogue", path.display())));
            }
            let file = dir.join(name);
            let found = file_digest(&file)?;
            if found != *expected {
                return Err(bad_data(format!(
                    "{}: damaged; expected digest {expected}, found {found}",
                    file.display()
                )));
            }
        }
        // Large catalogues: titles and index are read side by side.
        let (index, cards) = rayon::join(
            || read_index(&dir.join("index.safetensors"), manifest.integer_ids),
            || read_cards(&dir.join("items.jsonl"), manifest.items),
        );
        let (keys, sids, trie) = index?;
        if sids.digest() != manifest.sids || sids.items() != manifest.items {
            return Err(bad_data(format!(
                "{}: expected SID table {} of {} items, found {} of {}",
                dir.join("index.safetensors").display(),
                manifest.sids,
                manifest.items,
                sids.digest(),
                sids.items()
            )));
        }
        let cards = cards?;
        let content = crate::table::read_vectors(&dir.join(VECTORS), &keys)?;
        let Manifest { lineage, removed, origin, .. } = manifest;
        let ascending = removed.windows(2).all(|w| w[0] < w[1]);
        if !ascending || removed.last().is_some_and(|item| item.0 as usize >= sids.items()) {
            return Err(bad_data(format!("{}: `removed` is no ascending list of items", path.display())));
        }
        let trie = without(trie, &removed);
        Ok(Self { keys, sids, trie, lineage, removed, cards, content, origin })
    }

    /// Whether an item can be found, that is, was not removed.
    pub fn is_live(&self, item: ItemIdx) -> bool {
        self.removed.binary_search(&item).is_err()
    }

    /// Names what searches return: digest of the IDs and of which of them are live.
    pub fn version(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.sids.digest().as_bytes());
        self.removed.iter().for_each(|item| {
            hasher.update(&item.0.to_le_bytes());
        });
        hasher.finalize().to_hex()[..12].to_string()
    }

    /// Title of an item, or its id where there is none.
    pub fn title(&self, item: ItemIdx) -> &str {
        let title = &self.cards[item.0 as usize].title;
        if title.is_empty() { self.keys.key(item) } else { title }
    }
}

/// What every manifest tells of itself.
#[derive(Deserialize)]
struct Format {
    format: String,
}

/// `trie` without the `removed` items.
pub(crate) fn without(trie: Trie, removed: &[ItemIdx]) -> Trie {
    if removed.is_empty() {
        return trie;
    }
    let mut delta = TrieDelta::new(&trie);
    for item in removed {
        delta.remove(*item);
    }
    delta.fold()
}

/// What the IDs were made from; empty where it is not part of the catalogue.
struct Digests {
    quantizer: String,
    content: String,
}

fn write_cards(cards: &[ItemCard], path: &Path) -> Result<()> {
    let mut out = BufWriter::new(fs::File::create(path).with_context(|| path.display().to_string())?);
    for card in cards {
        serde_json::to_writer(&mut out, card)?;
        out.write_all(b"\n")?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

#[cfg(unix)]
fn open_to_readers(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(|| dir.display().to_string())
}

#[cfg(not(unix))]
fn open_to_readers(_: &Path) -> Result<()> {
    Ok(())
}

/// All files below a folder, sorted.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_index(path: &Path, integer_ids: bool) -> Result<(ItemKeys, SidTable, Trie)> {
    let corrupt = |reason: String| bad_data(format!("{}: {reason}", path.display()));
    let index = Artefact::open(path, INDEX_FORMAT, VERSION)?;
    let trie = Trie::load(&index)?;
    let sids = SidTable::new(trie.spec().clone(), index.u16s("codes")?.1).map_err(|e| corrupt(e.to_string()))?;
    let (offsets, bytes) = (index.u32s("key_offsets")?.1, index.u8s("key_bytes")?.1);
    let keys: Vec<String> = offsets
        .windows(2)
        .map(|w| bytes.get(w[0] as usize..w[1] as usize).and_then(|b| std::str::from_utf8(b).ok()).map(str::to_string))
        .collect::<Option<_>>()
        .ok_or_else(|| corrupt("array `key_offsets` does not fit `key_bytes`".into()))?;
    if keys.len() != sids.items() || trie.items_total() != sids.items() {
        return Err(corrupt(format!(
            "expected one key and one leaf for each of {} items, found {} keys and {} leaves",
            sids.items(),
            keys.len(),
            trie.items_total()
        )));
    }
    let mut keys = ItemKeys::new(keys)?;
    keys.integer = integer_ids;
    Ok((keys, sids, trie))
}

fn read_cards(path: &Path, items: usize) -> Result<Vec<ItemCard>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    let cards: Vec<ItemCard> = lines
        .par_iter()
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_str(line).map_err(|e| bad_data(format!("{} line {}: {e}", path.display(), at + 1)))
        })
        .collect::<Result<_>>()?;
    if cards.len() != items {
        return Err(bad_data(format!("{}: expected {items} items, found {}", path.display(), cards.len())));
    }
    Ok(cards)
}
