//! The RQ-VAE: encoder, residual quantiser and decoder, trained together.

mod averages;
mod batch;
mod config;
mod contrast;
mod diversity;
mod engine;
#[cfg(test)]
mod engine_tests;
mod estimator;
mod fit;
#[cfg(test)]
mod gradient_tests;
mod mlp;
mod optim;
#[cfg(test)]
mod parity_tests;
mod pass;
mod quantizer;
mod rqvae;
mod towers;
mod twin;

pub use config::RqVaeConfig;
pub use engine::{TowerPlan, TowerStart, Towers};
pub use estimator::{CodebookUpdate, Estimator};
pub use mlp::TowerLayer;
pub use quantizer::RqVaeQuantizer;
pub use rqvae::RqVae;
pub use twin::{TowersApart, towers_apart};
