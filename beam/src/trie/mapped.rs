//! The arena as a file of its own, mapped into memory: for catalogues whose index should not be read twice.
//!
//! A safetensors file with the one tensor `arena` U32 (words,); metadata `format`, `version`, `writer`, `spec`, `layout`
//! (nodes per level, places of items, widths of the cuts) and `digest`. Everything is checked when it is opened, so that
//! search may index without looking. The file must not be changed while it is mapped: write a new one and rename it.

use super::arena::{Layout, Width, Words};
use super::{NodeId, Trie};
use crate::Result;
use rayon::prelude::*;
use rqvae::{Error, SidSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const FORMAT: &str = "trie";
const VERSION: u32 = 1;
const METADATA: &str = "__metadata__";
const ARENA: &str = "arena";

/// A greater header is none of ours.
const MAX_HEADER: usize = 1 << 16;

#[cfg(target_endian = "big")]
compile_error!("index files are little-endian and read as they are");

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    nodes: Vec<usize>,
    entries: usize,
    cuts: Vec<Width>,
}

impl Trie {
    /// Writes the trie under a temporary name beside `path` and renames it.
    ///
    /// # Errors
    /// [`rqvae::Error::Io`]; what was at `path` before is then untouched.
    pub fn write(&self, path: &Path) -> Result<()> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let cuts = &self.layout.cuts;
        let counts = Counts {
            nodes: cuts.iter().map(super::Cuts::nodes).collect(),
            entries: self.items_total(),
            cuts: cuts.iter().map(super::Cuts::width).collect(),
        };
        let data: &[u8] = bytemuck::cast_slice(self.words());
        let mut metadata = json!({
            "format": FORMAT,
            "version": VERSION.to_string(),
            "writer": concat!("sidrec ", env!("CARGO_PKG_VERSION")),
            "spec": json!(self.spec).to_string(),
            "layout": json!(counts).to_string(),
        });
        let tensor = json!({"dtype": "U32", "shape": [self.words().len()], "data_offsets": [0, data.len()]});
        metadata["digest"] = digest(&metadata, data).into();
        let mut text = json!({METADATA: metadata, ARENA: tensor}).to_string().into_bytes();
        text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&(text.len() as u64).to_le_bytes())?;
            file.write_all(&text)?;
            file.write_all(data)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(parent)?.sync_all()
        };
        write().inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(io)?;
        Ok(())
    }

    /// Maps what [`Trie::write`] wrote, after a look at every byte.
    ///
    /// # Errors
    /// [`rqvae::Error::Io`], [`rqvae::Error::Corrupt`], [`rqvae::Error::WrongVersion`] or
    /// [`rqvae::Error::DigestMismatch`].
    pub fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        #[expect(unsafe_code, reason = "mapping a file; the module says that nobody may change it meanwhile")]
        // SAFETY: index files are replaced by renaming and never written in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let (from, spec, counts) = header(path, &map)?;
        let corrupt = |reason: &str| Error::corrupt(path, reason);
        let sizes: Vec<u32> = (0..spec.len()).map(|level| spec.codes_at(level)).collect();
        let few = |count: &usize| u32::try_from(*count).is_ok_and(|count| count < u32::MAX);
        if counts.nodes.len() != spec.len() + 1
            || counts.cuts.len() != counts.nodes.len()
            || counts.nodes[0] != 1
            || !counts.nodes.iter().chain([&counts.entries]).all(few)
        {
            return Err(corrupt("metadata `layout` is not that of the `spec`").into());
        }
        let layout = Layout::new(&sizes, &counts.nodes, counts.entries, &counts.cuts);
        let layout = layout.filter(|layout| layout.len.checked_mul(4) == Some(map.len() - from));
        let layout = layout.ok_or_else(|| corrupt("tensor `arena` has not the length that `layout` asks for"))?;
        // Pages and the header are multiples of a word.
        if bytemuck::try_cast_slice::<u8, u32>(&map[from..]).is_err() {
            return Err(corrupt("tensor `arena` does not begin on a word").into());
        }
        let words = Words::Mapped { map, from };
        check(&layout, &sizes, words.as_slice()).map_err(|reason| Error::corrupt(path, reason))?;
        Ok(Self::new(spec, layout, words))
    }
}

/// Everything of the metadata but the digest, then the arena.
fn digest(metadata: &Value, data: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(metadata.to_string().as_bytes());
    hasher.update_rayon(data);
    hasher.finalize().to_hex().to_string()
}

