//! Encoder and decoder joined, and the teacher-forced loss.

use super::batch::HistoryTokens;
use super::{TigerBatch, TigerConfig};
use crate::data::{History, LeaveOneOut, UserHash};
use crate::items::ItemFeatures;
use crate::loss::cross_entropy;
use crate::nn::{Block, Keys, RelativeBias, RmsNorm, dropout, embedding_sum, project};
use crate::{Error, Result};
use candle_core::Tensor;
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use rqvae::{ItemIdx, Mode, mix};

/// One training sample: what a user had seen, and what came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// At most `history_cap` items, oldest first.
    pub history: Vec<ItemIdx>,
    /// Who that user is, where it is known.
    pub user: Option<UserHash>,
    /// The item that followed.
    pub target: ItemIdx,
}

impl Sample {
    /// What the model reads.
    pub fn read(&self) -> History<'_> {
        History { items: &self.history, user: self.user }
    }
}

/// Every prefix of every training history (sliding windows, the largest free gain GRID reports).
pub fn samples(split: &LeaveOneOut, cap: usize) -> Vec<Sample> {
    let mut all = Vec::new();
    for user in 0..split.users() {
        let items = split.train(user);
        for end in 1..items.len() {
            let history = items[end.saturating_sub(cap)..end].to_vec();
            all.push(Sample { history, user: split.hash(user), target: items[end] });
        }
    }
    all
}

/// The model: immutable, its state lives in sessions.
#[derive(Debug, Clone)]
pub struct Tiger {
    config: TigerConfig,
    features: ItemFeatures,
    /// First row of each level in `tokens`; after the last level come the separator, the decoder's start token
    /// and the users.
    level_starts: Vec<u32>,
    tokens: Tensor,
    encoder_bias: RelativeBias,
    encoder: Vec<Block>,
    encoder_norm: RmsNorm,
    decoder_bias: RelativeBias,
    decoder: Vec<Block>,
    decoder_norm: RmsNorm,
}

/// Encoder output of a batch.
pub struct Encoded {
    /// (batch, seq, dim).
    pub states: Tensor,
    /// How many of the `seq` positions of each history exist.
    pub keys: Keys,
}

impl Tiger {
    /// Parameters are read from, or made by, `vb`.
    pub fn new(config: &TigerConfig, features: ItemFeatures, vb: &VarBuilder) -> Result<Self> {
        config.validate()?;
        let spec = features.spec().clone();
        let mut level_starts = vec![0];
        for level in 0..spec.len() {
            level_starts.push(level_starts[level] + spec.codes_at(level));
        }
        let rows = level_starts[spec.len()] as usize + 2 + config.user_tokens;
        let stack = |name: &str, layers, memory| {
            (0..layers)
                .map(|i| Block::new(config.attention(), config.hidden, memory, &vb.pp(format!("{name}.{i}"))))
                .collect::<candle_core::Result<Vec<_>>>()
        };
        Ok(Self {
            level_starts,
            tokens: vb.get_with_hints((rows, config.dim), "tokens", Init::Randn { mean: 0.0, stdev: 1.0 })?,
            encoder_bias: RelativeBias::new(32, 128, config.heads, true, &vb.pp("encoder_bias"))?,
            encoder: stack("encoder", config.encoder_layers, false)?,
            encoder_norm: RmsNorm::new(config.dim, &vb.pp("encoder_norm"))?,
            decoder_bias: RelativeBias::new(32, 128, config.heads, false, &vb.pp("decoder_bias"))?,
            decoder: stack("decoder", config.decoder_layers, true)?,
            decoder_norm: RmsNorm::new(config.dim, &vb.pp("decoder_norm"))?,
            config: config.clone(),
            features,
        })
    }

    /// The numbers it was made with.
    pub fn config(&self) -> &TigerConfig {
        &self.config
    }

    /// The catalogue it reads.
    pub fn features(&self) -> &ItemFeatures {
        &self.features
    }

    /// Levels per ID, suffix included.
    pub fn levels(&self) -> usize {
        self.level_starts.len() - 1
    }

    pub(crate) fn decoder(&self) -> &[Block] {
        &self.decoder
    }

    pub(crate) fn encoder(&self) -> &[Block] {
        &self.encoder
    }

    /// Of the encoder and the decoder.
    pub(crate) fn norms(&self) -> (&RmsNorm, &RmsNorm) {
        (&self.encoder_norm, &self.decoder_norm)
    }

    pub(crate) fn encoder_bias(&self) -> &RelativeBias {
        &self.encoder_bias
    }

    pub(crate) fn decoder_bias(&self) -> &RelativeBias {
        &self.decoder_bias
    }

