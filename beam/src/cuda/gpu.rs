//! A GPU by the driver's interface: one stream, memory that never moves, programs as captured graphs.
//!
//! All calls go through one lock, so that nothing strays into a capture; the work itself is the device's.

use super::blas::{Blas, Product, WORKSPACE};
use super::compile::Compiler;
use super::device::{Device, Launch, Prepared, Program};
use super::kernels::{Numbers, TRAIN_UNITS, UNITS, Unit};
use super::libraries::find_gpu;
use super::train::MatmulArgs;
use crate::{Error, Result};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice_attribute_enum as Attribute, CUfunction, CUfunction_attribute_enum as FunctionAttribute,
    CUgraphExec, CUmodule, CUresult, CUstream, CUstreamCaptureMode_enum as CaptureMode,
};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Rows of a product from which on it is large.
const LIBRARY_ROWS: u32 = 2048;

/// Shared memory that a block has without being asked about it.
const SHARED: u32 = 48 << 10;

/// A GPU.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    stream: CUstream,
    context: CUcontext,
    name: String,
    arch: String,
    driver: i32,
    /// Kernels for f32 and bf16.
    functions: [Mutex<HashMap<&'static str, CUfunction>>; 2],
    compiler: Compiler,
    /// What computes large products instead of our kernel, where it was asked for.
    blas: OnceLock<Blas>,
    lock: Mutex<()>,
}

// SAFETY: handles of the driver may be used from any thread that has made the context its own, which `Inner::enter` does.
#[expect(unsafe_code, reason = "handles of the driver")]
unsafe impl Send for Inner {}
// SAFETY: as above; calls go one at a time, behind the lock.
#[expect(unsafe_code, reason = "handles of the driver")]
unsafe impl Sync for Inner {}

fn check(code: CUresult, call: &'static str) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver gives a constant text or leaves null.
    #[expect(unsafe_code, reason = "a call of the driver")]
    let text = unsafe {
        let _ = sys::cuGetErrorString(code, &raw mut text);
        if text.is_null() { format!("{code:?}") } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(Error::device(call, text))
}

/// Calls the driver and turns what it says into a result.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: see the comment above the call; pointers are of things that live through it.
        #[expect(unsafe_code, reason = "a call of the driver")]
        let code = unsafe { sys::$function($($argument),*) };
        check(code, stringify!($function))
    }};
}

impl Gpu {
    /// The first GPU, with all kernels compiled for it: NVRTC from `nvrtc` or the loader's path, code kept in `cache`.
    ///
    /// # Errors
    /// [`Error::Device`] with the reason in a line.
    pub fn open(nvrtc: Option<&Path>, cache: Option<PathBuf>) -> Result<Self> {
        find_gpu().map_err(|reason| Error::device("GPU", reason))?;
        let open = || Inner::open(Compiler::new(nvrtc, cache)?);
        let opened = catch_unwind(AssertUnwindSafe(open));
        let inner = opened.map_err(|_| Error::device("GPU", "the driver or NVRTC lacks a function"))??;
        Ok(Self(Arc::new(inner)))
    }

    /// Has large products computed by cuBLASLt, from `folder` or the loader's path: those of training that are not
    /// captured, and those of decoding that have nothing around them.
    ///
    /// # Errors
    /// The library is not there, or there is no room for what it needs.
    pub fn use_cublaslt(&self, folder: Option<&Path>) -> Result<()> {
        // The library starts on the device that is this thread's, which it stays when the lock is given back.
        drop(self.0.enter()?);
        // Where one is there already it stays.
        let _ = self.0.blas.set(Blas::open(folder, || self.allocate(WORKSPACE))?);
        Ok(())
    }

    /// What kernels were compiled for, like `sm_90`.
    pub fn arch(&self) -> &str {
        &self.0.arch
    }

    /// Newest CUDA version that the driver knows, like 13000.
    pub fn driver_version(&self) -> i32 {
        self.0.driver
    }

