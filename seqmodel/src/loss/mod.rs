//! Losses, each one scalar out of logits and targets.

mod cross_entropy;

pub use cross_entropy::cross_entropy;
