//! Items come and go: a new catalogue version beside the old one, in which no ID that exists changes.
//!
//! New items get codes from the frozen quantiser and the next suffix among equals; the room that was left for suffixes
//! keeps the shape that models were trained for. Removed items keep row and ID, so that histories still read, and are
//! never found; added anew, they are found under the ID they had.

use super::build_sids::card;
use crate::catalogue::{Catalogue, files_below, without};
use crate::error::{bad_data, cannot_create, input_missing};
use crate::table::{ItemKeys, Items, read_sids};
use anyhow::{Context, Result};
use beam::{Trie, TrieDelta};
use rqvae::{Code, ItemIdx, SidEncoder, SidTable, Vectors, load_quantizer};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a change did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// Items with a new ID.
    pub added: usize,
    /// Items that had been removed and are found again.
    pub restored: usize,
    /// Items that were there and stay as they are.
    pub known: usize,
    /// Of those, items whose content has changed since; they keep ID and vector.
    pub outdated: usize,
    /// Items that are no longer found.
    pub removed: usize,
    /// Items that are found now.
    pub live: usize,
    /// The new version.
    pub out: PathBuf,
}

/// `shop` becomes `shop-v2`, `shop-v2` becomes `shop-v3`.
pub fn next_version(dir: &Path) -> PathBuf {
    let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let (stem, version) = match name.rsplit_once("-v") {
        Some((stem, number)) if !stem.is_empty() => (stem, number.parse::<u64>().ok()),
        _ => (name.as_str(), None),
    };
    let stem = if version.is_some() { stem } else { &name };
    dir.with_file_name(format!("{stem}-v{}", version.unwrap_or(1).saturating_add(1)))
}

/// Adds `items` with their vectors `content` (items, dim) to the catalogue in `dir`; the result is written to `out`.
///
/// # Errors
/// Bad data when vectors are of another width, or a group of equal codes has no suffix left; cannot create `out`.
pub fn add(dir: &Path, items: &Items, content: &Vectors, out: &Path) -> Result<Changed> {
    let old = Catalogue::open(dir)?;
    let quantizer = frozen_quantizer(dir)?;
    let Extended { catalogue, changed, new_norms } = extend(&old, quantizer.as_ref(), items, content)?;
    let mut norms = residual_norms(dir, &old.keys)?;
    norms.extend(new_norms);
    write(&catalogue, dir, out, &norms)?;
    Ok(Changed { out: out.into(), ..changed })
}

/// The quantiser that the catalogue in `dir` was made with.
///
/// # Errors
/// Input missing where there is no catalogue, bad data where it was packed without its quantiser.
pub fn frozen_quantizer(dir: &Path) -> Result<Box<dyn SidEncoder>> {
    let manifest = dir.join("manifest.json");
    if !manifest.is_file() {
        return Err(input_missing(&manifest).context(format!("{} is no catalogue", dir.display())));
    }
    if !dir.join("quantizer").is_dir() {
        let why =
            "was packed without its quantiser, which gives new items their IDs; use the catalogue it was packed from";
        return Err(bad_data(format!("{}: {why}", dir.display())));
    }
    Ok(load_quantizer(&dir.join("quantizer"))?)
}

/// A catalogue with new items.
pub struct Extended {
    /// The next version.
    pub catalogue: Catalogue,
    /// What changed; `out` is empty.
    pub changed: Changed,
    /// What the last level left over of each added item.
    pub new_norms: Vec<f32>,
}

