//! Codes of a whole catalogue, in memory: as a quantiser gives them, and as IDs after collisions are resolved.

use super::sid::{Code, ItemIdx, SemanticId, SidSpec};
use crate::{Error, Result};

/// Codes of many items without a suffix: (items, levels), row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeMatrix {
    levels: usize,
    data: Vec<Code>,
}

impl CodeMatrix {
    /// A matrix of `data`: (items, levels).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] when `data` is no multiple of `levels`.
    pub fn new(levels: usize, data: Vec<Code>) -> Result<Self> {
        if levels == 0 || !data.len().is_multiple_of(levels) {
            return Err(Error::shape("code matrix", format!("a multiple of {levels} codes"), data.len()));
        }
        Ok(Self { levels, data })
    }

    /// Number of items.
    pub fn rows(&self) -> usize {
        self.data.len() / self.levels
    }

    /// Codes per item.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Codes of item `i`: (levels,).
    pub fn row(&self, i: usize) -> &[Code] {
        &self.data[i * self.levels..][..self.levels]
    }

    /// All codes: (items, levels).
    pub fn flat(&self) -> &[Code] {
        &self.data
    }
}

/// The ID of every item of a catalogue; row i belongs to `ItemIdx(i)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidTable {
    spec: SidSpec,
    codes: Vec<Code>,
}

impl SidTable {
    /// A table of `codes`: (items, `spec.len()`).
    ///
    /// # Errors
    /// The spec is invalid, `codes` has no whole number of rows, or a code is not below the size of its level.
    pub fn new(spec: SidSpec, codes: Vec<Code>) -> Result<Self> {
        spec.validate()?;
        let len = spec.len();
        if !codes.len().is_multiple_of(len) {
            return Err(Error::shape("SID table", format!("a multiple of {len} codes"), codes.len()));
        }
        if codes.len() / len > u32::MAX as usize {
            return Err(Error::shape("SID table", format!("at most {} items", u32::MAX), codes.len() / len));
        }
        for (i, code) in codes.iter().enumerate() {
            let size = spec.codes_at(i % len);
            if u32::from(*code) >= size {
                let what = format!("code of item {} at level {}", i / len, i % len);
                return Err(Error::shape(&what, format!("a code below {size}"), code));
            }
        }
        Ok(Self { spec, codes })
    }

    /// Shape of the IDs.
    pub fn spec(&self) -> &SidSpec {
        &self.spec
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.codes.len() / self.spec.len()
    }

    /// Codes of `item`, suffix included: (`spec.len()`,).
    pub fn codes(&self, item: ItemIdx) -> &[Code] {
        let len = self.spec.len();
        &self.codes[item.0 as usize * len..][..len]
    }

    /// ID of `item`.
    pub fn sid(&self, item: ItemIdx) -> SemanticId {
        SemanticId::truncated(self.codes(item))
    }

    /// All codes: (items, `spec.len()`).
    pub fn flat(&self) -> &[Code] {
        &self.codes
    }

    /// BLAKE3 of spec and codes, in hex: what a model trained on this table remembers.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut number = |n: u32| {
            hasher.update(&n.to_le_bytes());
        };
        number(self.spec.levels() as u32);
        self.spec.codebook_sizes.iter().for_each(|&size| number(size));
        number(self.spec.suffix_size.unwrap_or(0));
        let bytes: Vec<u8> = self.codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        hasher.update(&bytes);
        hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(sizes: &[u32], suffix_size: Option<u32>) -> SidSpec {
        SidSpec { codebook_sizes: sizes.to_vec(), suffix_size }
    }

    #[test]
    fn rows_and_ids() {
        let table = SidTable::new(spec(&[3, 4], Some(2)), vec![2, 3, 1, 0, 0, 0]).unwrap();
        assert_eq!(table.items(), 2);
        assert_eq!(table.codes(ItemIdx(0)), [2, 3, 1]);
        assert_eq!(table.sid(ItemIdx(0)).to_string(), "2,3,1");
        let matrix = CodeMatrix::new(2, vec![1, 2, 3, 4]).unwrap();
        assert_eq!((matrix.rows(), matrix.row(1)), (2, &[3, 4][..]));
        assert!(CodeMatrix::new(2, vec![1]).is_err());
    }

    #[test]
    fn a_code_out_of_range_is_named() {
        let error = SidTable::new(spec(&[3, 4], None), vec![0, 0, 1, 4]).unwrap_err().to_string();
        assert_eq!(error, "code of item 1 at level 1: expected a code below 4, got 4");
        assert!(SidTable::new(spec(&[3, 4], None), vec![0, 0, 1]).is_err());
    }

    #[test]
    fn digest_sees_codes_and_spec() {
        let digest = |s, codes| SidTable::new(s, codes).unwrap().digest();
        let base = digest(spec(&[3, 4], None), vec![1, 2]);
        assert_eq!(base, digest(spec(&[3, 4], None), vec![1, 2]));
        assert_ne!(base, digest(spec(&[3, 4], None), vec![2, 1]));
        assert_ne!(base, digest(spec(&[3, 5], None), vec![1, 2]));
        assert_ne!(base, digest(spec(&[3], Some(4)), vec![1, 2]));
    }
}
