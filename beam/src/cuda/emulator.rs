//! The host's picture of a GPU: the same kernel sources, compiled by the system's C++ compiler under `emulate.hpp`.
//!
//! Slow, and exact about what a GPU leaves to chance: threads run in an order drawn from a seed, shared memory begins as
//! garbage, and writes outside of memory are noticed. It is what tests kernels where there is no GPU.

use super::device::{Device, Launch, Prepared, Program};
use super::kernels::{Numbers, host_program, kernels};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bytes before and behind every allocation that no kernel may change.
const GUARD: usize = 256;

/// What guards hold.
const MARK: u8 = 0xa5;

/// Where words of 16 bytes may begin.
const ALIGN: usize = 64;

type LaunchFn = unsafe extern "C" fn(*const u8, *const u32, u32, u64) -> *const c_char;

/// The compiled kernels for one kind of numbers.
struct Library {
    launches: HashMap<&'static str, LaunchFn>,
    /// Keeps the code in memory.
    _library: libloading::Library,
}

/// Kernels keep the state of their threads in one place, so one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A device in the memory of the host.
pub struct Emulator {
    libraries: Arc<[Library; 2]>,
    seed: u64,
    library_rows: Option<u32>,
    /// Bytes that can be allocated together.
    room: usize,
    memory: Mutex<BTreeMap<u64, Block>>,
}

/// Memory between guards.
struct Block {
    data: Box<[u8]>,
    /// Bytes in front, guard included.
    front: usize,
    bytes: usize,
}

impl Emulator {
    /// A device whose threads run in the order of `seed`. The first call compiles the kernels.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no C++ compiler, or it refuses the sources.
    pub fn new(seed: u64) -> Result<Self> {
        static LIBRARIES: OnceLock<std::result::Result<Arc<[Library; 2]>, String>> = OnceLock::new();
        let made = LIBRARIES.get_or_init(|| {
            let build = |numbers| Library::build(numbers).map_err(|e| e.to_string());
            Ok(Arc::new([build(Numbers::F32)?, build(Numbers::Bf16)?]))
        });
        let libraries = made.clone().map_err(|reason| Error::device("emulator", reason))?;
        Ok(Self { libraries, seed, library_rows: None, room: usize::MAX, memory: Mutex::default() })
    }

    /// As a device with a library, for the programs that are written for one; it computes their products itself.
    #[must_use]
    pub fn with_library_rows(self, rows: u32) -> Self {
        Self { library_rows: Some(rows), ..self }
    }

    /// As a device with so many bytes.
    #[must_use]
    pub fn with_room(self, bytes: usize) -> Self {
        Self { room: bytes, ..self }
    }

    /// Bytes that are allocated.
    pub fn taken(&self) -> usize {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.values().map(|block| block.bytes).sum()
    }

    fn check_guards(&self) -> Result<()> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let intact = |bytes: &[u8]| bytes.iter().all(|byte| *byte == MARK);
        for block in memory.values() {
            if !intact(&block.data[..block.front]) || !intact(&block.data[block.front + block.bytes..]) {
                return Err(Error::device("emulator", "a kernel wrote outside of its memory"));
            }
        }
        Ok(())
    }

    fn holds(&self, address: u64, bytes: usize) -> Result<()> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let block = memory.range(..=address).next_back();
        let room = block.map(|(start, block)| start + block.bytes as u64);
        match room {
            Some(end) if address + bytes as u64 <= end => Ok(()),
            _ => Err(Error::device("emulator", format!("a copy of {bytes} bytes outside of memory"))),
        }
    }
}

impl Library {
    fn build(numbers: Numbers) -> Result<Self> {
        let path = compile(numbers)?;
        // SAFETY: just compiled from our own sources, which run nothing when they are loaded.
        #[expect(unsafe_code, reason = "loads a library")]
        let library = unsafe { libloading::Library::new(&path) };
        let library = library.map_err(|e| Error::device("emulator", e))?;
        let mut launches = HashMap::new();
        for kernel in kernels() {
            let missing = |e| Error::device("emulator", e);
            // SAFETY: the macro KERNEL declares both symbols with these types.
            #[expect(unsafe_code, reason = "symbols of a library")]
            let (args_bytes, launch) = unsafe {
                let name = format!("args_{}", kernel.name);
                let args: libloading::Symbol<unsafe extern "C" fn() -> u32> =
                    library.get(name.as_bytes()).map_err(missing)?;
                let name = format!("launch_{}", kernel.name);
                let launch: libloading::Symbol<LaunchFn> = library.get(name.as_bytes()).map_err(missing)?;
                (args() as usize, *launch)
            };
            if args_bytes != kernel.args_bytes {
                return Err(Error::shape("arguments of a kernel", kernel.args_bytes, args_bytes));
            }
            launches.insert(kernel.name, launch);
        }
        Ok(Self { launches, _library: library })
    }
}

