//! Frozen BERT-style sentence encoders from a local Hugging Face folder.
//!
//! The folder holds `config.json`, `model.safetensors` and `tokenizer.json`; the files of sentence-transformers are
//! honoured. Padding and truncation written into `tokenizer.json` are overridden: batches are padded to their longest
//! text, texts cut at 256 tokens or the folder's own limit.
//!
//! Shapes: tokens (batch, seq) -> token vectors (batch, seq, dim) -> (batch, dim).
//! Paper: Reimers and Gurevych 2019, Sentence-BERT.

use super::pooling::{Pipeline, Pooling, json};
use super::{ContentEncoder, normalize};
use crate::{Error, Result, Vectors};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};

const BATCH: usize = 32;
/// Batches between two reports of progress.
const BATCHES_PER_REPORT: usize = 8;
/// Bytes of a text that are looked at; 256 tokens need far fewer.
const MAX_TEXT_BYTES: usize = 16 << 10;
const MAX_TOKENIZER_BYTES: usize = 64 << 20;

/// A frozen text encoder.
pub struct BertEncoder {
    name: String,
    model: BertModel,
    tokenizer: Tokenizer,
    pipeline: Pipeline,
    dim: usize,
    pad: u32,
}

impl std::fmt::Debug for BertEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("BertEncoder")
            .field("name", &self.name)
            .field("dim", &self.dim)
            .field("pipeline", &self.pipeline)
            .finish_non_exhaustive()
    }
}

impl BertEncoder {
    /// Loads an encoder folder.
    ///
    /// # Errors
    /// Names the file that is missing, broken, or of a kind of model that is not BERT.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut pipeline = Pipeline::of(folder)?;
        let path = pipeline.transformer.join("config.json");
        let config = config(&path)?;
        pipeline.max_tokens = pipeline.max_tokens.min(config.max_position_embeddings);
        let tokenizer = tokenizer(&pipeline.transformer.join("tokenizer.json"), &config, pipeline.max_tokens)?;
        let path = pipeline.transformer.join("model.safetensors");
        let bytes = read(&path)?;
        let model = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .and_then(|vb| BertModel::load(vb, &config))
            .map_err(|e| Error::corrupt(&path, e.to_string()))?;
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        Ok(Self {
            name: format!("bert:{}", name.to_string_lossy()),
            model,
            tokenizer,
            pipeline,
            dim: config.hidden_size,
            pad: config.pad_token_id as u32,
        })
    }

    /// Token ids of every text, special tokens included.
    fn tokens(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let cut: Vec<&str> = texts.iter().map(|text| &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]).collect();
        let tokenize = || self.tokenizer.encode_batch_fast(cut, true);
        let encodings = catch_unwind(AssertUnwindSafe(tokenize))
            .map_err(|_| "the tokenizer gave up".to_owned())
            .and_then(|encoded| encoded.map_err(|e| e.to_string()))
            .map_err(|reason| Error::corrupt(&self.pipeline.transformer.join("tokenizer.json"), reason))?;
        Ok(encodings.iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// Vectors of texts given as tokens: (batch, seq) ragged -> (batch, dim).
    fn forward(&self, batch: &[&[u32]]) -> Result<Vec<f32>> {
        let seq = batch.iter().map(|ids| ids.len()).max().unwrap_or(0).max(1);
        let shape = (batch.len(), seq);
        let mut ids = vec![self.pad; batch.len() * seq];
        let mut mask = vec![0.0_f32; batch.len() * seq];
        for (row, tokens) in batch.iter().enumerate() {
            ids[row * seq..][..tokens.len()].copy_from_slice(tokens);
            // A text without any token attends to the padding rather than to nothing.
            mask[row * seq..][..tokens.len().max(1)].fill(1.0);
        }
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let types = ids.zeros_like()?;
        let hidden = self.model.forward(&ids, &types, Some(&mask))?;
        let pooled = match self.pipeline.pooling {
            Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                let sum = hidden.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
                sum.broadcast_div(&mask.sum_keepdim(1)?)?
            }
        };
        Ok(pooled.contiguous()?.flatten_all()?.to_vec1()?)
    }
}

impl ContentEncoder for BertEncoder {
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
        let mut data = vec![0.0; texts.len() * self.dim];
        let mut done = 0;
        for rows in order.chunks(BATCH * BATCHES_PER_REPORT) {
            let vectors: Vec<Vec<f32>> = rows
                .par_chunks(BATCH)
                .map(|rows| {
                    let batch: Vec<&[u32]> = rows.iter().map(|&row| &tokens[row][..]).collect();
                    self.forward(&batch)
                })
                .collect::<Result<_>>()?;
            for (&row, vector) in rows.iter().zip(vectors.iter().flat_map(|part| part.chunks_exact(self.dim))) {
                let place = &mut data[row * self.dim..][..self.dim];
                place.copy_from_slice(vector);
                if self.pipeline.normalize {
                    normalize(place);
                }
            }
            done += rows.len();
            progress(done);
        }
        Vectors::new(self.dim, data)
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io(path))
}

fn config(path: &Path) -> Result<Config> {
    #[derive(serde::Deserialize)]
    struct Kind {
        model_type: Option<String>,
    }
    if let Some(kind) = json::<Kind>(path)?.model_type
        && kind != "bert"
    {
        return Err(Error::corrupt(path, format!("model_type `{kind}` is not supported; expected `bert`")));
    }
    let config: Config = json(path)?;
    let bounds = [
        ("vocab_size", config.vocab_size, 10_000_000),
        ("hidden_size", config.hidden_size, 16_384),
        ("num_hidden_layers", config.num_hidden_layers, 256),
        ("num_attention_heads", config.num_attention_heads, 1024),
        ("intermediate_size", config.intermediate_size, 65_536),
        ("max_position_embeddings", config.max_position_embeddings, 65_536),
        ("type_vocab_size", config.type_vocab_size, 1024),
    ];
    for (field, found, most) in bounds {
        if !(1..=most).contains(&found) {
            return Err(Error::corrupt(path, format!("{field} is {found}; expected 1 to {most}")));
        }
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(Error::corrupt(path, "hidden_size is no multiple of num_attention_heads"));
    }
    if config.pad_token_id >= config.vocab_size {
        return Err(Error::corrupt(path, "pad_token_id is outside the vocabulary"));
    }
    Ok(config)
}

fn tokenizer(path: &Path, config: &Config, max_tokens: usize) -> Result<Tokenizer> {
    let bytes = read(path)?;
    if bytes.len() > MAX_TOKENIZER_BYTES {
        return Err(Error::corrupt(path, "larger than 64 MiB"));
    }
    let parse = || -> std::result::Result<Tokenizer, String> {
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    };
    let tokenizer = catch_unwind(AssertUnwindSafe(parse))
        .map_err(|_| Error::corrupt(path, "cannot be parsed"))?
        .map_err(|reason| Error::corrupt(path, reason))?;
    let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
    if largest as usize >= config.vocab_size {
        return Err(Error::corrupt(
            path,
            format!("token {largest} is outside the model's vocabulary of {}", config.vocab_size),
        ));
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
        BertEncoder::load(dir.path()).unwrap_err().to_string()
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
