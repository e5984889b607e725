//! A device as the rest sees it: memory by address, and programs of kernels that run without asking the host.

use super::kernels::Numbers;
use crate::Result;
use bytemuck::Pod;
use std::sync::Arc;

/// One kernel with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// Arguments, packed.
    pub args: Vec<u8>,
}

impl Launch {
    /// A kernel and its arguments.
    pub fn new<A: Pod>(kernel: &'static str, grid: [u32; 3], threads: u32, shared: usize, args: &A) -> Self {
        Self { kernel, grid, threads, shared: shared as u32, args: bytemuck::bytes_of(args).to_vec() }
    }
}

/// Kernels in the order in which they run, all arguments fixed.
#[derive(Debug, Clone)]
pub struct Program {
    /// What their matrices hold.
    pub numbers: Numbers,
    /// In order; each sees what the ones before have written.
    pub launches: Vec<Launch>,
}

/// Where kernels run: a GPU, or the host's picture of one. Calls are in order, as on one stream.
pub trait Device: Send + Sync {
    /// Name and kind, for people.
    fn name(&self) -> String;

    /// Rows from which on products that nothing stands around are computed by a library, so that a norm in front is better
    /// taken apart; `None` where there is no library.
    fn library_rows(&self) -> Option<u32> {
        None
    }

    /// `bytes` bytes of zeros.
    ///
    /// # Errors
    /// There is no room.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives memory of [`Device::allocate`] back.
    fn free(&self, address: u64);

    /// Host to device.
    ///
    /// # Errors
    /// The device fails.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Device to host, after all that was asked for before.
    ///
    /// # Errors
    /// The device fails, or a kernel before did.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Fixes a program so that it can be run again and again at the least cost.
    ///
    /// # Errors
    /// A kernel is unknown or does not fit the device.
    fn prepare(&self, program: &Program) -> Result<Box<dyn Prepared>>;

    /// Runs a program that will not come again.
    ///
    /// # Errors
    /// A kernel is unknown or does not fit the device, or the device fails.
    fn run(&self, program: &Program) -> Result<()> {
        self.prepare(program)?.run()
    }
}

/// A program that a device has fixed.
pub trait Prepared: Send {
    /// Runs it after what was asked for before; the host need not wait.
    ///
    /// # Errors
    /// The device fails.
    fn run(&mut self) -> Result<()>;
}

/// Memory of a device, given back when dropped.
pub struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` bytes of zeros.
    ///
    /// # Errors
    /// There is no room.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        Ok(Self { device: Arc::clone(device), address: device.allocate(bytes.max(1))?, bytes })
    }

    /// With these contents.
    ///
    /// # Errors
    /// There is no room, or the device fails.
    pub fn with<T: Pod>(device: &Arc<dyn Device>, contents: &[T]) -> Result<Self> {
        let memory = Self::new(device, std::mem::size_of_val(contents))?;
        device.write(memory.address, bytemuck::cast_slice(contents))?;
        Ok(memory)
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}
