//! One training loop for every model.

mod average;
mod config;
mod diagnosis;
mod engine;
mod record;
mod trainer;

pub(crate) use average::average_step;
pub use config::{OnNonFinite, Select, TrainConfig};
pub use diagnosis::Diagnosis;
pub use engine::Engine;
pub use record::{EpochRecord, Identity, Outcome, Stop, Validation};
pub use trainer::{Objective, Prepared, Trainer};

#[cfg(test)]
mod tests;
