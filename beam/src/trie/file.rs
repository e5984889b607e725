//! The arrays as safetensors entries `trie.*`, checked on load: after that nothing trusts a count from a file.

use super::Trie;
use crate::{Error, Result};
use rqvae::{Code, ItemIdx, SidSpec};
use safetensors::tensor::{Dtype, SafeTensors};
use std::path::Path;

/// An array of a file: name, type, length, little-endian bytes.
pub type Entry = (String, Dtype, usize, Vec<u8>);

impl Trie {
    /// The arrays to write: `trie.codes.<l>` u16, `trie.starts.<l>` u32, `trie.leaf_starts` u32, `trie.leaf_items` u32.
    pub fn entries(&self) -> Vec<Entry> {
        let u32s = |name: String, values: &[u32]| {
            (name, Dtype::U32, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
        let mut entries = Vec::new();
        for (level, arrays) in self.levels.iter().enumerate() {
            let bytes = arrays.codes.iter().flat_map(|c| c.to_le_bytes()).collect();
            entries.push((format!("trie.codes.{level}"), Dtype::U16, arrays.codes.len(), bytes));
            entries.push(u32s(format!("trie.starts.{level}"), &arrays.starts));
        }
        entries.push(u32s("trie.leaf_starts".into(), &self.leaf_starts));
        let items: Vec<u32> = self.leaf_items.iter().map(|i| i.0).collect();
        entries.push(u32s("trie.leaf_items".into(), &items));
        entries
    }

    /// Reads [`Trie::entries`] back; `path` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the array that is missing or is no part of a valid trie of `spec`.
    pub fn from_file(file: &SafeTensors, spec: &SidSpec, path: &Path) -> Result<Self> {
        spec.validate()?;
        let corrupt = |reason: String| Error::Corrupt { path: path.to_path_buf(), reason };
        let bytes = |name: &str, dtype: Dtype| {
            let view = file.tensor(name).map_err(|_| corrupt(format!("array `{name}` is missing")))?;
            if view.dtype() != dtype || view.shape().len() != 1 {
                return Err(corrupt(format!(
                    "array `{name}`: expected one axis of {dtype:?}, found {:?} of {:?}",
                    view.shape(),
                    view.dtype()
                )));
            }
            Ok(view.data())
        };
        let u32s = |name: &str| -> Result<Vec<u32>> {
            let words = bytes(name, Dtype::U32)?.as_chunks::<4>().0;
            Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
        };
        let (mut codes, mut starts) = (Vec::new(), Vec::new());
        let mut parents = 1;
        for level in 0..spec.len() {
            let name = format!("trie.codes.{level}");
            let halves = bytes(&name, Dtype::U16)?.as_chunks::<2>().0;
            let level_codes: Vec<Code> = halves.iter().map(|half| u16::from_le_bytes(*half)).collect();
            let level_starts = u32s(&format!("trie.starts.{level}"))?;
            check_starts(&level_starts, parents, level_codes.len(), level == 0)
                .map_err(|e| corrupt(format!("array `trie.starts.{level}`: {e}")))?;
            for range in level_starts.windows(2) {
                let children = &level_codes[range[0] as usize..range[1] as usize];
                let ascending = children.windows(2).all(|pair| pair[0] < pair[1]);
                if !ascending || children.last().is_some_and(|code| u32::from(*code) >= spec.codes_at(level)) {
                    return Err(corrupt(format!("array `{name}`: children are not ascending codes of their level")));
                }
            }
            parents = level_codes.len();
            codes.push(level_codes);
            starts.push(level_starts);
        }
        let (leaf_starts, leaf_items) = (u32s("trie.leaf_starts")?, u32s("trie.leaf_items")?);
        check_starts(&leaf_starts, parents, leaf_items.len(), false)
            .map_err(|e| corrupt(format!("array `trie.leaf_starts`: {e}")))?;
        let mut seen = vec![false; leaf_items.len()];
        for item in &leaf_items {
            if seen.get(*item as usize) != Some(&false) {
                return Err(corrupt("array `trie.leaf_items`: expected every item exactly once".into()));
            }
            seen[*item as usize] = true;
        }
        let items = leaf_items.into_iter().map(ItemIdx).collect();
        Ok(Self::assemble(spec.clone(), codes, starts, leaf_starts, items))
    }
}

/// `parents + 1` ascending offsets from 0 to `children`; nobody but the root may be childless.
fn check_starts(starts: &[u32], parents: usize, children: usize, root: bool) -> std::result::Result<(), String> {
    if starts.len() != parents + 1 {
        return Err(format!("expected {} offsets, found {}", parents + 1, starts.len()));
    }
    if starts[0] != 0 || starts[parents] as usize != children {
        return Err(format!("expected offsets from 0 to {children}"));
    }
    let grows = starts.windows(2).all(|pair| if root { pair[0] <= pair[1] } else { pair[0] < pair[1] });
    if grows { Ok(()) } else { Err("offsets do not ascend".into()) }
}
