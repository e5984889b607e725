//! The arrays on disk, checked on load so that search may index without looking.
//!
//! Entries, with n_l nodes of l codes: `trie.codes.<l>` u8 or u16 (n_{l+1},), `trie.starts.<l>` u32 (n_{l+1} + 1,),
//! `trie.leaf_items` u32 (items,); metadata `spec`. The root is not stored.

use super::Trie;
use crate::Result;
use rqvae::{Artefact, ArtefactWriter, Code, Error, ItemIdx, SidSpec};
use safetensors::tensor::{Dtype, SafeTensors};
use std::path::Path;

/// Levels with at most this many codes take one byte a node.
const BYTE: u32 = 256;

/// One array of a file: name, type, length, little-endian bytes.
pub type Entry = (String, Dtype, usize, Vec<u8>);

enum Array {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Trie {
    fn arrays(&self) -> Vec<(String, Array)> {
        let mut arrays = Vec::with_capacity(2 * self.levels() + 1);
        for (level, codes) in self.codes.iter().enumerate() {
            let codes = if self.spec.codes_at(level) <= BYTE {
                Array::U8(codes.iter().map(|code| *code as u8).collect())
            } else {
                Array::U16(codes.clone())
            };
            arrays.push((codes_name(level), codes));
            arrays.push((
                starts_name(level),
                Array::U32(self.starts[level + 1].clone()),
            ));
        }
        let items = self.leaf_items.iter().map(|item| item.0).collect();
        arrays.push((ITEMS.to_string(), Array::U32(items)));
        arrays
    }

    /// The `trie.*` arrays, for a container that carries the spec itself.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(name, array)| match array {
            Array::U8(array) => (name, Dtype::U8, array.len(), array),
            Array::U16(array) => {
                let bytes = array.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, Dtype::U16, array.len(), bytes)
            }
            Array::U32(array) => {
                let bytes = array.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, Dtype::U32, array.len(), bytes)
            }
        };
        self.arrays().into_iter().map(entry).collect()
    }

    /// Reads [`Trie::entries`] back; `path` names the file in errors.
    ///
    /// # Errors
    /// [`rqvae::Error::Corrupt`] naming the array, when the arrays are not those of a trie of `spec`.
    pub fn from_file(file: &SafeTensors, spec: &SidSpec, path: &Path) -> Result<Self> {
        let bytes = |name: &str, dtype: Dtype| {
            let view = file.tensor(name);
            let view = view.map_err(|_| corrupt(path, format!("array `{name}` is missing")))?;
            if view.dtype() != dtype || view.shape().len() != 1 {
                let found = format!("{:?} of shape {:?}", view.dtype(), view.shape());
                let reason =
                    format!("array `{name}`: expected {dtype:?} of one axis, found {found}");
                return Err(corrupt(path, reason));
            }
            Ok(view.data())
        };
        let codes = |name: &str, byte: bool| {
            if byte {
                return Ok(bytes(name, Dtype::U8)?
                    .iter()
                    .map(|code| Code::from(*code))
                    .collect());
            }
            let pairs = bytes(name, Dtype::U16)?.as_chunks().0;
            Ok(pairs
                .iter()
                .map(|pair| Code::from_le_bytes(*pair))
                .collect())
        };
        let numbers = |name: &str| {
            let words = bytes(name, Dtype::U32)?.as_chunks().0;
            Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
        };
        Self::read(path, spec.clone(), codes, numbers)
    }

    /// Adds the `trie.*` arrays and the `spec` to `writer`.
    ///
    /// # Errors
    /// The writer refuses an array.
    pub fn save_into(&self, writer: &mut ArtefactWriter) -> Result<()> {
        let spec = serde_json::json!(self.spec).to_string();
        writer.metadata("spec", &spec);
        for (name, array) in self.arrays() {
            match array {
                Array::U8(array) => writer.u8s(&name, &[array.len()], &array)?,
                Array::U16(array) => writer.u16s(&name, &[array.len()], &array)?,
                Array::U32(array) => writer.u32s(&name, &[array.len()], &array)?,
            }
        }
        Ok(())
    }

    /// Reads what [`Trie::save_into`] wrote.
    ///
    /// # Errors
    /// As [`Trie::from_file`].
    pub fn load(artefact: &Artefact) -> Result<Self> {
        let path = artefact.path();
        let spec = serde_json::from_str(artefact.metadata("spec")?)
            .map_err(|error| corrupt(path, format!("metadata `spec`: {error}")))?;
        let codes = |name: &str, byte: bool| {
            if byte {
                return Ok(artefact.u8s(name)?.1.into_iter().map(Code::from).collect());
            }
            Ok(artefact.u16s(name)?.1)
        };
        Self::read(path, spec, codes, |name| Ok(artefact.u32s(name)?.1))
    }

    /// Fetches all arrays and checks that they are a trie.
    fn read(
        path: &Path,
        spec: SidSpec,
        fetch_codes: impl Fn(&str, bool) -> Result<Vec<Code>>,
        fetch_numbers: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Self> {
        spec.validate()?;
        let mut codes = Vec::with_capacity(spec.len());
        let mut starts = vec![Vec::new()];
        for level in 0..spec.len() {
            codes.push(fetch_codes(
                &codes_name(level),
                spec.codes_at(level) <= BYTE,
            )?);
            starts.push(fetch_numbers(&starts_name(level))?);
        }
        let leaf_items = fetch_numbers(ITEMS)?;
        starts[0] = vec![0, codes[0].len() as u32];
        for (level, cuts) in starts.iter().enumerate() {
            let nodes = if level == 0 {
                1
            } else {
                codes[level - 1].len()
            };
            let below = codes.get(level).map_or(leaf_items.len(), Vec::len);
            // Only the root of an empty catalogue may be without children.
            let filled = level == 0 || cuts.windows(2).all(|ends| ends[0] < ends[1]);
            let ends = (cuts.first().copied(), cuts.last().map(|end| *end as usize));
            if cuts.len() != nodes + 1 || ends != (Some(0), Some(below)) || !filled {
                let name = if level == 0 {
                    codes_name(0)
                } else {
                    starts_name(level - 1)
                };
                let reason =
                    format!("array `{name}` does not cut {below} children into {nodes} nodes");
                return Err(corrupt(path, reason));
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
                let reason =
                    format!("array `{name}`: siblings are not ascending codes below {size}");
                return Err(corrupt(path, reason));
            }
        }
        let mut seen = vec![false; leaf_items.len()];
        for item in &leaf_items {
            if seen.get(*item as usize) != Some(&false) {
                let reason = format!("array `{ITEMS}`: item {item} is out of range or there twice");
                return Err(corrupt(path, reason));
            }
            seen[*item as usize] = true;
        }
        Ok(Self::new(
            spec,
            codes,
            starts,
            leaf_items.into_iter().map(ItemIdx).collect(),
        ))
    }
}

