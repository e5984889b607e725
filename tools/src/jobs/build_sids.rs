//! Offline SID building: content vectors, quantiser, collisions, catalogue.

use crate::catalogue::{Catalogue, ItemCard, Origin};
use crate::error::{bad_data, input_missing};
use crate::progress::Stage;
use crate::table::{ItemKeys, Items, read_vectors};
use anyhow::Result;
use beam::Trie;
use rqvae::{
    BertEncoder, CollisionPolicy, ContentEncoder, Encoded, HashedEncoder, ItemIdx, LsaConfig, LsaEncoder,
    QuantizerConfig, SidEncoder, Vectors, fit_quantizer, resolve,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where content vectors come from.
pub enum Content {
    /// A file of vectors.
    File(PathBuf),
    /// TF-IDF and truncated SVD, fitted on the items.
    Lsa(Box<LsaEncoder>),
    /// Hashed n-grams.
    Hashed(HashedEncoder),
    /// A local Hugging Face folder.
    Folder(PathBuf, Box<BertEncoder>),
    /// The `embedding` column of the items.
    Column,
}

impl Content {
    /// Chooses the source: a file, the items' own column, or the encoder called `encoder`.
    pub fn choose(items: &Items, embeddings: Option<&Path>, encoder: Option<&str>, seed: u64) -> Result<Self> {
        if let Some(path) = embeddings {
            return Ok(Self::File(path.to_path_buf()));
        }
        match encoder {
            None if items.embeddings.is_some() => Ok(Self::Column),
            None | Some("lsa") => {
                let mut stage = Stage::new("fit lsa encoder", 0);
                stage.at(0, 0, &format!("{} texts", items.texts.len()));
                let config = LsaConfig { seed, ..LsaConfig::default() };
                let texts = texts(items);
                let encoder = LsaEncoder::fit(&texts, &config)?;
                stage.done(&format!("{} dimensions", encoder.dim()));
                Ok(Self::Lsa(Box::new(encoder)))
            }
            Some("hashed") => Ok(Self::Hashed(HashedEncoder::new(256))),
            Some(folder) => {
                let path = Path::new(folder);
                if !path.is_dir() {
                    return Err(input_missing(path)
                        .context(format!("encoder `{folder}`: expected lsa, hashed or a local Hugging Face folder")));
                }
                Ok(Self::Folder(path.to_path_buf(), Box::new(BertEncoder::load(path)?)))
            }
        }
    }

    /// Name for reports.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            Self::Lsa(encoder) => encoder.name(),
            Self::Hashed(encoder) => encoder.name(),
            Self::Folder(_, encoder) => encoder.name(),
            Self::Column => "embedding column".into(),
        }
    }

    /// One vector per item.
    pub fn vectors(&self, items: &Items) -> Result<Vectors> {
        let encode = |encoder: &dyn ContentEncoder| {
            let texts = texts(items);
            let total = texts.len() as u64;
            let mut stage = Stage::new("embed items", total);
            let began = Instant::now();
            let vectors = encoder.encode(&texts, &mut |done| {
                let rate = done as f64 / began.elapsed().as_secs_f64().max(1e-9);
                stage.at(done as u64, total, &format!("{rate:.0} items/s"));
            })?;
            stage.done(&format!("{} items x {} with {}", total, vectors.dim, encoder.name()));
            anyhow::Ok(vectors)
        };
        match self {
            Self::File(path) => read_vectors(path, &items.keys),
            Self::Lsa(encoder) => encode(encoder.as_ref()),
            Self::Hashed(encoder) => encode(encoder),
            Self::Folder(_, encoder) => encode(encoder.as_ref()),
            Self::Column => items.embeddings.clone().ok_or_else(|| bad_data("the items have no `embedding` column")),
        }
    }

    /// Saves what is needed to encode further items the same way.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if let Self::Lsa(encoder) = self {
            encoder.save(dir)?;
        }
        let name = serde_json::json!({ "encoder": self.name() });
        rqvae::write_atomic(&dir.join("encoder.json"), &serde_json::to_vec_pretty(&name)?)?;
        Ok(())
    }
}

/// Rendered texts of all items.
fn texts(items: &Items) -> Vec<String> {
    items.texts.iter().map(rqvae::ItemText::render).collect()
}

/// A catalogue and what it was made with.
pub struct Built {
    /// The catalogue, in memory.
    pub catalogue: Catalogue,
    /// What the last level left over of each item.
    pub residual_norms: Vec<f32>,
    /// The fitted quantiser.
    pub quantizer: Box<dyn SidEncoder>,
}

/// Fits the quantiser on the items that `fit_on` chooses and gives every item an ID.
pub fn build(
    items: &Items,
    content: &Vectors,
    encoder: &str,
    config: &QuantizerConfig,
    fit_on: &dyn Fn(ItemIdx) -> bool,
) -> Result<Built> {
    let mut stage = Stage::new("fit quantiser", 0);
    let began = Instant::now();
    let chosen: Vec<f32> = (0..content.rows())
        .filter(|row| fit_on(ItemIdx(*row as u32)))
        .flat_map(|row| content.row(row).iter().copied())
        .collect();
    let quantizer = fit_quantizer(config, &Vectors::new(content.dim, chosen)?, &mut |p| {
        let loss = p.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}"));
        stage.at(p.done as u64, p.total as u64, &format!("{} {loss}", p.stage));
    })?;
    let fit_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let encoded: Encoded = quantizer.encode(content)?;
    let encode_seconds = began.elapsed().as_secs_f64();
    let policy = CollisionPolicy::Suffix { max: 256 };
    let sids = resolve(&encoded.codes, quantizer.codebook_sizes(), &policy, items.keys.tie_hash())?;
    let trie = Trie::build(&sids)?;
    let origin = Origin {
        method: quantizer.method().to_string(),
        encoder: encoder.to_string(),
        seed: config.seed,
        reconstruction_mse: encoded.mse(content),
        relative_error: encoded.relative_error(content),
        fit_seconds,
        encode_items_per_second: content.rows() as f64 / encode_seconds.max(1e-9),
    };
    stage.done(&format!(
        "{} {:?}, relative error {:.3}",
        origin.method,
        quantizer.codebook_sizes(),
        origin.relative_error
    ));
    let cards = (0..items.keys.len())
        .map(|row| ItemCard {
            item_id: items.keys.json(ItemIdx(row as u32)),
            title: items.titles[row].clone(),
            category: items.categories_top[row].clone(),
            first_seen: items.first_seen[row],
        })
        .collect();
    let keys: ItemKeys = items.keys.clone();
    Ok(Built {
        catalogue: Catalogue { keys, sids, trie, cards, content: content.clone(), origin },
        residual_norms: encoded.residual_norms,
        quantizer,
    })
}