/// `old` with `items` and their vectors `content` (items, dim), IDs by its frozen `quantizer`.
///
/// # Errors
/// Bad data when vectors are of another width, or a group of equal codes has no suffix left.
pub fn extend(old: &Catalogue, quantizer: &dyn SidEncoder, items: &Items, content: &Vectors) -> Result<Extended> {
    if content.dim != old.content.dim {
        let (found, expected) = (content.dim, old.content.dim);
        return Err(bad_data(format!("new items: vectors of {found} numbers, those of the catalogue have {expected}")));
    }
    let out = PathBuf::new();
    let mut changed = Changed { added: 0, restored: 0, known: 0, outdated: 0, removed: 0, live: 0, out };
    let mut back = BTreeSet::new();
    let mut fresh: Vec<usize> = Vec::new();
    for row in 0..items.keys.len() {
        let Some(item) = old.keys.find(items.keys.key(ItemIdx(row as u32))) else {
            fresh.push(row);
            continue;
        };
        if old.is_live(item) {
            changed.known += 1;
        } else {
            back.insert(item);
        }
        changed.outdated += usize::from(old.content.digest(item.0 as usize) != content.digest(row));
    }
    (changed.added, changed.restored) = (fresh.len(), back.len());
    let rows = Vectors::new(content.dim, fresh.iter().flat_map(|&row| content.row(row)).copied().collect())?;
    let encoded = quantizer.encode(&rows)?;

    let spec = old.sids.spec().clone();
    let levels = spec.levels();
    let mut next: BTreeMap<&[Code], u32> = BTreeMap::new();
    for item in 0..old.sids.items() {
        let codes = old.sids.codes(ItemIdx(item as u32));
        let suffix = codes.get(levels).map_or(0, |&suffix| u32::from(suffix) + 1);
        let next = next.entry(&codes[..levels]).or_default();
        *next = suffix.max(*next);
    }
    // The order of the file decides nothing: among equals the suffix goes by hash.
    let ties = items.keys.tie_hash();
    let mut order: Vec<usize> = (0..fresh.len()).collect();
    order.sort_by_key(|&at| ties[fresh[at]]);
    let mut new_codes = vec![Vec::new(); fresh.len()];
    let mut full = Vec::new();
    for at in order {
        let base = encoded.codes.row(at);
        new_codes[at] = base.to_vec();
        if let Some(size) = spec.suffix_size {
            let next = next.entry(base).or_default();
            if *next >= size {
                full.push(format!("`{}` (codes {base:?})", items.keys.key(ItemIdx(fresh[at] as u32))));
                continue;
            }
            new_codes[at].push(*next as Code);
            *next += 1;
        }
    }
    if !full.is_empty() {
        return Err(bad_data(format!(
            "{} of {} new items find all {} suffixes of their codes taken, such as {}; build the catalogue anew",
            full.len(),
            fresh.len(),
            spec.suffix_size.unwrap_or(0),
            full[..full.len().min(5)].join(", ")
        )));
    }

    let new_keys = fresh.iter().map(|&row| items.keys.key(ItemIdx(row as u32)));
    let integer = old.keys.integer && (fresh.is_empty() || items.keys.integer);
    let mut keys = ItemKeys::new(old.keys.iter().chain(new_keys).map(str::to_string).collect())?;
    keys.integer = integer;
    let flat = old.sids.flat().iter().copied().chain(new_codes.iter().flatten().copied()).collect();
    let sids = SidTable::new(spec, flat)?;
    let mut lineage = old.lineage.clone();
    if !fresh.is_empty() {
        lineage.push(old.sids.digest());
    }
    let removed: Vec<ItemIdx> = old.removed.iter().copied().filter(|item| !back.contains(item)).collect();
    let mut delta = TrieDelta::new(&old.trie);
    let first = old.sids.items() as u32;
    for item in back.iter().copied().chain((first..sids.items() as u32).map(ItemIdx)) {
        delta.add(item, sids.codes(item))?;
    }
    let mut cards = old.cards.clone();
    cards.extend(fresh.iter().map(|&row| card(items, row)));
    if !integer && old.keys.integer {
        for (row, card) in cards.iter_mut().enumerate() {
            card.item_id = keys.json(ItemIdx(row as u32));
        }
    }
    let data = old.content.data.iter().chain(&rows.data).copied().collect();
    let catalogue = Catalogue {
        keys,
        sids,
        trie: delta.fold(),
        lineage,
        removed,
        cards,
        content: Vectors::new(old.content.dim, data)?,
        origin: old.origin.clone(),
    };
    changed.live = catalogue.trie.items_total();
    Ok(Extended { catalogue, changed, new_norms: encoded.residual_norms })
}

/// Takes the items called `ids` out of the catalogue in `dir`; the result is written to `out`.
///
/// # Errors
/// Bad data naming ids that the catalogue does not have; cannot create `out`.
pub fn remove(dir: &Path, ids: &ItemKeys, out: &Path) -> Result<Changed> {
    let old = Catalogue::open(dir)?;
    let (catalogue, changed) = retire(&old, ids)?;
    let norms = residual_norms(dir, &old.keys)?;
    write(&catalogue, dir, out, &norms)?;
    Ok(Changed { out: out.into(), ..changed })
}

/// `old` in which the items called `ids` are no longer found.
///
/// # Errors
/// Bad data naming ids that the catalogue does not have.
pub fn retire(old: &Catalogue, ids: &ItemKeys) -> Result<(Catalogue, Changed)> {
    let unknown: Vec<&str> = ids.iter().filter(|id| old.keys.find(id).is_none()).collect();
    if !unknown.is_empty() {
        let shown = unknown[..unknown.len().min(5)].join(", ");
        return Err(bad_data(format!("{} items are not in the catalogue, such as {shown}", unknown.len())));
    }
    let mut removed: BTreeSet<ItemIdx> = old.removed.iter().copied().collect();
    let before = removed.len();
    removed.extend(ids.iter().filter_map(|id| old.keys.find(id)));
    let gone = removed.len() - before;
    let removed: Vec<ItemIdx> = removed.into_iter().collect();
    let trie = without(Trie::build(&old.sids)?, &removed);
    let changed = Changed {
        added: 0,
        restored: 0,
        known: ids.len() - gone,
        outdated: 0,
        removed: gone,
        live: trie.items_total(),
        out: PathBuf::new(),
    };
    Ok((Catalogue { trie, removed, ..old.clone() }, changed))
}

/// What the last level left over of each item, in catalogue order.
fn residual_norms(dir: &Path, keys: &ItemKeys) -> Result<Vec<f32>> {
    let path = dir.join("sids.parquet");
    let table = read_sids(&path)?;
    let of = |key: &str| table.keys.find(key).map(|row| table.residual_norms[row.0 as usize]);
    keys.iter()
        .map(|key| of(key).ok_or_else(|| bad_data(format!("{}: item `{key}` is missing", path.display()))))
        .collect()
}

/// Writes a version with the quantiser and encoders of `dir`.
fn write(new: &Catalogue, dir: &Path, out: &Path, norms: &[f32]) -> Result<()> {
    let quantizer = load_quantizer(&dir.join("quantizer"))?;
    let from = dir.join("encoder");
    new.write(out, norms, quantizer.as_ref(), &|to| {
        // Further sources are kept in folders of their own.
        for path in files_below(&from).with_context(|| from.display().to_string())? {
            let copy = to.join(path.strip_prefix(&from)?);
            fs::create_dir_all(copy.parent().unwrap_or(to)).map_err(|e| cannot_create(to, e))?;
            fs::copy(&path, &copy).map_err(|e| cannot_create(to, e))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_on() {
        let next = |name: &str| next_version(Path::new(name)).to_string_lossy().into_owned();
        assert_eq!(next("a/shop"), "a/shop-v2");
        assert_eq!(next("a/shop-v2/"), "a/shop-v3");
        assert_eq!(next("shop-v"), "shop-v-v2");
        assert_eq!(next("shop-van"), "shop-van-v2");
    }
}
