//! Offline SID building: content vectors, quantiser, collisions, catalogue.

use crate::catalogue::{Catalogue, Collisions, ItemCard, Origin};
use crate::content::{Encoder, EncoderRecord};
use crate::error::{Fault, bad_data, fault};
use crate::progress::Stage;
use crate::table::{ItemKeys, Items, read_vectors};
use anyhow::Result;
use beam::Trie;
use beam::cuda::{Device, accelerator};
use rqvae::{
    Behavior, CodeMatrix, CollisionPolicy, Encoded, FitProgress, ItemIdx, QuantizerConfig, Reassignment, SidEncoder,
    SidStats, SidTable, Vectors, fit_quantizer_with, reassign, resolve,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where content vectors come from.
pub enum Content {
    /// A file of vectors.
    File(PathBuf),
    /// The `embedding` column of the items.
    Column,
    /// An encoder of their texts.
    Encoder(Box<Encoder>),
}

impl Content {
    /// Chooses the source: a file, the items' own column, or the encoder called `encoder`.
    pub fn choose(items: &Items, embeddings: Option<&Path>, encoder: Option<&str>, seed: u64) -> Result<Self> {
        if let Some(path) = embeddings {
            return Ok(Self::File(path.to_path_buf()));
        }
        if encoder.is_none() && items.embeddings.is_some() {
            return Ok(Self::Column);
        }
        Ok(Self::Encoder(Box::new(Encoder::choose(encoder, &|| texts(items), seed)?)))
    }

    /// The encoder that [`Content::save`] left in `dir`, or what stands in for it.
    ///
    /// # Errors
    /// The catalogue's vectors came from elsewhere and neither `embeddings` nor `encoder` says where, or `encoder` is
    /// another one.
    pub fn reopen(items: &Items, dir: &Path, embeddings: Option<&Path>, encoder: Option<&str>) -> Result<Self> {
        if embeddings.is_some() {
            return Self::choose(items, embeddings, None, 0);
        }
        if EncoderRecord::read(dir)?.kind == "column" && items.embeddings.is_some() {
            return Ok(Self::Column);
        }
        Ok(Self::Encoder(Box::new(Encoder::reopen(dir, encoder)?)))
    }

    /// What is remembered of the source.
    pub fn record(&self) -> EncoderRecord {
        match self {
            Self::File(path) => {
                let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
                EncoderRecord::ready("file", &name)
            }
            Self::Column => EncoderRecord::ready("column", "embedding column"),
            Self::Encoder(encoder) => encoder.record().clone(),
        }
    }

    /// Name for reports.
    pub fn name(&self) -> String {
        self.record().encoder
    }

    /// One vector per item.
    pub fn vectors(&self, items: &Items) -> Result<Vectors> {
        match self {
            Self::File(path) => read_vectors(path, &items.keys),
            Self::Column => items.embeddings.clone().ok_or_else(|| bad_data("the items have no `embedding` column")),
            Self::Encoder(encoder) => encoder.vectors(&written(items)?),
        }
    }

    /// Saves what is needed to encode further items the same way.
    pub fn save(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Encoder(encoder) => encoder.save(dir),
            Self::File(_) | Self::Column => self.record().write(dir),
        }
    }
}

/// Rendered texts of all items.
fn texts(items: &Items) -> Vec<String> {
    items.texts.iter().map(rqvae::ItemText::render).collect()
}

/// Rendered texts of all items, of which some say something.
fn written(items: &Items) -> Result<Vec<String>> {
    let texts = texts(items);
    let empty = texts.iter().filter(|text| text.trim().is_empty()).count();
    if empty == texts.len() {
        return Err(bad_data(format!(
            "none of {} items has a text to encode; expected columns such as title, brand, categories or description,              --text with the names of others, or vectors by --embeddings",
            texts.len()
        )));
    }
    if empty > 0 {
        tracing::warn!(empty, items = texts.len(), "items without a text have equal vectors");
    }
    Ok(texts)
}

/// What people see of the item in `row`.
pub(super) fn card(items: &Items, row: usize) -> ItemCard {
    ItemCard {
        item_id: items.keys.json(ItemIdx(row as u32)),
        title: items.titles[row].clone(),
        category: items.categories_top[row].clone(),
        first_seen: items.first_seen[row],
    }
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

/// Most items that may share their codes and be told apart by a suffix.
pub(super) const MAX_SUFFIX: u32 = 256;

/// What happens to items with equal codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Policy {
    /// A further code numbers them
    #[default]
    Suffix,
    /// The nearest keeps its last code, others take their nearest free one; a suffix numbers the rest
    NearestFree,
    /// Last codes are given out anew at least cost; a suffix numbers the rest
    MinCost,
    /// They share one ID
    Share,
}

impl Policy {
    /// IDs of items and what it took.
    fn resolve(
        self,
        quantizer: &dyn SidEncoder,
        content: &Vectors,
        encoded: &Encoded,
        keys: &ItemKeys,
    ) -> Result<(SidTable, Collisions)> {
        let (sizes, ties) = (quantizer.codebook_sizes(), keys.tie_hash());
        let how = match self {
            Self::NearestFree => Some(Reassignment::NearestFree),
            Self::MinCost => Some(Reassignment::MinCost),
            Self::Suffix | Self::Share => None,
        };
        let before = SidStats::of(&encoded.codes, &[]);
        let mut codes = encoded.codes.clone();
        if let Some(how) = how {
            let last = quantizer.last_level(content)?.ok_or_else(|| {
                let method = quantizer.method();
                fault(Fault::Usage, format!("--collisions: method {method} has no codes to choose from; use suffix"))
            })?;
            codes = reassign(&codes, &last, how, ties)?;
        }
        let moved: usize = (0..codes.rows()).filter(|&i| codes.row(i) != encoded.codes.row(i)).count();
        let policy =
            if self == Self::Share { CollisionPolicy::Share } else { CollisionPolicy::Suffix { max: MAX_SUFFIX } };
        let report = Collisions {
            policy: clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |v| v.get_name().to_string()),
            unique_prefixes_before: before.unique_prefixes,
            max_group_before: before.max_group,
            moved,
            relative_error: if moved > 0 { error_of(quantizer, content, &codes)? } else { None },
        };
        Ok((resolve(&codes, sizes, &policy, ties)?, report))
    }
}

