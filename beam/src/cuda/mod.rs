//! Search on a GPU: kernels compiled at run time, memory planned on the host, a request as one fixed program. The kernels of
//! training are here too, see [`train`], and what a device does for quantisers, see [`accelerator`].
//!
//! Rooms: [`find_gpu`] (what this machine has), [`Compiler`] (sources to machine code by NVRTC), [`UNITS`] (the kernels),
//! [`Device`] (memory and programs; [`Gpu`] is one, [`Emulator`] the host's picture of one), [`DeviceIndex`] (the
//! catalogue), [`DeviceKernel`] (the beam step, twin of [`crate::CpuKernel`]).
//!
//! Nothing here needs CUDA to be built, or to start: libraries are looked for when they are asked for.

mod accelerator;
mod args;
mod blas;
mod compile;
mod device;
mod emulator;
mod gpu;
mod guidance;
mod index;
mod kernels;
mod layout;
mod libraries;
mod nearest;
#[cfg(test)]
mod nearest_tests;
mod plan;
mod search;
#[cfg(test)]
mod tests;
mod towers;
#[cfg(test)]
mod towers_tests;
pub mod train;
pub mod twin;

pub use accelerator::{accelerator, accelerator_from};
pub use args::{
    ADD, AttendArgs, EmbedArgs, FLOATS, FeedForwardArgs, HEADS, HeadArgs, MAX_LEVELS, NORM, NormArgs, PathArgs,
    ProductArgs, RELU,
};
pub use compile::{Compiled, Compiler, Usage};
pub use device::{Device, Launch, Memory, Prepared, Program};
pub use emulator::Emulator;
pub use gpu::Gpu;
pub use guidance::{ItemScores, guide_room};
pub use index::DeviceIndex;
pub use kernels::{Kernel, Numbers, TRAIN_UNITS, UNITS, Unit};
pub use layout::Layout;
pub use libraries::{find_gpu, find_nvrtc};
pub use plan::{Plan, Region, bucket};
pub use search::{DeviceBeams, DeviceKernel, DeviceScores, Feed, MAX_WIDTH, Recorded, record};