/// Where the arena begins, and what the metadata says, once the digest is found right.
fn header(path: &Path, bytes: &[u8]) -> rqvae::Result<(usize, SidSpec, Counts)> {
    let broken = || Error::corrupt(path, "header is not that of an index");
    let length: [u8; 8] = bytes.get(..8).and_then(|b| b.try_into().ok()).ok_or_else(broken)?;
    let length = usize::try_from(u64::from_le_bytes(length)).ok().filter(|length| *length <= MAX_HEADER);
    let from = length.ok_or_else(broken)? + 8;
    let text = bytes.get(8..from).ok_or_else(broken)?;
    let mut header: Map<String, Value> = serde_json::from_slice(text).map_err(|e| Error::corrupt(path, e))?;
    let mut metadata = header.remove(METADATA).ok_or_else(broken)?;
    let text = |key: &str| {
        let value = metadata.get(key).and_then(Value::as_str).map(str::to_string);
        value.ok_or_else(|| Error::corrupt(path, format!("metadata lacks `{key}`")))
    };
    let found = text("format")?;
    if found != FORMAT {
        return Err(Error::corrupt(path, format!("format is `{found}`, expected `{FORMAT}`")));
    }
    let found = text("version")?;
    let found = found.parse().map_err(|_| Error::corrupt(path, format!("version is `{found}`")))?;
    if found != VERSION {
        return Err(Error::WrongVersion { path: path.to_path_buf(), found, supported: VERSION });
    }
    let (spec, layout, expected) = (text("spec")?, text("layout")?, text("digest")?);
    let data = &bytes[from..];
    let tensor = json!({"dtype": "U32", "shape": [data.len() / 4], "data_offsets": [0, data.len()]});
    if header.get(ARENA) != Some(&tensor) || header.len() != 1 {
        return Err(Error::corrupt(path, "tensor `arena` is not all there is behind the header"));
    }
    if let Value::Object(metadata) = &mut metadata {
        metadata.shift_remove("digest");
    }
    let found = digest(&metadata, data);
    if found != expected {
        return Err(Error::DigestMismatch { path: path.to_path_buf(), expected, found });
    }
    let spec: SidSpec = serde_json::from_str(&spec).map_err(|e| Error::corrupt(path, format!("`spec`: {e}")))?;
    spec.validate()?;
    let counts = serde_json::from_str(&layout).map_err(|e| Error::corrupt(path, format!("`layout`: {e}")))?;
    Ok((from, spec, counts))
}

/// Whether the arrays are those of a trie. Levels whose cuts are bits are checked child by child, not node by node.
fn check(layout: &Layout, sizes: &[u32], words: &[u32]) -> std::result::Result<(), String> {
    let nodes: Vec<usize> = layout.cuts.iter().map(super::Cuts::nodes).collect();
    let items = layout.items(words);
    for (level, cuts) in layout.cuts.iter().enumerate() {
        let below = nodes.get(level + 1).copied().unwrap_or(items.len());
        // Only the root of an empty catalogue may be without children.
        let empty = level == 0 && below == 0;
        let ascend = |node: usize| empty || cuts.get(words, node) < cuts.get(words, node + 1);
        let ascend = || cuts.bits(words, below).is_some() || every(nodes[level], ascend);
        // What is read needs the places, the places nothing.
        let readable = cuts.is_readable(words, below);
        if !readable || (cuts.get(words, 0), cuts.get(words, nodes[level]) as usize) != (0, below) || !ascend() {
            return Err(format!("cuts of level {level} do not part {below} children of {} nodes", nodes[level]));
        }
    }
    for (level, size) in sizes.iter().enumerate() {
        let cuts = &layout.cuts[level];
        let below = nodes[level + 1];
        let all = layout.codes(words, level, 0..below as u32);
        let sound = |node: usize| {
            let codes = layout.codes(words, level, cuts.range(words, node));
            let ascend = (1..codes.len()).all(|at| codes.at(at - 1) < codes.at(at));
            ascend && layout.row(words, level, node as NodeId).is_none_or(|row| same(row, codes.iter()))
        };
        let small = every(below, |at| u32::from(all.at(at)) < *size);
        let ascend = || match cuts.bits(words, below) {
            Some(bits) if layout.row(words, level, 0).is_none() => {
                every(below, |at| at == 0 || all.at(at - 1) < all.at(at) || bits[at / 32] >> (at % 32) & 1 == 1)
            }
            _ => every(nodes[level], sound),
        };
        if !small || !ascend() {
            return Err(format!("siblings of level {} are not ascending codes below {size}", level + 1));
        }
    }
    let leaves = layout.cuts[sizes.len()];
    let sound = |leaf: usize| {
        let range = leaves.range(words, leaf);
        let here = &items[range.start as usize..range.end as usize];
        // Shared IDs are few; a leaf of many items is compared through a set.
        if here.len() > 64 {
            return here.iter().collect::<std::collections::BTreeSet<_>>().len() == here.len();
        }
        !here.iter().enumerate().any(|(at, item)| here[..at].contains(item))
    };
    let single = match leaves.bits(words, items.len()) {
        // Every item but the first one of a leaf sends to its leaf.
        Some(bits) => every(items.len(), |at| {
            bits[at / 32] >> (at % 32) & 1 == 1 || sound(leaves.owner(words, at as u32) as usize)
        }),
        None if leaves.width() == Width::One => true,
        None => every(nodes[sizes.len()], sound),
    };
    if !single || !every(items.len(), |at| items[at].0 < u32::MAX) {
        return Err("an item is there twice under one ID or out of range".to_string());
    }
    Ok(())
}

