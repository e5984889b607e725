//! One training loop for every model.

mod average;
mod config;
mod diagnosis;
mod trainer;

pub use config::{Select, TrainConfig};
pub use diagnosis::Diagnosis;
pub use trainer::{EpochRecord, Identity, Objective, Outcome, Stop, Trainer, Validation};

#[cfg(test)]
mod tests;
