//! Kernels from source to machine code by NVRTC, kept in a folder by a digest of everything that the code depends on.

use super::kernels::{Kernel, Numbers, Unit};
use super::libraries::find_nvrtc;
use crate::{Error, Result};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

/// Compiles for any device, with none in the machine.
#[derive(Debug, Clone)]
pub struct Compiler {
    version: (i32, i32),
    cache: Option<PathBuf>,
}

/// Machine code of a unit.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// For `cuModuleLoadData`.
    pub cubin: Vec<u8>,
    /// One per kernel, in the order of the unit.
    pub usage: Vec<Usage>,
    /// Whether it came from the folder.
    pub cached: bool,
}

/// What the assembler says of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Name of the kernel.
    pub kernel: String,
    /// Of a thread.
    pub registers: u32,
    /// Written to memory for want of registers, and read from there.
    pub spill_bytes: u32,
}

impl Usage {
    /// What is wrong with it, if anything is.
    pub fn complaint(&self, kernel: &Kernel) -> Option<String> {
        let budget = kernel.max_registers;
        (self.spill_bytes > 0 || self.registers > budget || self.registers == 0).then(|| {
            format!("{}: {} registers of {budget}, {} bytes spilled", self.kernel, self.registers, self.spill_bytes)
        })
    }
}

impl Compiler {
    /// A compiler with NVRTC in `folder` or on the loader's path, which keeps its results in `cache`.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no NVRTC.
    pub fn new(folder: Option<&Path>, cache: Option<PathBuf>) -> Result<Self> {
        find_nvrtc(folder).map_err(|reason| Error::device("NVRTC", reason))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and the numbers live here.
        #[expect(unsafe_code, reason = "a call of NVRTC")]
        let code = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        check(code, "nvrtcVersion")?;
        Ok(Self { version: (major, minor), cache })
    }

    /// Version of the library.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Machine code of `unit` for devices like `sm_90`.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's messages.
    pub fn compile(&self, unit: &Unit, numbers: Numbers, arch: &str) -> Result<Compiled> {
        let (source, mut options) = unit.program(numbers);
        let fixed = ["--std=c++17", "--fmad=false", "--ptxas-options=-v", "--diag-suppress=177"];
        options.extend(fixed.map(str::to_string));
        options.push(format!("--gpu-architecture={arch}"));
        let key = {
            let mut hasher = blake3::Hasher::new();
            hasher.update(source.as_bytes());
            for option in &options {
                hasher.update(&[0]).update(option.as_bytes());
            }
            hasher.update(format!("{:?}", self.version).as_bytes());
            hasher.finalize().to_hex()
        };
        let path =
            self.cache.as_ref().map(|cache| cache.join(format!("{}-{numbers}-{arch}-{}", unit.file, &key[..24])));
        if let Some(found) = path.as_deref().and_then(|path| read(path, unit)) {
            return Ok(found);
        }
        let (cubin, log) = run(unit.file, &source, &options)?;
        let usage = unit.kernels.iter().map(|kernel| parse(&log, kernel.name)).collect();
        let compiled = Compiled { cubin, usage, cached: false };
        if let Some(path) = path {
            // A folder that cannot be written only costs time.
            let _ = write(&path, &compiled);
        }
        Ok(compiled)
    }
}

/// A digest, the lines of usage, an empty line, the code.
fn write(path: &Path, compiled: &Compiled) -> std::io::Result<()> {
    let line = |usage: &Usage| format!("{} {} {}\n", usage.kernel, usage.registers, usage.spill_bytes);
    let mut body: Vec<u8> = compiled.usage.iter().map(line).collect::<String>().into_bytes();
    body.push(b'\n');
    body.extend_from_slice(&compiled.cubin);
    let mut bytes = blake3::hash(&body).as_bytes().to_vec();
    bytes.append(&mut body);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

/// `None` where there is nothing, or nothing whole.
fn read(path: &Path, unit: &Unit) -> Option<Compiled> {
    let bytes = std::fs::read(path).ok()?;
    let (digest, body) = bytes.split_at_checked(32)?;
    if blake3::hash(body).as_bytes() != digest {
        return None;
    }
    let end = body.windows(2).position(|pair| pair == b"\n\n")?;
    let line = |line: &str| {
        let mut words = line.split(' ');
        let kernel = words.next()?.to_string();
        Some(Usage { kernel, registers: words.next()?.parse().ok()?, spill_bytes: words.next()?.parse().ok()? })
    };
    let usage: Vec<_> = std::str::from_utf8(&body[..end]).ok()?.lines().map(line).collect::<Option<_>>()?;
    (usage.len() == unit.kernels.len()).then(|| Compiled { cubin: body[end + 2..].to_vec(), usage, cached: true })
}

/// What the assembler's log says of `kernel`.
fn parse(log: &str, kernel: &str) -> Usage {
    let mut usage = Usage { kernel: kernel.to_string(), ..Usage::default() };
    let mut here = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            here = rest.split('\'').next() == Some(kernel);
        }
        if !here {
            continue;
        }
        let before = |what: &str| -> Option<u32> {
            let (before, _) = line.split_once(what)?;
            before.split_whitespace().last()?.parse().ok()
        };
        usage.registers = usage.registers.max(before(" registers").unwrap_or(0));
        usage.spill_bytes += before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
    }
    usage
}

