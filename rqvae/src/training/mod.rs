//! The model-free parts of training: seeded streams, the optimiser, schedules, checkpoints.

mod checkpoint;
mod optim;
mod rng;
mod schedule;

pub use checkpoint::{Checkpoint, CheckpointDir};
pub use optim::{AdamW, AdamWConfig};
pub use rng::{Mode, SeededRng, StepKeys, mix};
pub use schedule::{Decay, Schedule};
