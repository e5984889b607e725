//! Where models compute: the choice on the command line, and the one GPU of the process.

mod selftest;

pub use selftest::{SelfTest, compile_only, self_test};

use crate::error::{Fault, fault};
use anyhow::Result;
use beam::cuda::{Compiler, Device, Gpu};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DeviceChoice {
    /// The fastest that this build and machine have
    #[default]
    Auto,
    /// The processor
    Cpu,
    /// A GPU, or an error where that cannot be
    Cuda,
}

/// Where NVRTC lies, where that is not on the loader's path.
fn nvrtc() -> Option<PathBuf> {
    std::env::var_os("SIDREC_NVRTC").map(PathBuf::from)
}

/// Where compiled kernels are kept.
fn cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("sidrec").join("kernels"))
}

/// The GPU, opened once.
///
/// # Errors
/// Why there is none, in one line.
pub fn gpu() -> std::result::Result<Gpu, String> {
    static GPU: OnceLock<std::result::Result<Gpu, String>> = OnceLock::new();
    GPU.get_or_init(|| open().map_err(|e| e.to_string())).clone()
}

fn open() -> beam::Result<Gpu> {
    let gpu = Gpu::open(nvrtc().as_deref(), cache())?;
    if let Some(folder) = std::env::var_os("SIDREC_CUBLASLT") {
        gpu.use_cublaslt((!folder.is_empty()).then_some(Path::new(&folder)))?;
    }
    Ok(gpu)
}

/// A compiler of kernels, which needs no GPU.
///
/// # Errors
/// There is no NVRTC.
pub fn compiler() -> Result<Compiler> {
    Ok(Compiler::new(nvrtc().as_deref(), cache())?)
}

/// The device of a choice, `None` for the processor; says in a line why there is no GPU where one would be taken.
///
/// # Errors
/// A GPU was asked for and there is none.
pub fn device(choice: DeviceChoice) -> Result<Option<Arc<dyn Device>>> {
    if choice == DeviceChoice::Cpu {
        return Ok(None);
    }
    match gpu() {
        Ok(gpu) => {
            eprintln!("device: {}, {}", gpu.name(), gpu.arch());
            Ok(Some(Arc::new(gpu)))
        }
        Err(reason) if choice == DeviceChoice::Auto => {
            eprintln!("device: cpu ({reason})");
            Ok(None)
        }
        Err(reason) => Err(fault(Fault::Usage, format!("--device cuda: {reason}; use --device auto or cpu"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there_and_auto_never_fails() {
        assert!(device(DeviceChoice::Cpu).unwrap().is_none());
        assert!(device(DeviceChoice::Auto).is_ok());
        if let Err(reason) = gpu() {
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
            let error = device(DeviceChoice::Cuda).err().unwrap();
            assert_eq!(crate::error::exit_code(&error), 2);
            assert!(error.to_string().contains(&reason));
        }
    }
}