fn check(code: nvrtcResult, call: &str) -> Result<()> {
    if code == nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(Error::device("NVRTC", format!("{call}: {code:?}"))) }
}

/// A program of NVRTC, given back in any case.
struct Program(nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram and not destroyed before.
        #[expect(unsafe_code, reason = "a call of NVRTC")]
        unsafe {
            sys::nvrtcDestroyProgram(&raw mut self.0);
        }
    }
}

/// Code and log.
#[expect(unsafe_code, reason = "calls of NVRTC")]
fn run(file: &str, source: &str, options: &[String]) -> Result<(Vec<u8>, String)> {
    let c_string = |text: &str| CString::new(text).map_err(|e| Error::device("kernel source", e));
    let (source, name) = (c_string(source)?, c_string(file)?);
    let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect::<Result<_>>()?;
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: the strings end with a zero and live until the end of this function; there are no headers.
    let code = unsafe {
        let none = std::ptr::null();
        sys::nvrtcCreateProgram(&raw mut program.0, source.as_ptr(), name.as_ptr(), 0, none, none)
    };
    check(code, "nvrtcCreateProgram")?;
    // SAFETY: as many options as there are pointers, which live until the end of this function.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    let mut log = Vec::new();
    let mut size = 0;
    // SAFETY: the log is as long as NVRTC said just now.
    unsafe {
        check(sys::nvrtcGetProgramLogSize(program.0, &raw mut size), "nvrtcGetProgramLogSize")?;
        log.resize(size, 0u8);
        check(sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()), "nvrtcGetProgramLog")?;
    }
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_string();
    if compiled != nvrtcResult::NVRTC_SUCCESS {
        return Err(Error::device("kernel source", format!("{file}: {compiled:?}\n{log}")));
    }
    let mut cubin = Vec::new();
    // SAFETY: the code is as long as NVRTC said just now.
    unsafe {
        check(sys::nvrtcGetCUBINSize(program.0, &raw mut size), "nvrtcGetCUBINSize")?;
        cubin.resize(size, 0u8);
        check(sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()), "nvrtcGetCUBIN")?;
    }
    Ok((cubin, log))
}

#[cfg(test)]
mod tests {
    use super::super::kernels::UNITS;
    use super::*;

    #[test]
    fn the_assemblers_log_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'other' for 'sm_90'\n\
            ptxas info    : Function properties for other\n    \
            8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 99 registers, used 1 barriers\n\
            ptxas info    : Compiling entry function 'head' for 'sm_90'\n\
            ptxas info    : Function properties for head\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers\n";
        assert_eq!(parse(log, "head"), Usage { kernel: "head".into(), registers: 40, spill_bytes: 0 });
        let other = parse(log, "other");
        assert_eq!((other.registers, other.spill_bytes), (99, 8));
        let kernel = Kernel { name: "other", args_bytes: 8, max_registers: 128 };
        assert!(other.complaint(&kernel).unwrap().contains("8 bytes spilled"));
        assert!(parse(log, "head").complaint(&kernel).is_none());
    }

    #[test]
    fn a_damaged_file_is_compiled_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a").join("b");
        let unit = &UNITS[0];
        let usage = unit.kernels.iter().map(|k| Usage { kernel: k.name.into(), registers: 7, spill_bytes: 0 });
        let compiled = Compiled { cubin: vec![1, 2, b'\n', b'\n', 3], usage: usage.collect(), cached: false };
        write(&path, &compiled).unwrap();
        let found = read(&path, unit).unwrap();
        assert_eq!((found.cubin, found.usage, found.cached), (compiled.cubin, compiled.usage, true));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path, unit).is_none());
        assert!(read(&dir.path().join("nothing"), unit).is_none());
    }
}