    /// Bytes that are free, and all there are.
    ///
    /// # Errors
    /// The device fails.
    pub fn room(&self) -> Result<(usize, usize)> {
        let _entered = self.0.enter()?;
        let (mut free, mut total) = (0, 0);
        // Both numbers live here.
        driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok((free, total))
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// The device fails, or a kernel did.
    pub fn wait(&self) -> Result<()> {
        let _entered = self.0.enter()?;
        // The stream lives as long as this.
        driver!(cuStreamSynchronize(self.0.stream))
    }
}

impl Inner {
    fn open(compiler: Compiler) -> Result<Self> {
        let (mut device, mut context, mut stream, mut driver) = (0, std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // The driver has been started by `find_gpu`, and there is a first device; results go to variables of this frame.
        driver!(cuDeviceGet(&raw mut device, 0))?;
        driver!(cuDevicePrimaryCtxRetain(&raw mut context, device))?;
        driver!(cuCtxSetCurrent(context))?;
        driver!(cuDriverGetVersion(&raw mut driver))?;
        // Flag 1: a stream that does not wait for the default one.
        driver!(cuStreamCreate(&raw mut stream, 1))?;
        let mut name = [0 as c_char; 256];
        driver!(cuDeviceGetName(name.as_mut_ptr(), 256, device))?;
        // SAFETY: the driver ends the name with a zero, within the array.
        #[expect(unsafe_code, reason = "a text of the driver")]
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |attribute| {
            let mut value = 0;
            driver!(cuDeviceGetAttribute(&raw mut value, attribute, device)).map(|()| value)
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(Error::device("GPU", format!("{name} has compute capability {major}.{minor}, 8.0 is needed")));
        }
        let arch = format!("sm_{major}{minor}");
        let [f32, bf16] = Numbers::ALL.map(|numbers| load(&compiler, UNITS, numbers, &arch).map(Mutex::new));
        let functions = [f32?, bf16?];
        Ok(Self {
            stream,
            context,
            name,
            arch,
            driver,
            functions,
            compiler,
            blas: OnceLock::new(),
            lock: Mutex::new(()),
        })
    }

    /// Makes the device this thread's, alone until the guard is dropped.
    fn enter(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // The context was retained and is never released.
        driver!(cuCtxSetCurrent(self.context))?;
        Ok(guard)
    }

    /// Compiles the kernels of training when the first of them is asked for.
    fn function(&self, numbers: Numbers, kernel: &'static str) -> Result<CUfunction> {
        let functions = &self.functions[usize::from(numbers == Numbers::Bf16)];
        let mut functions = functions.lock().unwrap_or_else(PoisonError::into_inner);
        if !functions.contains_key(kernel) && kernels_of(TRAIN_UNITS).any(|known| known == kernel) {
            functions.extend(load(&self.compiler, TRAIN_UNITS, numbers, &self.arch)?);
        }
        functions.get(kernel).copied().ok_or_else(|| Error::device("GPU", format!("no kernel `{kernel}`")))
    }

    /// The kernels of a program, each allowed the shared memory that it asks for.
    fn functions(&self, program: &Program) -> Result<Vec<CUfunction>> {
        let mut functions = Vec::with_capacity(program.launches.len());
        for launch in &program.launches {
            let function = self.function(program.numbers, launch.kernel)?;
            if launch.shared > SHARED {
                let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let mut now = 0;
                driver!(cuFuncGetAttribute(&raw mut now, most, function))?;
                let allowed = driver!(cuFuncSetAttribute(function, most, now.max(launch.shared as i32)));
                let too_much = format!("kernel `{}` needs {} bytes of shared memory", launch.kernel, launch.shared);
                allowed.map_err(|e| Error::device("GPU", format!("{too_much}, more than this device has: {e}")))?;
            }
            functions.push(function);
        }
        Ok(functions)
    }

    /// Computes a product of decoding by cuBLASLt where that is there and has a way; `false` where not.
    fn plain_by_library(&self, numbers: Numbers, launch: &Launch) -> Result<bool> {
        let (Some(blas), "product_64") = (self.blas.get(), launch.kernel) else { return Ok(false) };
        let product = Product::plain(numbers, &bytemuck::pod_read_unaligned(&launch.args));
        product.map_or(Ok(false), |product| blas.product(&product, self.stream.cast()))
    }

    /// The same for a product of training.
    fn training_by_library(&self, numbers: Numbers, launch: &Launch) -> Result<bool> {
        let (Some(blas), "train_matmul") = (self.blas.get(), launch.kernel) else { return Ok(false) };
        let args: MatmulArgs = bytemuck::pod_read_unaligned(&launch.args);
        let Some(product) = Product::training(numbers, &args) else { return Ok(false) };
        if !blas.product(&product, self.stream.cast())? {
            return Ok(false);
        }
        // The whole sum is in the first of its parts; the others add nothing.
        let others = 4 * args.part_stride as usize * (launch.grid[2] as usize - 1);
        if others > 0 {
            // The parts lie one after the other in memory that the program has for them.
            driver!(cuMemsetD8Async(args.c + 4 * args.part_stride, 0, others, self.stream))?;
        }
        Ok(true)
    }

    fn launch(&self, function: CUfunction, launch: &Launch) -> Result<()> {
        let [x, y, z] = launch.grid;
        let mut arguments: [*mut c_void; 1] = [launch.args.as_ptr().cast_mut().cast()];
        // The kernel takes one argument of as many bytes as `args`, which the driver copies before it returns.
        driver!(cuLaunchKernel(
            function,
            x,
            y,
            z,
            launch.threads,
            1,
            1,
            launch.shared,
            self.stream,
            arguments.as_mut_ptr(),
            std::ptr::null_mut()
        ))
    }
}

fn kernels_of(units: &'static [Unit]) -> impl Iterator<Item = &'static str> {
    units.iter().flat_map(|unit| unit.kernels).map(|kernel| kernel.name)
}

/// Compiles and loads kernels. Modules stay for the life of the process.
fn load(
    compiler: &Compiler,
    units: &[Unit],
    numbers: Numbers,
    arch: &str,
) -> Result<HashMap<&'static str, CUfunction>> {
    let mut functions = HashMap::new();
    for unit in units {
        let compiled = compiler.compile(unit, numbers, arch)?;
        let mut module: CUmodule = std::ptr::null_mut();
        // The image is a whole ELF file, whose header says how long it is.
        driver!(cuModuleLoadData(&raw mut module, compiled.cubin.as_ptr().cast()))?;
        for kernel in unit.kernels {
            let mut function: CUfunction = std::ptr::null_mut();
            let name = CString::new(kernel.name).map_err(|e| Error::device("GPU", e))?;
            // The name ends with a zero and lives through the call.
            driver!(cuModuleGetFunction(&raw mut function, module, name.as_ptr()))?;
            functions.insert(kernel.name, function);
        }
    }
    Ok(functions)
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _entered = self.0.enter()?;
        let mut address = 0;
        // The address lives here, and the memory is at least as long as what is set.
        driver!(cuMemAlloc_v2(&raw mut address, bytes))?;
        driver!(cuMemsetD8Async(address, 0, bytes, self.0.stream))?;
        Ok(address)
    }