/// Whether all numbers below `count` are `sound`.
fn every(count: usize, sound: impl Fn(usize) -> bool + Sync) -> bool {
    const CHUNK: usize = 1 << 14;
    let chunk = |chunk: usize| (chunk * CHUNK..count.min((chunk + 1) * CHUNK)).all(&sound);
    (0..count.div_ceil(CHUNK)).into_par_iter().all(chunk)
}

/// Whether the bits of `row` are `codes`.
fn same(row: &[u32], codes: impl ExactSizeIterator<Item = rqvae::Code>) -> bool {
    let bits: usize = row.iter().map(|word| word.count_ones() as usize).sum();
    bits == codes.len() && codes.into_iter().all(|code| row[usize::from(code) / 32] >> (code % 32) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build_tests::{dense_table, table};
    use proptest::prelude::*;
    use rqvae::{ItemIdx, SidTable};

    fn tables() -> impl Strategy<Value = SidTable> {
        prop_oneof![8 => table(), 1 => dense_table()]
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(matches!(Trie::map(&path), Err(crate::Error::Rqvae(Error::Io { .. }))));
        for bytes in [&b""[..], b"1234567", &[0; 64], &[255; 64]] {
            fs::write(&path, bytes).unwrap();
            assert!(Trie::map(&path).is_err());
        }
        rqvae::ArtefactWriter::new("other", 1).write(&path).unwrap();
        assert!(Trie::map(&path).unwrap_err().to_string().contains("format is `other`"));
        rqvae::ArtefactWriter::new(FORMAT, 2).write(&path).unwrap();
        assert!(matches!(Trie::map(&path), Err(crate::Error::Rqvae(Error::WrongVersion { found: 2, .. }))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Invariant 7, for the mapped file: a round trip; a flipped byte or a missing tail is an error.
        #[test]
        fn round_trip_and_damage(
            table in tables(), owners in prop::collection::vec(0u32..90, 400), aliases: bool,
            at in any::<prop::sample::Index>(), flip in 1u8..=255,
        ) {
            let trie = if aliases {
                let owners: Vec<_> = owners[..table.items()].iter().map(|owner| ItemIdx(*owner)).collect();
                Trie::build_aliases(&table, &owners).unwrap()
            } else {
                Trie::build(&table).unwrap()
            };
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("trie.safetensors");
            trie.write(&path).unwrap();
            let mapped = Trie::map(&path).unwrap();
            prop_assert_eq!(&mapped, &trie);
            prop_assert_eq!((mapped.bound, mapped.aliases, &mapped.known), (trie.bound, trie.aliases, &trie.known));
            let whole = fs::read(&path).unwrap();
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            let at = at.index(whole.len());
            let damaged = dir.path().join("damaged");
            fs::write(&damaged, &whole[..at]).unwrap();
            prop_assert!(Trie::map(&damaged).is_err());
            let mut flipped = whole.clone();
            flipped[at] ^= flip;
            fs::write(&damaged, &flipped).unwrap();
            // Blanks that pad the header carry nothing.
            prop_assert!(whole[at] == b' ' || Trie::map(&damaged).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        /// Wrong words under a right digest are refused, or are another sound trie.
        #[test]
        fn wrong_words_are_refused(
            table in tables(), at in any::<prop::sample::Index>(), byte in 0usize..4, flip in 1u8..=255,
        ) {
            let trie = Trie::build(&table).unwrap();
            let mut words = trie.words().to_vec();
            if words.is_empty() {
                return Ok(());
            }
            let at = at.index(words.len());
            words[at] ^= u32::from(flip) << (8 * byte);
            let sizes: Vec<u32> = (0..trie.levels()).map(|level| trie.spec().codes_at(level)).collect();
            if check(&trie.layout, &sizes, &words).is_ok() {
                if words[trie.words().len() - trie.items_total()..].iter().any(|item| *item > 1 << 20) {
                    return Ok(());
                }
                let other = Trie::new(trie.spec().clone(), trie.layout.clone(), Words::Owned(words));
                let mut leaves = 0;
                other.walk(&mut Vec::new(), 0, Trie::ROOT, &mut |codes, leaf| {
                    assert_eq!(other.find(codes), Some(leaf));
                    for item in other.items(leaf) {
                        assert!(other.leaves(*item).any(|other| other == leaf));
                    }
                    leaves += 1;
                });
                prop_assert_eq!(leaves, other.nodes(other.levels()));
            }
        }
    }
}
