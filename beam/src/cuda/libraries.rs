//! What of CUDA this machine has, found out without starting anything that panics where it is missing.

use cudarc::driver::sys as driver;
use std::panic::catch_unwind;
use std::path::Path;

/// Why there is no GPU to compute on, in one line.
///
/// # Errors
/// The reason.
pub fn find_gpu() -> Result<(), String> {
    // SAFETY: looks for a library by its usual names and loads it; the driver's library does nothing before cuInit.
    #[expect(unsafe_code, reason = "asks the loader for a library")]
    let present = unsafe { driver::is_culib_present() };
    if !present {
        return Err("no CUDA driver (libcuda) on this machine".into());
    }
    let count = catch_unwind(|| {
        let mut count = 0;
        // SAFETY: cuInit may be called at any time, and the count goes to a number that lives here.
        #[expect(unsafe_code, reason = "calls of the driver")]
        let code = unsafe {
            match driver::cuInit(0) {
                driver::CUresult::CUDA_SUCCESS => driver::cuDeviceGetCount(&raw mut count),
                code => code,
            }
        };
        (code, count)
    });
    match count {
        Ok((driver::CUresult::CUDA_SUCCESS, 1..)) => Ok(()),
        Ok((driver::CUresult::CUDA_SUCCESS, _)) => Err("the CUDA driver finds no device".into()),
        Ok((code, _)) => Err(format!("the CUDA driver does not start: {code:?}")),
        Err(_) => Err("the CUDA driver is of an unknown kind".into()),
    }
}

/// Why kernels cannot be compiled here, in one line. `folder`, where given, is where NVRTC lies; else the loader's path.
///
/// # Errors
/// The reason.
pub fn find_nvrtc(folder: Option<&Path>) -> Result<(), String> {
    if let Some(folder) = folder {
        // Once loaded by path, a library is found by its name, and NVRTC finds its second part.
        for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            let path = folder.join(name);
            // SAFETY: NVIDIA's libraries run nothing of note when they are loaded.
            #[expect(unsafe_code, reason = "loads a library")]
            let library = unsafe { libloading::Library::new(&path) };
            match library {
                // It stays for the life of the process.
                Ok(library) => std::mem::forget(library),
                Err(e) => return Err(format!("{}: {e}", path.display())),
            }
        }
    }
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "asks the loader for a library")]
    let present = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    if present { Ok(()) } else { Err("no NVRTC library (libnvrtc.so.13) on the loader's path".into()) }
}

/// Why there is no cuBLASLt, in one line. `folder` as for [`find_nvrtc`].
///
/// # Errors
/// The reason.
pub(super) fn find_cublaslt(folder: Option<&Path>) -> Result<(), String> {
    if let Some(folder) = folder {
        let path = folder.join("libcublasLt.so.13");
        // SAFETY: NVIDIA's libraries run nothing of note when they are loaded.
        #[expect(unsafe_code, reason = "loads a library")]
        let library = unsafe { libloading::Library::new(&path) };
        // It stays for the life of the process, and is found by its name from now on.
        std::mem::forget(library.map_err(|e| format!("{}: {e}", path.display()))?);
    }
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "asks the loader for a library")]
    let present = unsafe { cudarc::cublaslt::sys::is_culib_present() };
    if present { Ok(()) } else { Err("no cuBLASLt library (libcublasLt.so.13) on the loader's path".into()) }
}
