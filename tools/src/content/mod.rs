//! Content encoders by the names that `--encoder` takes, and what a catalogue remembers of them.
//!
//! `lsa` and `hashed` are built in; a folder or a name on a hub holds a transformer; `http://…` is a server that embeds.
//! What is remembered beside a catalogue (`encoder/encoder.json`) names the encoder, where it came from and the digest of
//! what makes it, so that items which come later are encoded by the same or not at all.

mod client;
mod endpoint;
mod hub;
#[cfg(test)]
mod test_server;

pub use endpoint::Endpoint;
pub use hub::{Hub, ModelName};

use crate::error::{Fault, bad_data, fault, input_missing};
use crate::progress::Stage;
use anyhow::Result;
use rqvae::{ContentEncoder, HashedEncoder, LsaConfig, LsaEncoder, TextEncoder, Vectors, file_digest};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

const RECORD: &str = "encoder.json";
const HASHED_DIM: usize = 256;

/// What a catalogue remembers of where its vectors came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncoderRecord {
    /// Name for reports.
    pub encoder: String,
    /// `lsa`, `hashed`, `folder`, `hub`, `endpoint`; `file` or `column` where vectors came ready.
    pub kind: String,
    /// Folder, `org/name@commit` or address.
    pub source: String,
    /// Digest of what makes the encoder; empty in catalogues of older versions.
    pub digest: String,
}

impl EncoderRecord {
    /// Of vectors that came ready.
    pub fn ready(kind: &str, name: &str) -> Self {
        Self { encoder: name.to_owned(), kind: kind.to_owned(), ..Self::default() }
    }

    /// Writes `encoder.json` into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        Ok(rqvae::write_atomic(&dir.join(RECORD), &serde_json::to_vec_pretty(self)?)?)
    }

    /// Reads `encoder.json` of `dir`.
    ///
    /// # Errors
    /// It is missing or broken.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(RECORD);
        let bytes = std::fs::read(&path).map_err(rqvae::Error::io(&path))?;
        serde_json::from_slice(&bytes).map_err(|e| bad_data(format!("{}: {e}", path.display())))
    }
}

enum Kind {
    Lsa(Box<LsaEncoder>),
    Hashed(HashedEncoder),
    Text(Box<TextEncoder>),
    Endpoint(Box<Endpoint>),
}

/// An encoder of texts, and what is remembered of it.
pub struct Encoder {
    kind: Kind,
    record: EncoderRecord,
}

impl Encoder {
    /// The encoder called `asked`, `lsa` without a name; `lsa` is fitted to the texts of the catalogue.
    ///
    /// # Errors
    /// There is none of that name, or it cannot be loaded, fetched or reached.
    pub fn choose(asked: Option<&str>, texts: &dyn Fn() -> Vec<String>, seed: u64) -> Result<Self> {
        match asked {
            None | Some("lsa") => {
                let texts = texts();
                let mut stage = Stage::new("fit lsa encoder", 0);
                stage.at(0, 0, &format!("{} texts", texts.len()));
                let encoder = LsaEncoder::fit(&texts, &LsaConfig { seed, ..LsaConfig::default() })?;
                stage.done(&format!("{} dimensions", encoder.dim()));
                Ok(Self::lsa(encoder))
            }
            Some("hashed") => Ok(Self::hashed()),
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => Self::endpoint(url),
            Some(name) if Path::new(name).is_dir() => Self::folder(Path::new(name)),
            Some(name) => match ModelName::parse(name) {
                Some(model) => Self::model(&model),
                None => Err(input_missing(Path::new(name)).context(format!(
                    "encoder `{name}`: expected lsa, hashed, a Hugging Face folder, org/name[@revision] or http://…"
                ))),
            },
        }
    }

    /// A fitted LSA encoder.
    pub fn lsa(encoder: LsaEncoder) -> Self {
        let record = EncoderRecord::ready("lsa", &encoder.name());
        Self { kind: Kind::Lsa(Box::new(encoder)), record }
    }

    fn hashed() -> Self {
        let encoder = HashedEncoder::new(HASHED_DIM);
        let name = encoder.name();
        let digest = blake3::hash(name.as_bytes()).to_hex().to_string();
        let record = EncoderRecord { digest, ..EncoderRecord::ready("hashed", &name) };
        Self { kind: Kind::Hashed(encoder), record }
    }

