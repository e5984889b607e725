//! One training loop for every model.

mod average;
mod config;
mod diagnosis;
mod record;
mod trainer;

pub use config::{OnNonFinite, Select, TrainConfig};
pub use diagnosis::Diagnosis;
pub use record::{EpochRecord, Identity, Outcome, Stop, Validation};
pub use trainer::{Objective, Trainer};

#[cfg(test)]
mod tests;
