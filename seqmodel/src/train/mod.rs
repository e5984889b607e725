//! One training loop for every model.

mod config;
mod trainer;

pub use config::TrainConfig;
pub use trainer::{EpochRecord, Identity, Objective, Outcome, Stop, Trainer, Validation};
