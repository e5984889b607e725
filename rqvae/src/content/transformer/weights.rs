//! Weights of a Hugging Face model: safetensors with 16-, 32- or 64-bit floats, read as 32-bit ones.

use crate::content::folder::Folder;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::path::PathBuf;

/// A file of weights.
pub(in crate::content) struct Weights {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Weights {
    /// Reads the file `name` of `folder`.
    ///
    /// # Errors
    /// It is missing or no safetensors file.
    pub(in crate::content) fn read(folder: &Folder, name: &str) -> Result<Self> {
        let weights = Self { path: folder.path(name), bytes: folder.read(name)? };
        weights.file()?;
        Ok(weights)
    }

    fn file(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| Error::corrupt(&self.path, e.to_string()))
    }

    /// The first tensor of these names that there is, which must have `shape`.
    ///
    /// # Errors
    /// There is none, or of another shape or kind.
    pub(in crate::content) fn get(&self, names: &[&str], shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.file()?;
        let corrupt = |reason: String| Error::corrupt(&self.path, reason);
        let found = names.iter().find_map(|name| Some((name, file.tensor(name).ok()?)));
        let Some((name, view)) = found else { return Err(corrupt(format!("tensor `{}` is missing", names[0]))) };
        if view.shape() != shape {
            return Err(corrupt(format!("tensor `{name}` has shape {:?}; expected {shape:?}", view.shape())));
        }
        let kind = DType::try_from(view.dtype()).ok().filter(DType::is_float);
        let Some(kind) = kind else {
            return Err(corrupt(format!("tensor `{name}` is {:?}; expected floating-point numbers", view.dtype())));
        };
        let tensor = Tensor::from_raw_buffer(view.data(), kind, shape, &Device::Cpu)?;
        let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(corrupt(format!("tensor `{name}` holds {} at place {at}", numbers[at])));
        }
        Ok(numbers)
    }
}
