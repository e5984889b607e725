//! What a device does for quantisers: the towers of an RQ-VAE, and searches over many points.

use super::device::Device;
use super::nearest::HeldPoints;
use super::towers::DeviceTowers;
use crate::Error;
use rqvae::{Accelerator, DevicePoints, TowerStart, Towers};
use std::sync::Arc;

/// Multiplications that take a few cores a hundredth of a second, as long as it takes to ask a device.
const PAYS: usize = 1 << 28;

/// `device` as quantisers see it.
pub fn accelerator(device: &Arc<dyn Device>) -> impl Accelerator + use<> {
    DeviceAccelerator { device: Arc::clone(device), pays: PAYS }
}

/// As [`accelerator`], with work for searches of `pays` multiplications and more.
pub fn accelerator_from(device: &Arc<dyn Device>, pays: usize) -> impl Accelerator + use<> {
    DeviceAccelerator { device: Arc::clone(device), pays }
}

struct DeviceAccelerator {
    device: Arc<dyn Device>,
    pays: usize,
}

impl Accelerator for DeviceAccelerator {
    fn towers(&self, start: &TowerStart) -> rqvae::Result<Box<dyn Towers>> {
        Ok(Box::new(DeviceTowers::new(&self.device, start).map_err(below)?))
    }

    fn pays(&self, multiplications: usize) -> bool {
        multiplications >= self.pays
    }

    fn points(&self, points: &[f32], dim: usize) -> rqvae::Result<Box<dyn DevicePoints>> {
        Ok(Box::new(HeldPoints::new(&self.device, points, dim).map_err(below)?))
    }
}

/// An error as the floor below tells it.
pub(super) fn below(error: Error) -> rqvae::Error {
    match error {
        Error::Rqvae(error) => error,
        other => rqvae::Error::Device { reason: other.to_string() },
    }
}
