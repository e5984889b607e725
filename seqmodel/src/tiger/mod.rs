//! TIGER: an encoder over the codes of the history, a decoder that emits the codes of the next item.
//!
//! Paper: Rajput et al. 2023, Recommender Systems with Generative Retrieval, sec. 3.2; blocks as in T5 (Raffel et al.
//! 2020): relative position bias, RMS norms, ReLU, no scaling by the root of the head size, tied embeddings.
//! Deviations: no user token (it moves ndcg, not recall, in the paper's own ablation); logits are taken per level.

mod config;
mod model;
mod packed;
mod session;

pub use config::TigerConfig;
pub use model::{Sample, Tiger, samples};
pub use packed::PackedTiger;
pub use session::TigerSession;
