//! RQ-Transformer over items: a causal transformer with one position per item, and a small decoder over the codes of
//! the next item, with a loss at every position of a history in one pass.
//!
//! Paper: Lee et al. 2022, Autoregressive Image Generation using Residual Quantization, sec. 3.2 (spatial and depth
//! transformer). Deviations: relative position bias and RMS norms as in T5; content vectors and an item embedding that
//! is dropped at random may join the codes at the input; a dense head may score whole items from the same state (as in
//! LIGER, Yang et al. 2024, sec. 3) and guide the search; codes may compete among valid continuations only.

mod batch;
mod config;
mod model;
mod packed;
mod session;

pub use batch::RqtBatch;
pub use config::RqtConfig;
pub use model::{Encoded, Rqt};
pub use packed::PackedRqt;
pub use session::RqtSession;
