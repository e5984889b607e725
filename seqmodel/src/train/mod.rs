//! One training loop for every model.

mod config;
mod trainer;

pub use config::{Select, TrainConfig};
pub use trainer::{EpochRecord, Identity, Objective, Outcome, Stop, Trainer, Validation};
