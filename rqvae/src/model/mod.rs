//! The RQ-VAE: encoder, residual quantiser and decoder, trained together.

mod averages;
mod batch;
mod config;
mod contrast;
mod diversity;
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

pub use config::RqVaeConfig;
pub use estimator::{CodebookUpdate, Estimator};
pub use quantizer::RqVaeQuantizer;
pub use rqvae::RqVae;