/// A library with all kernels, made once for each text.
fn compile(numbers: Numbers) -> Result<PathBuf> {
    let source = host_program();
    let fail = |reason: String| Error::device("emulator", reason);
    let bf16 = format!("-DBF16={}", u8::from(numbers == Numbers::Bf16));
    let native = if cfg!(target_arch = "x86_64") { "-march=native" } else { "-O1" };
    let options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w", native];
    let version = Command::new("c++").arg("--version").output();
    let version = version.map_err(|e| fail(format!("no C++ compiler `c++`: {e}")))?.stdout;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let key = [source.as_bytes(), options.concat().as_bytes(), bf16.as_bytes(), &version, flags.as_bytes()].concat();
    let key = blake3::hash(&key).to_hex();
    let dir = std::env::temp_dir();
    let library = dir.join(format!("sidrec-emulator-{}.so", &key[..24]));
    if library.is_file() {
        return Ok(library);
    }
    let stem = dir.join(format!("sidrec-emulator-{}-{}", &key[..24], std::process::id()));
    let (text, out) = (stem.with_extension("cpp"), stem.with_extension("tmp"));
    std::fs::write(&text, source).map_err(|e| fail(format!("{}: {e}", text.display())))?;
    let made = Command::new("c++").args(options).arg(&bf16).arg("-o").arg(&out).arg(&text).output();
    let made = made.map_err(|e| fail(e.to_string()))?;
    let _ = std::fs::remove_file(&text);
    if !made.status.success() {
        return Err(fail(String::from_utf8_lossy(&made.stderr).to_string()));
    }
    std::fs::rename(&out, &library).map_err(|e| fail(format!("{}: {e}", library.display())))?;
    Ok(library)
}

impl Device for Emulator {
    fn name(&self) -> String {
        format!("emulator, threads in the order of seed {}", self.seed)
    }

    fn library_rows(&self) -> Option<u32> {
        self.library_rows
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let taken = self.taken();
        if bytes > self.room.saturating_sub(taken) {
            return Err(Error::device("emulator", format!("out of memory: {bytes} bytes beside {taken}")));
        }
        let mut data = vec![0u8; bytes + 2 * GUARD + ALIGN].into_boxed_slice();
        let front = data.as_ptr().align_offset(ALIGN) + GUARD;
        data[..front].fill(MARK);
        data[front + bytes..].fill(MARK);
        let address = data.as_ptr() as u64 + front as u64;
        let block = Block { data, front, bytes };
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(address, block);
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.holds(to, bytes.len())?;
        // SAFETY: the range lies in a block that stays until it is freed.
        #[expect(unsafe_code, reason = "memory by address, as a device has it")]
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len());
        }
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.holds(from, bytes.len())?;
        self.check_guards()?;
        // SAFETY: the range lies in a block that stays until it is freed.
        #[expect(unsafe_code, reason = "memory by address, as a device has it")]
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn prepare(&self, program: &Program) -> Result<Box<dyn Prepared>> {
        let library = &self.libraries[usize::from(program.numbers == Numbers::Bf16)];
        let known = |launch: &Launch| {
            let function = library.launches.get(launch.kernel).copied();
            let function =
                function.ok_or_else(|| Error::device("emulator", format!("no kernel `{}`", launch.kernel)))?;
            Ok((function, launch.clone()))
        };
        let launches = program.launches.iter().map(known).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(Emulated { launches, seed: self.seed, _libraries: Arc::clone(&self.libraries) }))
    }
}

struct Emulated {
    launches: Vec<(LaunchFn, Launch)>,
    seed: u64,
    _libraries: Arc<[Library; 2]>,
}

impl Prepared for Emulated {
    fn run(&mut self) -> Result<()> {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, (function, launch)) in self.launches.iter().enumerate() {
            let [x, y, z] = launch.grid;
            let dims = [x, y, z, launch.threads, 1, 1];
            let seed = rqvae::mix(self.seed ^ at as u64);
            // SAFETY: as many bytes of arguments as the kernel's; what they point to is the business of whoever wrote the
            // program, as it is on a device, with guards around it.
            #[expect(unsafe_code, reason = "runs a kernel")]
            let failure = unsafe { function(launch.args.as_ptr(), dims.as_ptr(), launch.shared, seed) };
            if !failure.is_null() {
                // SAFETY: a constant text of the library, which is loaded.
                #[expect(unsafe_code, reason = "a text of a library")]
                let reason = unsafe { CStr::from_ptr(failure) }.to_string_lossy();
                return Err(Error::device("emulator", format!("{}: {reason}", launch.kernel)));
            }
        }
        Ok(())
    }
}
