//! Decoding on a GPU: weights packed for its kernels, a whole request as one program.
//!
//! The twin of the packed models on the processor, which stay the reference and answer what the device path does not
//! know. With f32 numbers the scores agree to rounding; with bfloat16 to some hundredths.

mod generator;
mod launch;
mod model;
mod session;
#[cfg(test)]
mod tests;
mod weights;

pub use generator::DeviceGenerator;
pub(crate) use model::HistoryParts;
