//! The arrays on disk, checked on load so that search may index without looking.
//!
//! Entries, n being the nodes of l + 1 codes: `trie.codes.<l>` u8 or u16 (n,), `trie.starts.<l>` u32 (n + 1,),
//! `trie.leaf_items` u32 (items,); metadata `spec`. The root is not stored.

use super::Trie;
use crate::Result;
use rqvae::{Artefact, ArtefactWriter, Code, Error, ItemIdx, SidSpec};

/// Levels with at most this many codes take one byte a node.
const BYTE: u32 = 256;

const ITEMS: &str = "trie.leaf_items";

impl Trie {
    /// Adds the `trie.*` arrays and the `spec` to `writer`.
    ///
    /// # Errors
    /// The writer refuses an array.
    pub fn save_into(&self, writer: &mut ArtefactWriter) -> Result<()> {
        let spec = serde_json::json!(self.spec).to_string();
        writer.metadata("spec", &spec);
        for (level, codes) in self.codes.iter().enumerate() {
            if self.spec.codes_at(level) <= BYTE {
                let bytes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                writer.u8s(&codes_name(level), &[codes.len()], &bytes)?;
            } else {
                writer.u16s(&codes_name(level), &[codes.len()], codes)?;
            }
            let starts = &self.starts[level + 1];
            writer.u32s(&starts_name(level), &[starts.len()], starts)?;
        }
        let items: Vec<u32> = self.leaf_items.iter().map(|item| item.0).collect();
        writer.u32s(ITEMS, &[items.len()], &items)?;
        Ok(())
    }

    /// Reads what [`Trie::save_into`] wrote.
    ///
    /// # Errors
    /// [`rqvae::Error::Corrupt`] naming the array, when the arrays are not those of a trie.
    pub fn load(artefact: &Artefact) -> Result<Self> {
        let corrupt = |reason: String| Error::corrupt(artefact.path(), reason);
        let spec: SidSpec = serde_json::from_str(artefact.metadata("spec")?)
            .map_err(|error| corrupt(format!("metadata `spec`: {error}")))?;
        spec.validate()?;
        let mut codes = Vec::with_capacity(spec.len());
        let mut starts = vec![Vec::new()];
        for level in 0..spec.len() {
            let name = codes_name(level);
            codes.push(if spec.codes_at(level) <= BYTE {
                artefact.u8s(&name)?.1.into_iter().map(Code::from).collect()
            } else {
                artefact.u16s(&name)?.1
            });
            starts.push(artefact.u32s(&starts_name(level))?.1);
        }
        let leaf_items = artefact.u32s(ITEMS)?.1;
        starts[0] = vec![0, codes[0].len() as u32];
        for (level, cuts) in starts.iter().enumerate() {
            let nodes = if level == 0 { 1 } else { codes[level - 1].len() };
            let below = codes.get(level).map_or(leaf_items.len(), Vec::len);
            // Only the root of an empty catalogue may be without children.
            let filled = level == 0 || cuts.windows(2).all(|ends| ends[0] < ends[1]);
            let ends = (cuts.first().copied(), cuts.last().map(|end| *end as usize));
            if cuts.len() != nodes + 1 || ends != (Some(0), Some(below)) || !filled {
                let name = if level == 0 { codes_name(0) } else { starts_name(level - 1) };
                let reason = format!("array `{name}` does not cut {below} children into {nodes} nodes");
                return Err(corrupt(reason).into());
            }
        }
        for (level, row) in codes.iter().enumerate() {
            let size = spec.codes_at(level);
            let ascend = |ends: &[u32]| {
                let siblings = &row[ends[0] as usize..ends[1] as usize];
                siblings.windows(2).all(|pair| pair[0] < pair[1])
            };
            let small = row.iter().all(|code| u32::from(*code) < size);
            if !small || !starts[level].windows(2).all(ascend) {
                let name = codes_name(level);
                let reason = format!("array `{name}`: siblings are not ascending codes below {size}");
                return Err(corrupt(reason).into());
            }
        }
        let mut seen = vec![false; leaf_items.len()];
        for item in &leaf_items {
            if seen.get(*item as usize) != Some(&false) {
                let reason = format!("array `{ITEMS}`: item {item} is out of range or there twice");
                return Err(corrupt(reason).into());
            }
            seen[*item as usize] = true;
        }
        Ok(Self::new(spec, codes, starts, leaf_items.into_iter().map(ItemIdx).collect()))
    }
}