    fn library_rows(&self) -> Option<u32> {
        self.0.blas.get().map(|_| LIBRARY_ROWS)
    }

    fn free(&self, address: u64) {
        if let Ok(_entered) = self.0.enter() {
            // Allocated by `allocate`; the driver waits for kernels that still use it. There is no one to tell of a failure.
            let _ = driver!(cuMemFree_v2(address));
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let _entered = self.0.enter()?;
        // From ordinary memory, so that the driver has read it when it returns.
        driver!(cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.0.stream))
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let _entered = self.0.enter()?;
        // The destination lives until the stream has come to rest.
        driver!(cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), self.0.stream))?;
        driver!(cuStreamSynchronize(self.0.stream))
    }

    fn prepare(&self, program: &Program) -> Result<Box<dyn Prepared>> {
        let inner = &self.0;
        let _entered = inner.enter()?;
        let functions = inner.functions(program)?;
        // A library may load code when it is first called, which a capture does not allow. What is computed here is garbage
        // that the program computes anew.
        for launch in &program.launches {
            inner.plain_by_library(program.numbers, launch)?;
        }
        let put_down = |(function, launch): (&CUfunction, &Launch)| {
            if inner.plain_by_library(program.numbers, launch)? { Ok(()) } else { inner.launch(*function, launch) }
        };
        driver!(cuStreamBeginCapture_v2(inner.stream, CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
        let launched = functions.iter().zip(&program.launches).try_for_each(put_down);
        let mut graph = std::ptr::null_mut();
        // A capture must be ended even when a launch was refused.
        let ended = driver!(cuStreamEndCapture(inner.stream, &raw mut graph));
        launched.and(ended)?;
        let mut graph_exec = std::ptr::null_mut();
        let made = driver!(cuGraphInstantiateWithFlags(&raw mut graph_exec, graph, 0));
        driver!(cuGraphDestroy(graph))?;
        made?;
        driver!(cuGraphUpload(graph_exec, inner.stream))?;
        Ok(Box::new(Graph { gpu: self.clone(), graph: graph_exec }))
    }

    fn run(&self, program: &Program) -> Result<()> {
        let _entered = self.0.enter()?;
        let functions = self.0.functions(program)?;
        functions.iter().zip(&program.launches).try_for_each(|(function, launch)| {
            if self.0.training_by_library(program.numbers, launch)? { Ok(()) } else { self.0.launch(*function, launch) }
        })
    }
}

/// A captured program.
struct Graph {
    gpu: Gpu,
    graph: CUgraphExec,
}

// SAFETY: a handle of the driver, used behind the lock of its GPU.
#[expect(unsafe_code, reason = "handles of the driver")]
unsafe impl Send for Graph {}

impl Prepared for Graph {
    fn run(&mut self) -> Result<()> {
        let _entered = self.gpu.0.enter()?;
        // Graph and stream live as long as this; the arguments were copied when it was captured.
        driver!(cuGraphLaunch(self.graph, self.gpu.0.stream))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gpu.0.enter() {
            // The driver keeps what still runs until it has ended.
            let _ = driver!(cuGraphExecDestroy(self.graph));
        }
    }
}
