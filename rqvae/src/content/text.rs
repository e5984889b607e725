//! Frozen sentence encoders from a Hugging Face folder: BERT, RoBERTa, T5.
//!
//! The folder holds `config.json`, `model.safetensors` (or the files that its index names) and `tokenizer.json`;
//! the files of sentence-transformers are
//! honoured. Padding and truncation written into `tokenizer.json` are overridden: nothing is padded, and texts are cut
//! at 256 tokens or the folder's own limit. Texts are taken by length, so that the two ends of the work are alike long.
//!
//! Shapes: texts (items,) -> tokens, one after another -> token vectors (tokens, dim) -> (items, dim).
//! Paper: Reimers and Gurevych 2019, Sentence-BERT; Ni et al. 2022, Sentence-T5.

use super::ContentEncoder;
use super::folder::Folder;
use super::pooling::Pipeline;
use super::transformer::{Blueprint, Scratch, Tokens, Transformer};
use crate::{Error, Result, Vectors};
use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokenizers::{Tokenizer, TruncationParams};

/// Tokens that go through the transformer at a time, on one core: what stays in its cache.
const BATCH_TOKENS: usize = 512;
/// Batches between two reports of progress.
const BATCHES_PER_REPORT: usize = 16;
/// Bytes of a text that are looked at; 256 tokens need far fewer.
const MAX_TEXT_BYTES: usize = 16 << 10;
const TOKENIZER: &str = "tokenizer.json";

/// A frozen text encoder.
pub struct TextEncoder {
    name: String,
    digest: String,
    tokenizer_path: PathBuf,
    model: Transformer,
    tokenizer: Tokenizer,
    pipeline: Pipeline,
    dim: usize,
    /// The token that stands for nothing.
    pad: u32,
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("TextEncoder").field("name", &self.name).field("dim", &self.dim).finish_non_exhaustive()
    }
}

impl TextEncoder {
    /// Loads an encoder folder.
    ///
    /// # Errors
    /// Names the file that is missing, broken, or of a kind of model that is not known here.
    pub fn load(path: &Path) -> Result<Self> {
        let folder = Folder::new(path);
        let mut pipeline = Pipeline::of(&folder)?;
        let blueprint = Blueprint::read(&folder, &pipeline.transformer)?;
        pipeline.max_tokens = pipeline.max_tokens.min(blueprint.max_tokens().unwrap_or(usize::MAX));
        let name = format!("{}{TOKENIZER}", pipeline.transformer);
        let tokenizer_path = folder.path(&name);
        // The small files first: whatever is wrong with them is said before the weights are read.
        let tokenizer = tokenizer(&folder, &name, &blueprint, pipeline.max_tokens)?;
        let pad = blueprint.pad();
        let model = blueprint.load(&folder, &pipeline.transformer)?;
        let dim = pipeline.dim(&folder, model.dim())?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self {
            name: format!("{}:{}", model.kind(), name.to_string_lossy()),
            digest: folder.digest(),
            tokenizer_path,
            model,
            tokenizer,
            pipeline,
            dim,
            pad,
        })
    }

    /// BLAKE3 of all files that make the encoder, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same encoder under another name, behind the kind of the model.
    #[must_use]
    pub fn called(self, name: &str) -> Self {
        Self { name: format!("{}:{name}", self.model.kind()), ..self }
    }

    /// Token ids of every text, special tokens included; a text without any is one that stands for nothing.
    fn tokens(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let cut: Vec<&str> = texts.iter().map(|text| &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]).collect();
        let tokenize = || self.tokenizer.encode_batch_fast(cut, true);
        let encodings = catch_unwind(AssertUnwindSafe(tokenize))
            .map_err(|_| "the tokenizer gave up".to_owned())
            .and_then(|encoded| encoded.map_err(|e| e.to_string()))
            .map_err(|reason| Error::corrupt(&self.tokenizer_path, reason))?;
        let ids = encodings.iter().map(|encoding| encoding.get_ids().to_vec());
        Ok(ids.map(|ids| if ids.is_empty() { vec![self.pad] } else { ids }).collect())
    }

    /// Vectors of some texts: (texts, dim).
    fn batch(&self, texts: &[&[u32]], scratch: &mut Scratch) -> Vec<f32> {
        let mut tokens = Tokens { ids: Vec::new(), starts: vec![0] };
        for text in texts {
            tokens.ids.extend_from_slice(text);
            tokens.starts.push(tokens.ids.len());
        }
        let dim = self.model.dim();
        let hidden = self.model.forward(&tokens, scratch);
        let text = |ends: &[usize]| self.pipeline.finish(&hidden[ends[0] * dim..ends[1] * dim], dim);
        tokens.starts.windows(2).flat_map(text).collect()
    }
}