fn codes_name(level: usize) -> String {
    format!("trie.codes.{level}")
}

fn starts_name(level: usize) -> String {
    format!("trie.starts.{level}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build::tests::table;
    use proptest::prelude::*;
    use rqvae::SidTable;
    use std::path::Path;

    fn bytes(trie: &Trie) -> Vec<u8> {
        let mut writer = ArtefactWriter::new("trie", 1);
        trie.save_into(&mut writer).unwrap();
        writer.to_bytes()
    }

    fn load(bytes: Vec<u8>) -> Result<Trie> {
        Trie::load(&Artefact::from_bytes(Path::new("x"), bytes, "trie", 1)?)
    }

    #[test]
    fn wide_levels_take_two_bytes() {
        let spec = SidSpec { codebook_sizes: vec![300, 256], suffix_size: None };
        let trie = Trie::build(&SidTable::new(spec, vec![299, 255, 0, 1, 299, 254]).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.safetensors");
        rqvae::write_atomic(&path, &bytes(&trie)).unwrap();
        let artefact = Artefact::open(&path, "trie", 1).unwrap();
        assert_eq!(artefact.u16s("trie.codes.0").unwrap().1, [0, 299]);
        assert_eq!(artefact.u8s("trie.codes.1").unwrap().1, [1, 254, 255]);
        assert_eq!(Trie::load(&artefact).unwrap(), trie);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Invariant 7: the trie survives a round trip; a flipped byte or a missing tail is an error.
        #[test]
        fn round_trip_and_damage(table in table(), at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let trie = Trie::build(&table).unwrap();
            let whole = bytes(&trie);
            prop_assert_eq!(&load(whole.clone()).unwrap(), &trie);
            let at = at.index(whole.len());
            prop_assert!(load(whole[..at].to_vec()).is_err());
            let mut flipped = whole.clone();
            flipped[at] ^= flip;
            // Blanks that pad the header carry nothing.
            prop_assert!(whole[at] == b' ' || load(flipped).is_err());
        }

        /// Wrong arrays under a right digest are an error too, or another trie; never a panic later on.
        #[test]
        fn wrong_arrays_are_refused(
            table in table(), array in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value in 0u32..9,
        ) {
            let trie = Trie::build(&table).unwrap();
            let mut broken = trie.clone();
            let levels = trie.levels();
            let change = |numbers: &mut Vec<u32>| match numbers.len() {
                0 => numbers.push(value),
                len => numbers[at.index(len)] = value,
            };
            match array.index(2 * levels + 1) {
                0 => {
                    let mut items = trie.leaf_items.iter().map(|item| item.0).collect();
                    change(&mut items);
                    broken.leaf_items = items.into_iter().map(ItemIdx).collect();
                }
                which if which <= levels => {
                    let mut codes = trie.codes[which - 1].iter().map(|code| u32::from(*code)).collect();
                    change(&mut codes);
                    broken.codes[which - 1] = codes.into_iter().map(|code| code as Code).collect();
                }
                which => change(&mut broken.starts[which - levels]),
            }
            if let Ok(loaded) = load(bytes(&broken)) {
                // Accepted means sound: every item is found again under the path that leads to it.
                let mut items = 0;
                for leaf in 0..loaded.nodes(levels) as u32 {
                    items += loaded.items(leaf).len();
                    for item in loaded.items(leaf) {
                        prop_assert_eq!(loaded.leaf(*item), Some(leaf));
                    }
                }
                prop_assert_eq!(items, loaded.items_total());
            }
        }
    }
}
