//! The RQ-VAE: encoder, residual quantiser and decoder, trained together.

mod averages;
mod config;
mod estimator;
mod fit;
mod mlp;
mod optim;
mod quantizer;
mod rqvae;

pub use config::RqVaeConfig;
pub use estimator::{CodebookUpdate, Estimator};
pub use quantizer::RqVaeQuantizer;
pub use rqvae::RqVae;
