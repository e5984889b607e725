//! Losses, each one scalar out of logits and targets.

mod cross_entropy;
mod projected;
mod sampled_softmax;

pub use cross_entropy::{cross_entropy, cross_entropy_among};
pub use projected::projected_cross_entropy;
pub use sampled_softmax::{LogQ, sampled_softmax};