impl ContentEncoder for TextEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn encode(&self, texts: &[String], progress: &mut dyn FnMut(usize)) -> Result<Vectors> {
        let tokens = self.tokens(texts)?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(tokens[row].len()));
        let batches = batches(&order, |row| tokens[row].len());
        let mut data = vec![0.0; texts.len() * self.dim];
        let mut done = 0;
        for several in batches.chunks(BATCHES_PER_REPORT) {
            let vectors: Vec<Vec<f32>> = several
                .par_iter()
                .map_init(Scratch::default, |scratch, rows| {
                    let batch: Vec<&[u32]> = rows.iter().map(|&row| &tokens[row][..]).collect();
                    self.batch(&batch, scratch)
                })
                .collect();
            for (rows, vectors) in several.iter().zip(vectors) {
                for (&row, vector) in rows.iter().zip(vectors.chunks_exact(self.dim)) {
                    data[row * self.dim..][..self.dim].copy_from_slice(vector);
                }
                done += rows.len();
            }
            progress(done);
        }
        Vectors::new(self.dim, data)
    }
}

/// Cuts rows, which are in order of their lengths, into batches of about [`BATCH_TOKENS`] tokens.
fn batches(order: &[usize], length: impl Fn(usize) -> usize) -> Vec<&[usize]> {
    let (mut cut, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (at, &row) in order.iter().enumerate() {
        if at > start && tokens + length(row) > BATCH_TOKENS {
            cut.push(&order[start..at]);
            (start, tokens) = (at, 0);
        }
        tokens += length(row);
    }
    if start < order.len() {
        cut.push(&order[start..]);
    }
    cut
}

fn tokenizer(folder: &Folder, name: &str, blueprint: &Blueprint, max_tokens: usize) -> Result<Tokenizer> {
    let path = folder.path(name);
    let bytes = folder.small(name)?;
    let parse = || -> std::result::Result<Tokenizer, String> {
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    };
    let tokenizer = catch_unwind(AssertUnwindSafe(parse))
        .map_err(|_| Error::corrupt(&path, "cannot be parsed"))?
        .map_err(|reason| Error::corrupt(&path, reason))?;
    let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
    if largest as usize >= blueprint.vocabulary() {
        let words = blueprint.vocabulary();
        return Err(Error::corrupt(&path, format!("token {largest} is outside the model's vocabulary of {words}")));
    }
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type":"bert","vocab_size":8,"hidden_size":4,"num_hidden_layers":1,
        "num_attention_heads":2,"intermediate_size":8,"hidden_act":"gelu","hidden_dropout_prob":0.1,
        "max_position_embeddings":16,"type_vocab_size":2,"initializer_range":0.02,"layer_norm_eps":1e-12,
        "pad_token_id":0}"#;
    const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[UNK]":0,"a":1},"unk_token":"[UNK]"}}"#;

    fn load(config: &str, tokenizer: &str, weights: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("config.json", config.as_bytes()),
            ("tokenizer.json", tokenizer.as_bytes()),
            ("model.safetensors", weights),
        ];
        for (name, bytes) in files {
            if !bytes.is_empty() {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
        }
        TextEncoder::load(dir.path()).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_file() {
        assert!(load("", TOKENIZER, b"x").contains("config.json"));
        assert!(load("{}", TOKENIZER, b"x").contains("config.json"));
        assert!(load(CONFIG, "", b"x").contains("tokenizer.json"));
        assert!(load(CONFIG, "{]", b"x").contains("tokenizer.json"));
        assert!(load(CONFIG, TOKENIZER, b"").contains("model.safetensors"));
        assert!(load(CONFIG, TOKENIZER, b"not safetensors").contains("model.safetensors"));
        let empty = [2_u64.to_le_bytes().as_slice(), b"{}"].concat();
        assert!(load(CONFIG, TOKENIZER, &empty).contains("model.safetensors"));
    }

    #[test]
    fn models_that_cannot_be_are_refused() {
        let mpnet = CONFIG.replace("\"bert\"", "\"mpnet\"");
        assert!(load(&mpnet, TOKENIZER, b"x").contains("mpnet"));
        let huge = CONFIG.replace("\"hidden_size\":4", "\"hidden_size\":4000000");
        assert!(load(&huge, TOKENIZER, b"x").contains("hidden_size"));
        let heads = CONFIG.replace("heads\":2", "heads\":3");
        assert!(load(&heads, TOKENIZER, b"x").contains("multiple"));
        let large = TOKENIZER.replace("\"a\":1", "\"a\":8");
        assert!(load(CONFIG, &large, b"x").contains("vocabulary"));
    }
}
