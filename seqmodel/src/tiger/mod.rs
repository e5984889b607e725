//! TIGER: an encoder over the codes of the history, a decoder that emits the codes of the next item.
//!
//! Paper: Rajput et al. 2023, Recommender Systems with Generative Retrieval, sec. 3.2; blocks as in T5 (Raffel et al.
//! 2020): relative position bias, RMS norms, ReLU, no scaling by the root of the head size, tied embeddings.
//! Deviations: logits are taken per level; user tokens are an option (they move ndcg, not recall, in the paper's own
//! ablation), and a request that does not say who asks is read without one.

mod batch;
mod config;
mod model;
mod packed;
mod session;

pub use batch::TigerBatch;
pub use config::TigerConfig;
pub use model::{Sample, Tiger, samples};
pub use packed::PackedTiger;
pub use session::TigerSession;
