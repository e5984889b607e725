//! Models on a GPU. Decoding: weights packed for its kernels, a whole request as one program. Training: [`DeviceTrainer`].
//!
//! The twin of the packed models on the processor, which stay the reference and answer what the device path does not
//! know. With f32 numbers the scores agree to rounding; with bfloat16 to some hundredths.

mod activations;
mod generator;
mod launch;
mod model;
mod session;
#[cfg(test)]
mod tests;
mod train;
mod weights;

pub use generator::DeviceGenerator;
pub(crate) use model::HistoryParts;
pub use train::{DeviceBatch, DeviceLearner, DeviceSamples, DeviceTrainer, DeviceWindows};
