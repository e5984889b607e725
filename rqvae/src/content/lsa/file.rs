//! A fitted encoder on disk: `lsa.safetensors`.

use super::super::bert::{corrupt, read};
use super::{LsaConfig, LsaEncoder};
use crate::{Error, Result, write_atomic};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

const FILE: &str = "lsa.safetensors";
const FORMAT: &str = "lsa-encoder";
const VERSION: u32 = 1;
const KEY: &str = "sidrec";

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    config: LsaConfig,
    digest: String,
}

impl LsaEncoder {
    /// Writes `lsa.safetensors` into `dir`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let n = self.terms.len();
        let terms: Vec<u8> = self.terms.iter().flat_map(|t| t.to_le_bytes()).collect();
        let idf: Vec<u8> = self.idf.iter().flat_map(|x| x.to_le_bytes()).collect();
        let projection: Vec<u8> = halves(&self.projection)?;
        let entry = |kind, shape: Vec<usize>, bytes| {
            TensorView::new(kind, shape, bytes).map_err(|e| corrupt(&path, e.to_string()))
        };
        let entries = [
            ("terms", entry(Dtype::U64, vec![n], &terms)?),
            ("idf", entry(Dtype::F32, vec![n], &idf)?),
            (
                "projection",
                entry(Dtype::F16, vec![n, self.config.dim], &projection)?,
            ),
        ];
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            config: self.config.clone(),
            digest: digest(&[&terms, &idf, &projection]),
        };
        let header = serde_json::to_string(&header).map_err(|e| corrupt(&path, e.to_string()))?;
        // One key: the order of several would differ from run to run.
        let metadata = HashMap::from([(KEY.to_owned(), header)]);
        let bytes = safetensors::serialize(entries, Some(metadata))
            .map_err(|e| corrupt(&path, e.to_string()))?;
        write_atomic(&path, &bytes)
    }

    /// Reads `lsa.safetensors` from `dir`.
    ///
    /// # Errors
    /// The file is missing, of another format or version, or not what was written.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let bytes = read(&path)?;
        let wrong = |reason: String| corrupt(&path, reason);
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let header = header.metadata().as_ref().and_then(|pairs| pairs.get(KEY));
        let header = header.ok_or_else(|| wrong(format!("metadata lacks `{KEY}`")))?;
        let header: Header = serde_json::from_str(header)
            .map_err(|e| wrong(format!("metadata `{KEY}`: {e}")))?;
        if header.format != FORMAT {
            return Err(wrong(format!(
                "format is `{}`, expected `{FORMAT}`",
                header.format
            )));
        }
        if header.version != VERSION {
            return Err(Error::WrongVersion {
                path: path.clone(),
                found: header.version,
                supported: VERSION,
            });
        }
        let config = header.config;
        config.validate()?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let entry = |name: &str, kind: Dtype| {
            let found = tensors.tensor(name).map_err(|e| wrong(e.to_string()))?;
            if found.dtype() == kind {
                Ok(found)
            } else {
                Err(wrong(format!(
                    "`{name}` is {:?}, expected {kind:?}",
                    found.dtype()
                )))
            }
        };
        let terms = entry("terms", Dtype::U64)?;
        let idf = entry("idf", Dtype::F32)?;
        let projection = entry("projection", Dtype::F16)?;
        let n = terms.data().len() / 8;
        let shape = |name, found: &[usize], expected: &[usize]| {
            if found == expected {
                Ok(())
            } else {
                Err(wrong(format!(
                    "`{name}` has shape {found:?}, expected {expected:?}"
                )))
            }
        };
        shape("terms", terms.shape(), &[n])?;
        shape("idf", idf.shape(), &[n])?;
        shape("projection", projection.shape(), &[n, config.dim])?;
        let found = digest(&[terms.data(), idf.data(), projection.data()]);
        if header.digest != found {
            return Err(Error::DigestMismatch {
                path: path.clone(),
                expected: header.digest,
                found,
            });
        }
        let terms: Vec<u64> = terms
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| u64::from_le_bytes(*b))
            .collect();
        let idf: Vec<f32> = idf
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        let projection = singles(projection.data())?;
        if !terms.is_sorted_by(|a, b| a < b) {
            return Err(wrong("`terms` are not ascending".to_owned()));
        }
        if idf.iter().chain(&projection).any(|x| !x.is_finite()) {
            return Err(wrong("holds a number that is not finite".to_owned()));
        }
        Ok(Self {
            config,
            terms,
            idf,
            projection,
        })
    }
}

fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}

/// Numbers as little-endian 16-bit floats.
fn halves(values: &[f32]) -> Result<Vec<u8>> {
    use candle_core::{DType, Device, Tensor};
    let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?.to_dtype(DType::F16)?;
    let mut bytes = Vec::with_capacity(values.len() * 2);
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

fn singles(bytes: &[u8]) -> Result<Vec<f32>> {
    use candle_core::{DType, Device, Tensor};
    let tensor = Tensor::from_raw_buffer(bytes, DType::F16, &[bytes.len() / 2], &Device::Cpu)?;
    Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted() -> LsaEncoder {
        let texts = ["red lamp", "blue lamp", "red chair", "blue chair"].map(str::to_owned);
        let config = LsaConfig {
            dim: 3,
            ..LsaConfig::default()
        };
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
    fn every_flipped_byte_of_the_data_is_refused_and_none_panics() {
        let dir = tempfile::tempdir().unwrap();
        fitted().save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let loaded = LsaEncoder::load(dir.path());
            assert!(at < header || loaded.is_err(), "byte {at}");
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
