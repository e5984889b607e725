//! What a semantic ID is: one code per level, coarse to fine, and maybe a suffix that separates collisions.

use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Integer at one level of a semantic ID.
pub type Code = u16;

/// Most codes an ID can have, suffix included.
pub const MAX_CODES: usize = 8;

const MAX_SIZE: u32 = Code::MAX as u32 + 1;

/// Row of an item in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Pod, Zeroable)]
#[serde(transparent)]
#[repr(transparent)]
pub struct ItemIdx(pub u32);

/// Codes of one item or the first codes of several: up to eight, inline, ordered lexicographically.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SemanticId {
    // Zeros behind the end keep the derived order lexicographic; the length decides between `1` and `1,0`.
    codes: [Code; MAX_CODES],
    len: u8,
}

impl SemanticId {
    /// An ID of these codes.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for more than eight codes.
    pub fn new(codes: &[Code]) -> Result<Self> {
        if codes.len() > MAX_CODES {
            return Err(Error::shape("semantic ID", format!("at most {MAX_CODES} codes"), codes.len()));
        }
        Ok(Self::truncated(codes))
    }

    pub(crate) fn truncated(codes: &[Code]) -> Self {
        let len = codes.len().min(MAX_CODES);
        let mut inline = [0; MAX_CODES];
        inline[..len].copy_from_slice(&codes[..len]);
        Self { codes: inline, len: len as u8 }
    }

    /// The codes, coarse to fine.
    pub fn codes(&self) -> &[Code] {
        &self.codes[..usize::from(self.len)]
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there is no code at all: the prefix of every ID.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `n` codes, all of them when there are fewer.
    #[must_use]
    pub fn prefix(&self, n: usize) -> Self {
        Self::truncated(&self.codes()[..n.min(self.len())])
    }
}

impl fmt::Display for SemanticId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, code) in self.codes().iter().enumerate() {
            write!(f, "{}{code}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for SemanticId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{self}>")
    }
}

/// Shape of every ID in a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidSpec {
    /// Codes per level, coarse to fine.
    pub codebook_sizes: Vec<u32>,
    /// Values of the extra code that separates collisions, if there is one.
    pub suffix_size: Option<u32>,
}

impl SidSpec {
    /// Levels that come from codebooks.
    pub fn levels(&self) -> usize {
        self.codebook_sizes.len()
    }

    /// Codes per ID, suffix included.
    pub fn len(&self) -> usize {
        self.levels() + usize::from(self.suffix_size.is_some())
    }

    /// Whether an ID has no codes; no valid spec is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many codes `level` has, 0 behind the last one.
    pub fn codes_at(&self, level: usize) -> u32 {
        match self.codebook_sizes.get(level) {
            Some(&size) => size,
            None if level == self.levels() => self.suffix_size.unwrap_or(0),
            None => 0,
        }
    }

    /// Refuses shapes that no ID can have.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.levels() == 0 || self.len() > MAX_CODES {
            let expected = format!("1 to {MAX_CODES} codes, suffix included");
            return Err(Error::config("codebook_sizes", format!("{} codes", self.len()), expected));
        }
        if let Some(size) = self.codebook_sizes.iter().find(|s| !(1..=MAX_SIZE).contains(*s)) {
            return Err(Error::config("codebook_sizes", size, format!("1 to {MAX_SIZE}")));
        }
        match self.suffix_size {
            Some(size) if !(1..=MAX_SIZE).contains(&size) => {
                Err(Error::config("suffix_size", size, format!("1 to {MAX_SIZE}")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_lexicographic_and_prefixes_come_first() {
        let sid = |codes: &[Code]| SemanticId::new(codes).unwrap();
        assert!(sid(&[1]) < sid(&[1, 0]));
        assert!(sid(&[1, 0]) < sid(&[1, 0, 0]));
        assert!(sid(&[1, 9]) < sid(&[2]));
        assert_eq!(sid(&[12, 7, 201, 0]).to_string(), "12,7,201,0");
        assert_eq!(sid(&[12, 7, 201]).prefix(2), sid(&[12, 7]));
        assert_eq!(sid(&[12]).prefix(5), sid(&[12]));
        assert!(SemanticId::new(&[0; 9]).is_err());
    }

    #[test]
    fn spec_counts_the_suffix() {
        let spec = SidSpec { codebook_sizes: vec![4, 5], suffix_size: Some(3) };
        assert_eq!((spec.levels(), spec.len()), (2, 3));
        assert_eq!([0, 1, 2, 3].map(|l| spec.codes_at(l)), [4, 5, 3, 0]);
        spec.validate().unwrap();
        for (codebook_sizes, suffix_size) in
            [(vec![], None), (vec![0], None), (vec![65_537], None), (vec![2], Some(0)), (vec![2; 8], Some(1))]
        {
            assert!(SidSpec { codebook_sizes, suffix_size }.validate().is_err());
        }
    }
}
