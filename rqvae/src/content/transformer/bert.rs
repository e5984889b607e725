//! BERT, and RoBERTa, which counts positions from behind its padding token and knows one kind of token.
//!
//! Shapes: tokens (tokens,) of several texts -> (tokens, dim).
//! Paper: Devlin et al. 2019, BERT; Liu et al. 2019, RoBERTa.

use super::attention::{Heads, attend};
use super::math::{Activation, add_and_norm};
use super::matrix::Packed;
use super::{Scratch, Tokens, Weights, bounded, joined, lookup};
use crate::content::folder::Folder;
use crate::{Error, Result};
use serde::Deserialize;

/// The settings of a model.
#[derive(Debug, Deserialize)]
pub(in crate::content) struct Config {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    #[serde(default)]
    pad_token_id: usize,
    position_embedding_type: Option<String>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    query_key_value: Packed,
    output: Packed,
    attention_norm: Norm,
    inner: Packed,
    outer: Packed,
    norm: Norm,
}

/// A loaded model.
pub(in crate::content) struct Bert {
    config: Config,
    activation: Activation,
    words: Vec<f32>,
    /// Vectors of positions and of the first kind of token, added up.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// Names in files of the bare encoder, and in those of models with a head.
struct Names<'a> {
    weights: &'a Weights,
}

impl Names<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.get(&[name, &format!("bert.{name}"), &format!("roberta.{name}")], shape)
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let weight = self.get(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok((weight, self.get(&format!("{name}.bias"), &[outputs])?))
    }

    fn packed(&self, name: &str, outputs: usize, inputs: usize) -> Result<Packed> {
        let (weight, bias) = self.linear(name, outputs, inputs)?;
        Ok(Packed::new(&weight, inputs, Some(bias)))
    }

    fn norm(&self, name: &str, dim: usize) -> Result<Norm> {
        let get = |part: &str| self.get(&format!("{name}.{part}"), &[dim]);
        Ok(Norm { weight: get("weight")?, bias: get("bias")? })
    }
}

impl Config {
    pub(super) fn read(folder: &Folder, config_name: &str) -> Result<Self> {
        let config: Self = folder.json(config_name)?;
        bounded(
            folder,
            config_name,
            &[
                ("vocab_size", config.vocab_size, 10_000_000),
                ("hidden_size", config.hidden_size, 16_384),
                ("num_hidden_layers", config.num_hidden_layers, 256),
                ("num_attention_heads", config.num_attention_heads, 1024),
                ("intermediate_size", config.intermediate_size, 65_536),
                ("max_position_embeddings", config.max_position_embeddings, 65_536),
                ("type_vocab_size", config.type_vocab_size, 1024),
            ],
        )?;
        let corrupt = |reason: String| Error::corrupt(&folder.path(config_name), reason);
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(corrupt("hidden_size is no multiple of num_attention_heads".to_owned()));
        }
        if config.pad_token_id >= config.vocab_size {
            return Err(corrupt("pad_token_id is outside the vocabulary".to_owned()));
        }
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(corrupt(format!("position_embedding_type `{kind}` is not supported; expected `absolute`")));
        }
        if Activation::named(&config.hidden_act).is_none() {
            let found = &config.hidden_act;
            let expected = "gelu, gelu_new, gelu_pytorch_tanh or relu";
            return Err(corrupt(format!("hidden_act `{found}` is not supported; expected {expected}")));
        }
        if config.first_position() + 1 >= config.max_position_embeddings {
            return Err(corrupt("max_position_embeddings leaves no room for two tokens".to_owned()));
        }
        Ok(config)
    }

    /// RoBERTa counts positions from behind its padding token.
    fn first_position(&self) -> usize {
        let roberta = self.model_type.as_deref().is_some_and(|kind| kind != "bert");
        if roberta { self.pad_token_id + 1 } else { 0 }
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn max_tokens(&self) -> usize {
        self.max_position_embeddings - self.first_position()
    }

    pub(super) fn pad(&self) -> u32 {
        self.pad_token_id as u32
    }
}

impl Bert {
    pub(super) fn load(config: Config, weights: &Weights) -> Result<Self> {
        let names = Names { weights };
        let (dim, inner) = (config.hidden_size, config.intermediate_size);
        let words = names.get("embeddings.word_embeddings.weight", &[config.vocab_size, dim])?;
        let shape = [config.max_position_embeddings, dim];
        let mut positions = names.get("embeddings.position_embeddings.weight", &shape)?;
        let kinds = names.get("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, dim])?;
        positions.chunks_exact_mut(dim).for_each(|row| row.iter_mut().zip(&kinds).for_each(|(x, kind)| *x += kind));
        let scale = ((dim / config.num_attention_heads) as f32).powf(-0.5);
        let layer = |at: usize| -> Result<Layer> {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            let part = |part: &str| names.linear(&name(&format!("attention.self.{part}")), dim, dim);
            let (query, key, value) = (part("query")?, part("key")?, part("value")?);
            let bias = joined(query.1, &key.1, &value.1, scale);
            Ok(Layer {
                query_key_value: Packed::new(&joined(query.0, &key.0, &value.0, scale), dim, Some(bias)),
                output: names.packed(&name("attention.output.dense"), dim, dim)?,
                attention_norm: names.norm(&name("attention.output.LayerNorm"), dim)?,
                inner: names.packed(&name("intermediate.dense"), inner, dim)?,
                outer: names.packed(&name("output.dense"), dim, inner)?,
                norm: names.norm(&name("output.LayerNorm"), dim)?,
            })
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let norm = names.norm("embeddings.LayerNorm", dim)?;
        let activation = Activation::named(&config.hidden_act).unwrap_or(Activation::Gelu);
        Ok(Self { config, activation, words, positions, norm, layers })
    }

    pub(super) fn dim(&self) -> usize {
        self.config.hidden_size
    }

    pub(super) fn forward(&self, tokens: &Tokens, scratch: &mut Scratch) -> Vec<f32> {
        let (dim, epsilon) = (self.dim(), self.config.layer_norm_eps);
        let heads = Heads { count: self.config.num_attention_heads, dim: dim / self.config.num_attention_heads };
        let mut x = lookup(&self.words, dim, &tokens.ids);
        let first = self.config.first_position() as u32;
        let places: Vec<u32> =
            tokens.starts.windows(2).flat_map(|text| (0..(text[1] - text[0]) as u32).map(|at| first + at)).collect();
        let positions = lookup(&self.positions, dim, &places);
        add_and_norm(&mut x, &positions, &self.norm.weight, &self.norm.bias, epsilon);
        for layer in &self.layers {
            layer.query_key_value.product(&x, &mut scratch.projected);
            attend(&scratch.projected, &tokens.starts, heads, None, &mut scratch.attention, &mut scratch.mixed);
            layer.output.product(&scratch.mixed, &mut scratch.product);
            let norm = &layer.attention_norm;
            add_and_norm(&mut x, &scratch.product, &norm.weight, &norm.bias, epsilon);
            layer.inner.product(&x, &mut scratch.inner);
            self.activation.apply(&mut scratch.inner);
            layer.outer.product(&scratch.inner, &mut scratch.product);
            add_and_norm(&mut x, &scratch.product, &layer.norm.weight, &layer.norm.bias, epsilon);
        }
        x
    }
}