/// Share of the variance of `content` that `codes` leave unexplained, where they can be decoded.
fn error_of(quantizer: &dyn SidEncoder, content: &Vectors, codes: &CodeMatrix) -> Result<Option<f64>> {
    Ok(quantizer.decode(codes)?.map(|decoded| decoded.unexplained(content)))
}

/// Fits the quantiser on the items that `fit_on` chooses and gives every item an ID, a suffix telling equals apart.
pub fn build(
    items: &Items,
    content: &Vectors,
    encoder: &str,
    config: &QuantizerConfig,
    fit_on: &dyn Fn(ItemIdx) -> bool,
) -> Result<Built> {
    build_with(items, content, encoder, config, &Fit::default(), fit_on)
}

/// What a build takes beside items, content and the numbers of its quantiser.
#[derive(Default)]
pub struct Fit {
    /// What happens to items with equal codes.
    pub policy: Policy,
    /// What histories say of the items.
    pub behavior: Behavior,
    /// Where the quantiser is fitted and encodes, `None` for the processor.
    pub device: Option<Arc<dyn Device>>,
}

/// Fits a quantiser to `content` and what `behavior` says of it, on `device` where there is one.
pub(crate) fn fit(
    config: &QuantizerConfig,
    content: &Vectors,
    behavior: &Behavior,
    device: Option<&Arc<dyn Device>>,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Box<dyn SidEncoder>> {
    let fitted = match device {
        None => fit_quantizer_with(config, content, behavior, None, progress),
        Some(device) => fit_quantizer_with(config, content, behavior, Some(&accelerator(device)), progress),
    };
    fitted.map_err(distrusted)
}

/// Codes of `content`, found on `device` where there is one.
pub(crate) fn encode(
    quantizer: &dyn SidEncoder,
    content: &Vectors,
    device: Option<&Arc<dyn Device>>,
) -> Result<Encoded> {
    let encoded = match device {
        None => quantizer.encode(content),
        Some(device) => quantizer.encode_on(content, Some(&accelerator(device))),
    };
    encoded.map_err(distrusted)
}

/// An error, with what helps where a device computes something else than the processor.
fn distrusted(error: rqvae::Error) -> anyhow::Error {
    match error {
        rqvae::Error::Disagreement { .. } => {
            fault(Fault::Usage, format!("{error}: nothing is built; --device cpu uses the processor"))
        }
        error => error.into(),
    }
}

/// Fits the quantiser on the items that `fit_on` chooses, and on what histories say of them, and gives every item an ID.
pub fn build_with(
    items: &Items,
    content: &Vectors,
    encoder: &str,
    config: &QuantizerConfig,
    how: &Fit,
    fit_on: &dyn Fn(ItemIdx) -> bool,
) -> Result<Built> {
    let mut stage = Stage::new("fit quantiser", 0);
    let began = Instant::now();
    let rows: Vec<u32> = (0..content.rows() as u32).filter(|row| fit_on(ItemIdx(*row))).collect();
    let chosen: Vec<f32> = rows.iter().flat_map(|&row| content.row(row as usize)).copied().collect();
    let Fit { policy, behavior, device } = how;
    let behavior = if behavior.is_empty() { Behavior::default() } else { behavior.select(&rows) };
    let quantizer = fit(config, &Vectors::new(content.dim, chosen)?, &behavior, device.as_ref(), &mut |p| {
        let loss = p.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}"));
        stage.at(p.done as u64, p.total as u64, &format!("{} {loss}", p.stage));
    })?;
    let fit_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let encoded = encode(quantizer.as_ref(), content, device.as_ref())?;
    let encode_seconds = began.elapsed().as_secs_f64();
    let (sids, collisions) = policy.resolve(quantizer.as_ref(), content, &encoded, &items.keys)?;
    let trie = Trie::build(&sids)?;
    let origin = Origin {
        method: quantizer.method().to_string(),
        encoder: encoder.to_string(),
        encoder_digest: String::new(),
        seed: config.seed,
        reconstruction_mse: encoded.mse(content),
        relative_error: encoded.relative_error(content),
        fit_seconds,
        encode_items_per_second: content.rows() as f64 / encode_seconds.max(1e-9),
        collisions: Some(collisions),
    };
    stage.done(&format!(
        "{} {:?}, relative error {:.3}",
        origin.method,
        quantizer.codebook_sizes(),
        origin.relative_error
    ));
    let cards = (0..items.keys.len()).map(|row| card(items, row)).collect();
    let keys: ItemKeys = items.keys.clone();
    Ok(Built {
        catalogue: Catalogue {
            keys,
            sids,
            trie,
            lineage: Vec::new(),
            removed: Vec::new(),
            cards,
            content: content.clone(),
            origin,
        },
        residual_norms: encoded.residual_norms,
        quantizer,
    })
}
