//! The encoder of T5 and mT5.
//!
//! Norms stand before each part, have no mean and no bias; scores are not scaled; a learned number for each distance of
//! key and query, in buckets that grow with the distance, is added to them, the same in every layer.
//!
//! Shapes: tokens (tokens,) of several texts -> (tokens, dim).
//! Paper: Raffel et al. 2020, T5; Ni et al. 2022, Sentence-T5 (the encoder alone, mean of the tokens).

use super::attention::{Bias, Heads, attend};
use super::math::{Activation, add, multiply, rms_norm};
use super::matrix::Packed;
use super::{Scratch, Tokens, Weights, bounded, joined, lookup};
use crate::content::folder::Folder;
use crate::{Error, Result};
use serde::Deserialize;

/// The settings of a model.
#[derive(Debug, Deserialize)]
pub(in crate::content) struct Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    #[serde(default = "max_distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f32,
    #[serde(default = "feed_forward")]
    feed_forward_proj: String,
    #[serde(default)]
    pad_token_id: usize,
}

fn max_distance() -> usize {
    128
}

fn epsilon() -> f32 {
    1e-6
}

fn feed_forward() -> String {
    "relu".to_owned()
}

struct Layer {
    attention_norm: Vec<f32>,
    query_key_value: Packed,
    output: Packed,
    norm: Vec<f32>,
    inner: Packed,
    /// Multiplies what the activation gives.
    gate: Option<Packed>,
    outer: Packed,
}

/// A loaded model.
pub(in crate::content) struct T5 {
    config: Config,
    activation: Activation,
    words: Vec<f32>,
    /// (buckets, heads)
    distances: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
}

impl Config {
    pub(super) fn read(folder: &Folder, config_name: &str) -> Result<Self> {
        let config: Self = folder.json(config_name)?;
        bounded(
            folder,
            config_name,
            &[
                ("vocab_size", config.vocab_size, 10_000_000),
                ("d_model", config.d_model, 16_384),
                ("d_kv", config.d_kv, 1024),
                ("d_ff", config.d_ff, 131_072),
                ("num_layers", config.num_layers, 256),
                ("num_heads", config.num_heads, 1024),
                ("relative_attention_num_buckets", config.relative_attention_num_buckets, 4096),
                ("relative_attention_max_distance", config.relative_attention_max_distance, 65_536),
            ],
        )?;
        let corrupt = |reason: String| Error::corrupt(&folder.path(config_name), reason);
        if config.pad_token_id >= config.vocab_size {
            return Err(corrupt("pad_token_id is outside the vocabulary".to_owned()));
        }
        // Half of the buckets is for keys behind the query, half of those for single distances.
        let exact = config.relative_attention_num_buckets / 4;
        if exact == 0 || config.relative_attention_max_distance <= exact {
            let (buckets, far) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
            return Err(corrupt(format!("{buckets} relative_attention_num_buckets do not fit a distance of {far}")));
        }
        if config.activation().is_none() {
            let kind = &config.feed_forward_proj;
            let reason = format!("feed_forward_proj `{kind}` is not supported; expected relu or gated-gelu");
            return Err(corrupt(reason));
        }
        Ok(config)
    }

