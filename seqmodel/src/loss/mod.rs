//! Losses, each one scalar out of logits and targets.

mod cross_entropy;
mod projected;

pub use cross_entropy::cross_entropy;
pub use projected::projected_cross_entropy;
