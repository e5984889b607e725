//! A fitted encoder on disk: `lsa.safetensors`, format `lsa-encoder`, version 1.
//!
//! Entries: `terms` u64 (terms), `idf` f32 (terms), `projection` (terms, dim) with IEEE 16-bit floats as their bits.

use super::{LsaConfig, LsaEncoder};
use crate::{Artefact, ArtefactWriter, Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

const FILE: &str = "lsa.safetensors";
const FORMAT: &str = "lsa-encoder";
const VERSION: u32 = 1;

impl LsaEncoder {
    /// Writes `lsa.safetensors` into `dir`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let n = self.terms.len();
        let config = serde_json::to_string(&self.config).map_err(|e| Error::corrupt(&path, e))?;
        let mut file = ArtefactWriter::new(FORMAT, VERSION);
        file.metadata("config", &config);
        file.u64s("terms", &[n], &self.terms)?;
        file.f32s("idf", &[n], &self.idf)?;
        file.u16s("projection", &[n, self.config.dim], &half_bits(&self.projection)?)?;
        file.write(&path)
    }

    /// Reads `lsa.safetensors` from `dir`.
    ///
    /// # Errors
    /// The file is missing, of another format or version, or not what was written.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let file = Artefact::open(&path, FORMAT, VERSION)?;
        let config: LsaConfig = serde_json::from_str(file.metadata("config")?)
            .map_err(|e| Error::corrupt(&path, format!("config: {e}")))?;
        config.validate()?;
        let (_, terms) = file.u64s("terms")?;
        let (_, idf) = file.f32s("idf")?;
        let (shape, projection) = file.u16s("projection")?;
        if idf.len() != terms.len() || shape != [terms.len(), config.dim] {
            let reason = format!(
                "{} terms, {} document frequencies, projection of shape {shape:?} for {} dimensions",
                terms.len(),
                idf.len(),
                config.dim
            );
            return Err(Error::corrupt(&path, reason));
        }
        if !terms.is_sorted_by(|a, b| a < b) {
            return Err(Error::corrupt(&path, "`terms` are not ascending"));
        }
        let projection = from_half_bits(&projection)?;
        if idf.iter().chain(&projection).any(|x| !x.is_finite()) {
            return Err(Error::corrupt(&path, "holds a number that is not finite"));
        }
        Ok(Self { config, terms, idf, projection })
    }
}

/// The nearest IEEE 16-bit floats, as their bits.
pub(super) fn half_bits(values: &[f32]) -> Result<Vec<u16>> {
    let halves = Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_dtype(DType::F16)?;
    let mut bytes = Vec::with_capacity(values.len() * 2);
    halves.write_bytes(&mut bytes)?;
    let pairs = bytes.as_chunks().0.iter();
    Ok(pairs.map(|b| u16::from_le_bytes(*b)).collect())
}

pub(super) fn from_half_bits(bits: &[u16]) -> Result<Vec<f32>> {
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    let halves = Tensor::from_raw_buffer(&bytes, DType::F16, &[bits.len()], &Device::Cpu)?;
    Ok(halves.to_dtype(DType::F32)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted() -> LsaEncoder {
        let texts = ["red lamp", "blue lamp", "red chair", "blue chair"].map(str::to_owned);
        let config = LsaConfig { dim: 3, ..LsaConfig::default() };
        LsaEncoder::fit(&texts, &config).unwrap()
    }

    #[test]
    fn a_saved_encoder_is_the_same_encoder() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = fitted();
        encoder.save(dir.path()).unwrap();
        assert_eq!(LsaEncoder::load(dir.path()).unwrap(), encoder);
    }

    #[test]
    fn flipped_bytes_and_truncation_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fitted().save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(LsaEncoder::load(dir.path()).is_err(), "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(LsaEncoder::load(dir.path()).is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = LsaEncoder::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