const ITEMS: &str = "trie.leaf_items";

fn codes_name(level: usize) -> String {
    format!("trie.codes.{level}")
}

fn starts_name(level: usize) -> String {
    format!("trie.starts.{level}")
}

fn corrupt(path: &Path, reason: String) -> crate::Error {
    Error::corrupt(path, reason).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trie::build::tests::table;
    use proptest::prelude::*;
    use rqvae::SidTable;

    fn bytes(trie: &Trie) -> Vec<u8> {
        let mut writer = ArtefactWriter::new("trie", 1);
        trie.save_into(&mut writer).unwrap();
        writer.to_bytes()
    }

    fn load(bytes: Vec<u8>) -> Result<Trie> {
        Trie::load(&Artefact::from_bytes(Path::new("x"), bytes, "trie", 1)?)
    }

    #[test]
    fn entries_are_what_the_artefact_holds() {
        let spec = SidSpec {
            codebook_sizes: vec![300, 4],
            suffix_size: None,
        };
        let trie = Trie::build(&SidTable::new(spec, vec![299, 3, 0, 1]).unwrap()).unwrap();
        let whole = bytes(&trie);
        let file = SafeTensors::deserialize(&whole).unwrap();
        for (name, dtype, len, bytes) in trie.entries() {
            let view = file.tensor(&name).unwrap();
            assert_eq!(
                (view.dtype(), view.shape(), view.data()),
                (dtype, &[len][..], &bytes[..])
            );
        }
        let other = SidSpec {
            codebook_sizes: vec![300, 3],
            suffix_size: None,
        };
        let error = Trie::from_file(&file, &other, Path::new("x"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "x: array `trie.codes.1`: siblings are not ascending codes below 3"
        );
    }

    #[test]
    fn wide_levels_take_two_bytes() {
        let spec = SidSpec {
            codebook_sizes: vec![300, 256],
            suffix_size: None,
        };
        let trie =
            Trie::build(&SidTable::new(spec, vec![299, 255, 0, 1, 299, 254]).unwrap()).unwrap();
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
            let file = SafeTensors::deserialize(&whole).unwrap();
            prop_assert_eq!(&Trie::from_file(&file, trie.spec(), Path::new("x")).unwrap(), &trie);
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
