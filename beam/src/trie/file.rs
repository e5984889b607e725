//! The arrays on disk, checked on load so that search may index without looking.
//!
//! Entries, n being the nodes of l + 1 codes: `trie.codes.<l>` u8 or u16 (n,), `trie.starts.<l>` u32 (n + 1,),
//! `trie.leaf_items` u32 (items,); metadata `spec`. The root is not stored.

use super::Trie;
use crate::{Codes, Result};
use rqvae::{Artefact, ArtefactWriter, Code, Error, ItemIdx, SidSpec};

/// Levels with at most this many codes take one byte a node.
const BYTE: u32 = 256;

const ITEMS: &str = "trie.leaf_items";

impl Trie {
    /// Adds the `trie.*` arrays and the `spec` to `writer`.
    ///
    /// # Errors
    /// Items are not numbered from 0 without gaps, with one ID each; see [`Trie::write`] for those that are not.
    pub fn save_into(&self, writer: &mut ArtefactWriter) -> Result<()> {
        if self.has_aliases() || self.bound() != self.items_total() {
            let got = format!("{} places up to item {}", self.items_total(), self.bound());
            return Err(crate::Error::shape("items of a catalogue index", "one ID each and no gaps", got));
        }
        let spec = serde_json::json!(self.spec).to_string();
        writer.metadata("spec", &spec);
        for level in 0..self.levels() {
            match self.codes(level) {
                Codes::Narrow(codes) => writer.u8s(&codes_name(level), &[codes.len()], codes)?,
                Codes::Wide(codes) => writer.u16s(&codes_name(level), &[codes.len()], codes)?,
            }
            let cuts = self.layout.cuts[level + 1];
            let starts: Vec<u32> = (0..=cuts.nodes()).map(|node| cuts.get(self.words(), node)).collect();
            writer.u32s(&starts_name(level), &[starts.len()], &starts)?;
        }
        let items: Vec<u32> = self.in_order().iter().map(|item| item.0).collect();
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
        Ok(Self::pack(spec, codes, starts, leaf_items.into_iter().map(ItemIdx).collect()))
    }

    /// Codes of all nodes of level `level + 1`.
    pub(super) fn codes(&self, level: usize) -> Codes<'_> {
        self.layout.codes(self.words(), level, 0..self.nodes(level + 1) as u32)
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

    /// Name, whether bytes, and numbers of every array.
    fn arrays(trie: &Trie) -> Vec<(String, bool, Vec<u32>)> {
        let levels = (0..trie.levels()).flat_map(|level| {
            let codes = trie.codes(level);
            let narrow = matches!(codes, Codes::Narrow(_));
            let cuts = trie.layout.cuts[level + 1];
            let starts = (0..=cuts.nodes()).map(|node| cuts.get(trie.words(), node)).collect();
            let codes = codes.iter().map(u32::from).collect();
            [(codes_name(level), narrow, codes), (starts_name(level), false, starts)]
        });
        let items = trie.in_order().iter().map(|item| item.0).collect();
        levels.chain([(ITEMS.to_string(), false, items)]).collect()
    }

    fn from_arrays(trie: &Trie, arrays: &[(String, bool, Vec<u32>)]) -> Vec<u8> {
        let mut writer = ArtefactWriter::new("trie", 1);
        writer.metadata("spec", &serde_json::json!(trie.spec).to_string());
        for (name, narrow, numbers) in arrays {
            if *narrow {
                let bytes: Vec<u8> = numbers.iter().map(|number| *number as u8).collect();
                writer.u8s(name, &[bytes.len()], &bytes).unwrap();
            } else {
                writer.u32s(name, &[numbers.len()], numbers).unwrap();
            }
        }
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
            let levels = trie.levels();
            let mut arrays = arrays(&trie);
            let array = array.index(arrays.len());
            let numbers = &mut arrays[array].2;
            match numbers.len() {
                0 => numbers.push(value),
                len => numbers[at.index(len)] = value,
            }
            let broken = from_arrays(&trie, &arrays);
            if let Ok(loaded) = load(broken) {
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