    /// What stands in the feed-forward part, and whether a second product multiplies it.
    fn activation(&self) -> Option<(Activation, bool)> {
        match self.feed_forward_proj.strip_prefix("gated-") {
            // The gated GELU of T5 1.1 is the one with the hyperbolic tangent.
            Some("gelu") => Some((Activation::GeluTanh, true)),
            Some(name) => Some((Activation::named(name)?, true)),
            None => Some((Activation::named(&self.feed_forward_proj)?, false)),
        }
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    pub(super) fn pad(&self) -> u32 {
        self.pad_token_id as u32
    }
}

impl T5 {
    pub(super) fn load(config: Config, weights: &Weights) -> Result<Self> {
        let (activation, gated) = config.activation().unwrap_or((Activation::Relu, false));
        let (dim, width, inner) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let layer = |at: usize| -> Result<Layer> {
            let get = |part: &str, shape: &[usize]| weights.get(&[&format!("encoder.block.{at}.{part}")], shape);
            let linear = |part: &str, outputs: usize, inputs: usize| -> Result<Packed> {
                Ok(Packed::new(&get(part, &[outputs, inputs])?, inputs, None))
            };
            let part = |part: &str| get(&format!("layer.0.SelfAttention.{part}.weight"), &[width, dim]);
            let (query, key, value) = (part("q")?, part("k")?, part("v")?);
            let first = if gated { "wi_0" } else { "wi" };
            let gate = gated.then(|| linear("layer.1.DenseReluDense.wi_1.weight", inner, dim)).transpose()?;
            Ok(Layer {
                attention_norm: get("layer.0.layer_norm.weight", &[dim])?,
                query_key_value: Packed::new(&joined(query, &key, &value, 1.0), dim, None),
                output: linear("layer.0.SelfAttention.o.weight", dim, width)?,
                norm: get("layer.1.layer_norm.weight", &[dim])?,
                inner: linear(&format!("layer.1.DenseReluDense.{first}.weight"), inner, dim)?,
                gate,
                outer: linear("layer.1.DenseReluDense.wo.weight", dim, inner)?,
            })
        };
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let distances = weights.get(&[name], &[config.relative_attention_num_buckets, config.num_heads])?;
        let words = weights.get(&["shared.weight", "encoder.embed_tokens.weight"], &[config.vocab_size, dim])?;
        let norm = weights.get(&["encoder.final_layer_norm.weight"], &[dim])?;
        let layers = (0..config.num_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { config, activation, words, distances, layers, norm })
    }

    pub(super) fn dim(&self) -> usize {
        self.config.d_model
    }

    /// What is added to the scores of keys at most `reach` tokens away.
    fn bias(&self, reach: usize) -> Bias {
        let heads = self.config.num_heads;
        let mut table = Vec::with_capacity(heads * (2 * reach + 1));
        for head in 0..heads {
            for place in 0..=2 * reach {
                let (buckets, far) =
                    (self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance);
                let bucket = bucket(place as isize - reach as isize, buckets, far);
                table.push(self.distances[bucket * heads + head]);
            }
        }
        Bias { table, reach }
    }

    pub(super) fn forward(&self, tokens: &Tokens, scratch: &mut Scratch) -> Vec<f32> {
        let (dim, epsilon) = (self.dim(), self.config.layer_norm_epsilon);
        let heads = Heads { count: self.config.num_heads, dim: self.config.d_kv };
        let longest = tokens.starts.windows(2).map(|text| text[1] - text[0]).max().unwrap_or(1);
        let bias = self.bias(longest);
        let mut x = lookup(&self.words, dim, &tokens.ids);
        for layer in &self.layers {
            rms_norm(&x, &layer.attention_norm, epsilon, &mut scratch.normed);
            layer.query_key_value.product(&scratch.normed, &mut scratch.projected);
            attend(&scratch.projected, &tokens.starts, heads, Some(&bias), &mut scratch.attention, &mut scratch.mixed);
            layer.output.product(&scratch.mixed, &mut scratch.product);
            add(&mut x, &scratch.product);
            rms_norm(&x, &layer.norm, epsilon, &mut scratch.normed);
            layer.inner.product(&scratch.normed, &mut scratch.inner);
            self.activation.apply(&mut scratch.inner);
            if let Some(gate) = &layer.gate {
                gate.product(&scratch.normed, &mut scratch.gate);
                multiply(&mut scratch.inner, &scratch.gate);
            }
            layer.outer.product(&scratch.inner, &mut scratch.product);
            add(&mut x, &scratch.product);
        }
        rms_norm(&x, &self.norm, epsilon, &mut scratch.normed);
        scratch.normed.clone()
    }
}

/// Bucket of a key `distance` tokens behind the query: single distances first, then ever wider ones up to `far`.
fn bucket(distance: isize, buckets: usize, far: usize) -> usize {
    let half = buckets / 2;
    let side = if distance > 0 { half } else { 0 };
    let (away, exact) = (distance.unsigned_abs(), half / 2);
    if away < exact {
        return side + away;
    }
    let log = (away as f32 / exact as f32).ln() / (far as f32 / exact as f32).ln();
    side + (exact + (log * (half - exact) as f32) as usize).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// The figures of the published code for 32 buckets and a distance of 128.
    #[test]
    fn buckets_by_hand() {
        let found = [0, -1, -7, -8, -11, -12, -16, -127, -1000, 1, 7, 8, 64, 500].map(|at| bucket(at, 32, 128));
        assert_eq!(found, [0, 1, 7, 8, 8, 9, 10, 15, 15, 17, 23, 24, 30, 31]);
    }
}
