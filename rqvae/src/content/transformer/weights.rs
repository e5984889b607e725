//! Weights of a Hugging Face model: safetensors with 16-, 32- or 64-bit floats, read as 32-bit ones.

use crate::content::folder::Folder;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const ONE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a model, in one file or, with an index that names them, in several.
pub(in crate::content) struct Weights {
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the weights in the part `at` of `folder` (empty for the folder itself): `model.safetensors`, or else all
    /// files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// They are missing or no safetensors files.
    pub(in crate::content) fn read(folder: &Folder, at: &str) -> Result<Self> {
        let (one, index) = (format!("{at}{ONE}"), format!("{at}{INDEX}"));
        let names = if folder.has(&one) || !folder.has(&index) { vec![one] } else { shards(folder, at, &index)? };
        let read = |name: &String| Ok((folder.path(name), folder.read(name)?));
        let files: Vec<_> = names.iter().map(read).collect::<Result<_>>()?;
        files.iter().try_for_each(|file| parse(file).map(|_| ()))?;
        Ok(Self { files })
    }

    /// The first tensor of these names that there is, which must have `shape`.
    ///
    /// # Errors
    /// There is none, or of another shape or kind.
    pub(in crate::content) fn get(&self, names: &[&str], shape: &[usize]) -> Result<Vec<f32>> {
        let parsed: Vec<SafeTensors> = self.files.iter().map(parse).collect::<Result<_>>()?;
        let in_any = |name: &&str| parsed.iter().enumerate().find_map(|(at, file)| Some((at, file.tensor(name).ok()?)));
        let found = names.iter().find_map(|name| Some((name, in_any(name)?)));
        let corrupt_in = |at: usize, reason: String| Error::corrupt(&self.files[at].0, reason);
        let Some((name, (at, view))) = found else {
            let files = if parsed.len() > 1 { format!(" in all {} files", parsed.len()) } else { String::new() };
            return Err(corrupt_in(0, format!("tensor `{}` is missing{files}", names[0])));
        };
        let corrupt = |reason: String| corrupt_in(at, reason);
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

fn parse((path, bytes): &(PathBuf, Vec<u8>)) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(|e| Error::corrupt(path, e.to_string()))
}

/// Names of the files that `index` speaks of, which stand beside it.
fn shards(folder: &Folder, at: &str, index: &str) -> Result<Vec<String>> {
    let found: Index = folder.json(index)?;
    let names: BTreeSet<String> = found.weight_map.into_values().collect();
    let plain = |name: &&String| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
    if let Some(name) = names.iter().find(|name| !plain(name)) {
        return Err(Error::corrupt(&folder.path(index), format!("`{name}` is no safetensors file beside it")));
    }
    if names.is_empty() {
        return Err(Error::corrupt(&folder.path(index), "`weight_map` names no file"));
    }
    Ok(names.into_iter().map(|name| format!("{at}{name}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::fs;

    fn write(path: &std::path::Path, tensors: &[(&str, [f32; 2])]) {
        let tensor = |(name, numbers): &(&str, [f32; 2])| {
            (name.to_string(), Tensor::from_slice(numbers, 2, &Device::Cpu).unwrap())
        };
        let tensors: HashMap<String, Tensor> = tensors.iter().map(tensor).collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    #[test]
    fn weights_may_lie_in_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, path) = (Folder::new(dir.path()), |name: &str| dir.path().join(name));
        let told = |wanted: Result<Weights>| wanted.err().unwrap().to_string();
        assert!(told(Weights::read(&folder, "")).contains(ONE), "without an index one file is asked for");
        let index = |files: &str| fs::write(path(INDEX), format!("{{\"weight_map\": {{{files}}}}}")).unwrap();
        index(r#""a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-1-of-2.safetensors""#);
        write(&path("model-1-of-2.safetensors"), &[("a", [1.0, 2.0]), ("c", [5.0, f32::NAN])]);
        assert!(told(Weights::read(&folder, "")).contains("model-2-of-2.safetensors"));
        write(&path("model-2-of-2.safetensors"), &[("b", [3.0, 4.0])]);
        let weights = Weights::read(&folder, "").unwrap();
        assert_eq!(weights.get(&["x", "b"], &[2]).unwrap(), [3.0, 4.0]);
        assert_eq!(weights.get(&["a"], &[2]).unwrap(), [1.0, 2.0]);
        assert!(weights.get(&["c"], &[2]).unwrap_err().to_string().contains("model-1-of-2"));
        assert!(weights.get(&["b"], &[3]).unwrap_err().to_string().contains("model-2-of-2"));
        // Files elsewhere are not looked at.
        index(r#""a": "../other.safetensors""#);
        assert!(told(Weights::read(&folder, "")).contains("../other"));
        index("");
        assert!(told(Weights::read(&folder, "")).contains("weight_map"));
    }
}
