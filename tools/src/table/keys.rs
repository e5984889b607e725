//! External item ids, kept exactly as they came in.

use crate::error::bad_data;
use rayon::prelude::*;
use rqvae::ItemIdx;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// What is looked up is a digest already.
#[derive(Debug, Clone, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

/// External ids of a catalogue, `ItemIdx(i)` being the i-th; they are names and nothing else.
#[derive(Debug, Clone, Default)]
pub struct ItemKeys {
    keys: Vec<String>,
    hashes: Vec<u64>,
    by_hash: HashMap<u64, ItemIdx, BuildHasherDefault<Hashed>>,
    /// Whether every id is a whole number of 64 bits, so that tables may store it as one.
    pub integer: bool,
}

impl ItemKeys {
    /// Ids in catalogue order; `integer` is found from their look (`7` yes, `007` no).
    ///
    /// # Errors
    /// Bad data when an id occurs twice.
    pub fn new(keys: Vec<String>) -> anyhow::Result<Self> {
        if u32::try_from(keys.len()).is_err() {
            return Err(bad_data(format!("{} items; at most {} are supported", keys.len(), u32::MAX)));
        }
        let hashes: Vec<u64> = keys.par_iter().map(|key| tie_hash(key)).collect();
        let mut by_hash = HashMap::with_capacity_and_hasher(keys.len(), BuildHasherDefault::default());
        for (row, &hash) in hashes.iter().enumerate() {
            if let Some(ItemIdx(other)) = by_hash.insert(hash, ItemIdx(row as u32)) {
                return Err(bad_data(format!(
                    "item ids `{}` and `{}` (rows {other} and {row}) are the same",
                    keys[other as usize], keys[row]
                )));
            }
        }
        let integer = !keys.is_empty() && keys.iter().all(|key| is_integer(key));
        Ok(Self { keys, hashes, by_hash, integer })
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The id of an item.
    pub fn key(&self, item: ItemIdx) -> &str {
        &self.keys[item.0 as usize]
    }

    /// The item of that id.
    pub fn find(&self, key: &str) -> Option<ItemIdx> {
        let item = *self.by_hash.get(&tie_hash(key))?;
        (self.key(item) == key).then_some(item)
    }

    /// All ids in catalogue order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// One hash per item, (items,): the last tie-break everywhere.
    pub fn tie_hash(&self) -> &[u64] {
        &self.hashes
    }

    /// The id as JSON: a number where all ids are whole numbers, a text otherwise.
    pub fn json(&self, item: ItemIdx) -> serde_json::Value {
        let key = self.key(item);
        match key.parse::<i64>() {
            Ok(number) if self.integer => number.into(),
            _ => key.into(),
        }
    }
}

/// The first 8 bytes of the BLAKE3 digest of an id.
pub fn tie_hash(key: &str) -> u64 {
    let digest = blake3::hash(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Whether an id reads as a 64-bit number and is written the one way such a number is written.
pub fn is_integer(key: &str) -> bool {
    key.parse::<i64>().is_ok_and(|n| n.to_string() == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> anyhow::Result<ItemKeys> {
        ItemKeys::new(names.iter().map(|&s| s.to_owned()).collect())
    }

    #[test]
    fn ids_are_found_exactly() {
        let keys = keys(&["7", "007", " 7"]).unwrap();
        assert_eq!(keys.find("007"), Some(ItemIdx(1)));
        assert_eq!(keys.find("0007"), None);
        assert_eq!(keys.key(ItemIdx(2)), " 7");
        assert!(!keys.integer);
        assert_eq!(keys.tie_hash().len(), 3);
        assert_ne!(keys.tie_hash()[0], keys.tie_hash()[1]);
    }

    #[test]
    fn whole_numbers_are_recognised() {
        assert!(keys(&["1", "-2", "9007199254740993"]).unwrap().integer);
        assert!(!keys(&["1", "9223372036854775808"]).unwrap().integer);
        assert_eq!(keys(&["1"]).unwrap().json(ItemIdx(0)), 1);
        assert_eq!(keys(&["01"]).unwrap().json(ItemIdx(0)), "01");
    }

    #[test]
    fn an_id_twice_is_refused() {
        assert!(keys(&["a", "b", "a"]).unwrap_err().to_string().contains("`a`"));
    }
}