    /// (tokens, dim).
    pub(crate) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Rows of `tokens` with the codes of `level`.
    pub(crate) fn level_rows(&self, level: usize) -> std::ops::Range<usize> {
        self.level_starts[level] as usize..self.level_starts[level + 1] as usize
    }

    /// Row of `tokens` that the decoder starts from.
    pub(crate) fn start_row(&self) -> usize {
        self.start_token() as usize
    }

    /// Most tokens of a history.
    pub(crate) fn longest(&self) -> usize {
        let user = usize::from(self.config.user_tokens > 0);
        user + self.config.history_cap * (self.levels() + usize::from(self.config.separator))
    }

    pub(super) fn start_token(&self) -> u32 {
        self.level_starts[self.levels()] + 1
    }

    pub(super) fn item_tokens(&self, item: ItemIdx) -> impl Iterator<Item = u32> {
        self.features.codes(item).iter().zip(&self.level_starts).map(|(code, start)| start + u32::from(*code))
    }

    /// Token of a user, where the model has such and it is known who it is.
    fn user_token(&self, user: Option<UserHash>) -> Option<u32> {
        // The hash is mixed anew, so that it may be one that something else was drawn by.
        let place = mix(user?.0).checked_rem(self.config.user_tokens as u64)?;
        Some(self.start_token() + 1 + place as u32)
    }

    /// Tokens of a history: its user's, then those of its newest items, oldest first.
    pub(crate) fn history_tokens(&self, history: History) -> Vec<u32> {
        let separator = self.config.separator.then_some(self.start_token() - 1);
        let newest = &history.items[history.items.len().saturating_sub(self.config.history_cap)..];
        let items = newest.iter().flat_map(|item| self.item_tokens(*item).chain(separator));
        self.user_token(history.user).into_iter().chain(items).collect()
    }

    /// Histories, which must not be empty, -> their encoder states.
    pub fn encode(&self, histories: &[History], mode: Mode) -> Result<Encoded> {
        self.encode_tokens(self.tokens_of(histories), mode)
    }

