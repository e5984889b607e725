//! Frozen transformers that read text: forward passes of their own, without padding.
//!
//! A batch is the tokens of its texts one after another; products run over all of them at once, attention over each
//! text alone. A text's vectors have the same bits whatever texts stand beside it.

mod attention;
mod bert;
mod math;
mod matrix;
mod t5;
mod weights;

use super::folder::Folder;
use crate::{Error, Result};
use serde::Deserialize;
pub(super) use weights::Weights;

/// The file of settings, as Hugging Face names it.
const CONFIG: &str = "config.json";

/// Texts as tokens, one after another.
pub(super) struct Tokens {
    /// (tokens,)
    pub(super) ids: Vec<u32>,
    /// Where each text begins and the last one ends: (texts + 1,).
    pub(super) starts: Vec<usize>,
}

/// Memory that is kept from batch to batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    projected: Vec<f32>,
    mixed: Vec<f32>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    product: Vec<f32>,
    attention: attention::Scratch,
}

/// The settings of a model, checked; its weights are still to be read.
pub(super) enum Blueprint {
    Bert(bert::Config),
    T5(t5::Config),
}

impl Blueprint {
    /// Reads the settings of the model in the part `at` of `folder` (empty for the folder itself).
    ///
    /// # Errors
    /// They are missing, broken, or of a kind of model that is not known here.
    pub(super) fn read(folder: &Folder, at: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            model_type: Option<String>,
        }
        let name = format!("{at}{CONFIG}");
        match folder.json::<Kind>(&name)?.model_type.as_deref() {
            None | Some("bert" | "roberta" | "xlm-roberta") => Ok(Self::Bert(bert::Config::read(folder, &name)?)),
            Some("t5" | "mt5") => Ok(Self::T5(t5::Config::read(folder, &name)?)),
            Some(other) => Err(Error::corrupt(
                &folder.path(&name),
                format!("model_type `{other}` is not supported; expected bert, roberta, xlm-roberta, t5 or mt5"),
            )),
        }
    }

    /// Words in the vocabulary.
    pub(super) fn vocabulary(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocabulary(),
            Self::T5(config) => config.vocabulary(),
        }
    }

    /// Most tokens of a text, where the model has a limit.
    pub(super) fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Bert(config) => Some(config.max_tokens()),
            Self::T5(_) => None,
        }
    }

    /// The token that stands for nothing.
    pub(super) fn pad(&self) -> u32 {
        match self {
            Self::Bert(config) => config.pad(),
            Self::T5(config) => config.pad(),
        }
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// They are missing or broken, or do not fit the settings.
    pub(super) fn load(self, folder: &Folder, at: &str) -> Result<Transformer> {
        let weights = Weights::read(folder, at)?;
        match self {
            Self::Bert(config) => Ok(Transformer::Bert(bert::Bert::load(config, &weights)?)),
            Self::T5(config) => Ok(Transformer::T5(t5::T5::load(config, &weights)?)),
        }
    }
}

/// A loaded model.
pub(super) enum Transformer {
    Bert(bert::Bert),
    T5(t5::T5),
}

impl Transformer {
    /// Name of the kind.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Bert(_) => "bert",
            Self::T5(_) => "t5",
        }
    }

    /// Width of a token vector.
    pub(super) fn dim(&self) -> usize {
        match self {
            Self::Bert(model) => model.dim(),
            Self::T5(model) => model.dim(),
        }
    }

    /// Vectors of all tokens: (tokens, dim).
    pub(super) fn forward(&self, tokens: &Tokens, scratch: &mut Scratch) -> Vec<f32> {
        match self {
            Self::Bert(model) => model.forward(tokens, scratch),
            Self::T5(model) => model.forward(tokens, scratch),
        }
    }
}

/// Refuses sizes that no model has, before anything is allocated.
fn bounded(folder: &Folder, config: &str, sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, found, most)| !(1..=*most).contains(found)) {
        None => Ok(()),
        Some((field, found, most)) => {
            Err(Error::corrupt(&folder.path(config), format!("{field} is {found}; expected 1 to {most}")))
        }
    }
}

/// Rows of an embedding (words, dim), one a token: (tokens, dim).
fn lookup(table: &[f32], dim: usize, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| &table[id as usize * dim..][..dim]).copied().collect()
}

/// Queries, keys and values as one matrix, queries scaled.
fn joined(mut query: Vec<f32>, key: &[f32], value: &[f32], scale: f32) -> Vec<f32> {
    query.iter_mut().for_each(|x| *x *= scale);
    query.extend_from_slice(key);
    query.extend_from_slice(value);
    query
}