    fn folder(path: &Path) -> Result<Self> {
        let encoder = TextEncoder::load(path)?;
        // As an absolute path, so that it is found from elsewhere.
        let source = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self::text(encoder, "folder", source.to_string_lossy().into_owned()))
    }

    fn model(model: &ModelName) -> Result<Self> {
        let (folder, commit) = Hub::from_environment().folder(model)?;
        let encoder = TextEncoder::load(&folder)?.called(&model.name);
        Ok(Self::text(encoder, "hub", format!("{}@{commit}", model.name)))
    }

    fn text(encoder: TextEncoder, kind: &str, source: String) -> Self {
        let digest = encoder.digest().to_owned();
        let record = EncoderRecord { encoder: encoder.name(), kind: kind.to_owned(), source, digest };
        Self { kind: Kind::Text(Box::new(encoder)), record }
    }

    fn endpoint(url: &str) -> Result<Self> {
        let token = std::env::var("SIDREC_ENCODER_TOKEN").ok().filter(|token| !token.is_empty());
        let encoder = Endpoint::connect(url, token)?;
        let (name, digest) = (encoder.name(), encoder.digest());
        let record = EncoderRecord { encoder: name, kind: "endpoint".to_owned(), source: url.to_owned(), digest };
        Ok(Self { kind: Kind::Endpoint(Box::new(encoder)), record })
    }

    /// The encoder that [`Encoder::save`] left in `dir`; `asked` says where it is now, if it is no longer where it was.
    ///
    /// # Errors
    /// It cannot be found, or what is found is another one; the vectors of the catalogue came ready.
    pub fn reopen(dir: &Path, asked: Option<&str>) -> Result<Self> {
        let record = EncoderRecord::read(dir)?;
        if let (built_in @ ("lsa" | "hashed"), Some(asked)) = (record.kind.as_str(), asked)
            && asked != built_in
        {
            let message = format!("--encoder {asked}: the catalogue was made with {}", record.encoder);
            return Err(fault(Fault::Usage, message));
        }
        let none = || -> Vec<String> { Vec::new() };
        let found = match record.kind.as_str() {
            "lsa" => {
                let mut encoder = Self::lsa(LsaEncoder::load(dir)?);
                encoder.record.digest = file_digest(&dir.join("lsa.safetensors"))?;
                encoder
            }
            "hashed" => Self::hashed(),
            "folder" | "hub" | "endpoint" => match asked.or(Some(record.source.as_str()).filter(|s| !s.is_empty())) {
                None => {
                    return Err(fault(Fault::Usage, format!("--encoder: expected the folder of {}", record.encoder)));
                }
                Some("lsa" | "hashed") => {
                    let message = format!("--encoder: the catalogue was made with {}", record.encoder);
                    return Err(bad_data(message));
                }
                Some(source) => Self::choose(Some(source), &none, 0)?,
            },
            _ => {
                let message = format!("--embeddings: expected vectors like those of {}", record.encoder);
                return Err(fault(Fault::Usage, message));
            }
        };
        let same = if record.digest.is_empty() {
            found.record.encoder == record.encoder
        } else {
            found.record.digest == record.digest
        };
        if same {
            return Ok(Self { record, ..found });
        }
        Err(bad_data(format!(
            "--encoder: the catalogue was made with {} (digest {}), found {} (digest {})",
            record.encoder, record.digest, found.record.encoder, found.record.digest
        )))
    }

    /// What it does.
    pub fn content(&self) -> &dyn ContentEncoder {
        match &self.kind {
            Kind::Lsa(encoder) => encoder.as_ref(),
            Kind::Hashed(encoder) => encoder,
            Kind::Text(encoder) => encoder.as_ref(),
            Kind::Endpoint(encoder) => encoder.as_ref(),
        }
    }

    /// What is remembered of it.
    pub fn record(&self) -> &EncoderRecord {
        &self.record
    }

    /// Vectors of texts, (items,) -> (items, dim), with progress for people.
    pub fn vectors(&self, texts: &[String]) -> Result<Vectors> {
        let total = texts.len() as u64;
        let mut stage = Stage::new("embed items", total);
        let began = Instant::now();
        let rate = |done: usize| done as f64 / began.elapsed().as_secs_f64().max(1e-9);
        let vectors = self.content().encode(texts, &mut |done| {
            stage.at(done as u64, total, &format!("{:.0} items/s", rate(done)));
        })?;
        let (name, rate) = (&self.record.encoder, rate(texts.len()));
        stage.done(&format!("{total} items x {} with {name}, {rate:.0} items/s", vectors.dim));
        Ok(vectors)
    }

    /// Saves what is needed to encode further items the same way.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut record = self.record.clone();
        if let Kind::Lsa(encoder) = &self.kind {
            encoder.save(dir)?;
            record.digest = file_digest(&dir.join("lsa.safetensors"))?;
        }
        record.write(dir)
    }
}

/// Where the encoder of a catalogue is saved.
pub fn folder_in(catalogue: &Path) -> PathBuf {
    catalogue.join("encoder")
}