    fn encode_tokens(&self, histories: HistoryTokens, mode: Mode) -> Result<Encoded> {
        let HistoryTokens { tokens, seq, keys } = histories;
        let x = embedding_sum(&self.tokens, tokens, 1)?.reshape(((), seq, self.config.dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.encoder_bias.forward(seq, seq)?;
        for block in &self.encoder {
            x = block.forward(&x, Some(&bias), &keys, None, mode)?;
        }
        let states = dropout(&self.encoder_norm.forward(&x)?, self.config.dropout, mode)?;
        Ok(Encoded { states, keys })
    }

    /// Decoder input of one position per row: the start token at level 0, the last code after it -> (rows, 1, dim).
    pub(super) fn input(&self, level: usize, codes: &[u32]) -> Result<Tensor> {
        let ids = match level {
            0 => vec![self.start_token(); codes.len()],
            _ => codes.iter().map(|code| self.level_starts[level - 1] + code).collect(),
        };
        Ok(embedding_sum(&self.tokens, ids, 1)?.unsqueeze(1)?)
    }

    /// Bias of the newest of `keys` decoder positions -> (heads, 1, keys).
    pub(super) fn step_bias(&self, keys: usize) -> Result<Tensor> {
        Ok(self.decoder_bias.forward(1, keys)?)
    }

    /// Logits of `level` from decoder outputs: (rows, dim) -> (rows, codes of the level).
    pub(super) fn logits(&self, level: usize, x: &Tensor) -> Result<Tensor> {
        let first = self.level_starts[level] as usize;
        let count = self.level_starts[level + 1] as usize - first;
        // T5 scales by dim^-1/2 where the output is tied to the embeddings.
        let x = (self.decoder_norm.forward(x)? * (self.config.dim as f64).powf(-0.5))?;
        Ok(project(&x, &self.tokens.narrow(0, first, count)?)?)
    }

    /// Mean over samples of the summed cross-entropy of the target's codes.
    pub fn loss(&self, samples: &[&Sample], mode: Mode) -> Result<Tensor> {
        self.batch_loss(self.prepare(samples), mode)
    }

    /// The loss of what [`Tiger::prepare`] made.
    pub fn batch_loss(&self, batch: TigerBatch, mode: Mode) -> Result<Tensor> {
        let levels = self.levels();
        let memory = self.encode_tokens(batch.histories, mode)?;
        let x = embedding_sum(&self.tokens, batch.inputs, 1)?.reshape(((), levels, self.config.dim))?;
        let mut x = dropout(&x, self.config.dropout, mode)?;
        let bias = self.decoder_bias.forward(levels, levels)?;
        for block in &self.decoder {
            let kv = block.memory_keys_values(&memory.states)?;
            x = block.forward(&x, Some(&bias), &Keys::Causal, kv.as_ref().map(|kv| (kv, &memory.keys)), mode)?;
        }
        let x = dropout(&x, self.config.dropout, mode)?;
        let mut loss: Option<Tensor> = None;
        for (level, codes) in batch.targets.into_iter().enumerate() {
            let logits = self.logits(level, &x.narrow(1, level, 1)?.squeeze(1)?.contiguous()?)?;
            let term = cross_entropy(&logits, codes, self.config.label_smoothing)?;
            loss = Some(match loss {
                Some(loss) => (loss + term)?,
                None => term,
            });
        }
        loss.ok_or(Error::NoData { what: "levels" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Histories;
    use crate::nn::Parameters;
    use crate::tiger::TigerSession;
    use rqvae::{SidSpec, SidTable};
    use std::sync::Arc;

    fn tiger(user_tokens: usize) -> (Tiger, Parameters) {
        let spec = SidSpec { codebook_sizes: vec![5, 7], suffix_size: Some(2) };
        let codes = (0..60u16).flat_map(|item| [item % 5, item * 3 % 7, item / 35]).collect();
        let features = ItemFeatures::new(Arc::new(SidTable::new(spec, codes).unwrap()), None).unwrap();
        let config = TigerConfig { dim: 16, heads: 2, head_dim: 8, hidden: 24, user_tokens, ..TigerConfig::default() };
        let params = Parameters::new(3);
        (Tiger::new(&config, features, &params.builder()).unwrap(), params)
    }

    fn first_codes(model: &Tiger, user: Option<UserHash>) -> Vec<f32> {
        let items = [3, 17, 9].map(ItemIdx);
        let mut session = TigerSession::new(model, &[History { items: &items, user }]).unwrap();
        session.advance(0, &[0], &[0], &[0]).unwrap().1
    }

    #[test]
    fn users_are_told_apart_by_their_tokens_alone() {
        let (model, _) = tiger(4);
        let token = |user: u64| model.user_token(Some(UserHash(user))).unwrap();
        let first = model.level_rows(2).end as u32 + 2;
        assert!((0..100).all(|user| (first..first + 4).contains(&token(user))));
        let like = (1..100).find(|user| token(*user) == token(0)).unwrap();
        let unlike = (1..100).find(|user| token(*user) != token(0)).unwrap();
        let found = first_codes(&model, Some(UserHash(0)));
        assert_eq!(first_codes(&model, Some(UserHash(like))), found);
        assert_ne!(first_codes(&model, Some(UserHash(unlike))), found);
        // Nobody known is read without a token, and a model without tokens reads all alike.
        assert_eq!(model.history_tokens((&[ItemIdx(3)]).into()).len(), 3);
        assert_ne!(first_codes(&model, None), found);
        let (model, _) = tiger(0);
        assert_eq!(first_codes(&model, Some(UserHash(0))), first_codes(&model, None));
    }

    /// The loss of a sample is what a session gives its target, user for user, and the token of its user learns from it.
    #[test]
    fn a_user_is_the_same_in_training_and_in_search() {
        let (model, params) = tiger(4);
        let items = [3, 17, 9, 21, 40].map(ItemIdx).to_vec();
        let histories = Histories::of_users([(Some(UserHash(11)), items.clone()), (None, items)]);
        let samples = samples(&LeaveOneOut::new(&histories), 20);
        assert_eq!(samples.iter().map(|sample| sample.user).collect::<Vec<_>>()[1..3], [Some(UserHash(11)), None]);
        for sample in &samples {
            let mut session = TigerSession::new(&model, &[sample.read()]).unwrap();
            let (mut sum, mut last) = (0.0, 0);
            for (level, code) in model.features.codes(sample.target).iter().enumerate() {
                sum += session.advance(level, &[0], &[0], &[last]).unwrap().1[usize::from(*code)];
                last = u32::from(*code);
            }
            let loss = model.loss(&[sample], Mode::Eval).unwrap();
            assert!((loss.to_scalar::<f32>().unwrap() + sum).abs() < 1e-4);
            let grads = loss.backward().unwrap();
            let slope = grads.get(&params.all()["tokens"]).unwrap().abs().unwrap().sum(1).unwrap();
            let slope = slope.to_vec1::<f32>().unwrap();
            let (first, user) = (slope.len() - 4, model.user_token(sample.user).map(|token| token as usize));
            assert!((first..slope.len()).all(|row| (slope[row] > 0.0) == (Some(row) == user)));
        }
    }
}
