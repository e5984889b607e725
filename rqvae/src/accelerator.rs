//! A device that does the arithmetic of quantisers instead of the processor: the towers of an RQ-VAE while they are
//! trained, and the search for nearest codewords over many points.
//!
//! What is chosen there may differ from the processor's choice where two codewords are equally near but for rounding.

use crate::{Code, Result, TowerStart, Towers};

/// Where such work can be sent.
pub trait Accelerator: Send + Sync {
    /// Brings towers to the device.
    ///
    /// # Errors
    /// The device fails, or has no room.
    fn towers(&self, start: &TowerStart) -> Result<Box<dyn Towers>>;

    /// Whether a search of so many multiplications is worth sending there; what always is, is not asked about.
    fn pays(&self, multiplications: usize) -> bool;

    /// Brings points (items, `dim`) to the device.
    ///
    /// # Errors
    /// The device fails, or has no room.
    fn points(&self, points: &[f32], dim: usize) -> Result<Box<dyn DevicePoints>>;
}

/// Points (items, dim) on a device.
pub trait DevicePoints {
    /// Inner products with the rows of `columns` (count, dim): `out` becomes (items, count).
    ///
    /// # Errors
    /// The device fails, or these are not rows of that width.
    fn dots(&mut self, columns: &[f32], out: &mut [f32]) -> Result<()>;

    /// The row c of `codewords` (k, dim) with the least `norms[c] / 2 - x . c` for every point x, the first of equals:
    /// `codes` (items,).
    ///
    /// # Errors
    /// The device fails, or these are not rows of that width.
    fn nearest(&mut self, codewords: &[f32], norms: &[f32], codes: &mut [Code]) -> Result<()>;

    /// Subtracts from every point the codeword that [`DevicePoints::nearest`] found last.
    ///
    /// # Errors
    /// The device fails, or nothing was searched for yet.
    fn subtract(&mut self) -> Result<()>;

    /// Scales every point to length 1; zeros stay.
    ///
    /// # Errors
    /// The device fails.
    fn unit(&mut self) -> Result<()>;

    /// The points as they are now: (items, dim).
    ///
    /// # Errors
    /// The device fails.
    fn read(&mut self, points: &mut [f32]) -> Result<()>;
}
