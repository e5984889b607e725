//! Parameters by name, initialised from a seed, and their safetensors file.
//!
//! Candle's own variable map draws from a generator that cannot be seeded; this one gives every parameter a stream of
//! its own, keyed by its name, so adding a layer does not change the others.

use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use candle_nn::var_builder::SimpleBackend;
use rand::Rng;
use rqvae::SeededRng;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// All trainable tensors of a model, by their `VarBuilder` path.
#[derive(Clone)]
pub struct Parameters {
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
    seed: u64,
}

impl Parameters {
    /// No parameters yet; they are made as a model asks for them.
    pub fn new(seed: u64) -> Self {
        Self { vars: Arc::default(), seed }
    }

    /// The builder that models are made from.
    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// Parameters by name.
    pub fn all(&self) -> BTreeMap<String, Var> {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of scalar parameters.
    pub fn count(&self) -> usize {
        self.all().values().map(|v| v.elem_count()).sum()
    }

    /// A copy of all values, for the best weights so far.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.all().into_iter().map(|(name, var)| Ok((name, var.as_tensor().copy()?))).collect()
    }

    /// Sets every parameter from `tensors`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the tensor that is missing or has another shape.
    pub fn assign(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.all() {
            let tensor = tensors.get(&name).ok_or_else(|| Error::Mismatch {
                what: format!("tensor `{name}`"),
                expected: format!("shape {:?}", var.dims()),
                found: "nothing".into(),
            })?;
            if tensor.shape() != var.shape() {
                return Err(Error::Mismatch {
                    what: format!("tensor `{name}`"),
                    expected: format!("shape {:?}", var.dims()),
                    found: format!("shape {:?}", tensor.dims()),
                });
            }
            var.set(&tensor.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }
}

impl SimpleBackend for Parameters {
    fn get(&self, shape: Shape, name: &str, init: Init, _: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut vars = self.vars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(var) = vars.get(name) {
            return Ok(var.as_tensor().clone());
        }
        let mut rng = SeededRng::new(self.seed).stream(name);
        let count = shape.elem_count();
        let values: Vec<f32> = match init {
            Init::Const(value) => vec![value as f32; count],
            Init::Randn { mean, stdev } => (0..count).map(|_| (mean + stdev * normal(&mut rng)) as f32).collect(),
            Init::Uniform { lo, up } => (0..count).map(|_| rng.random_range(lo..up) as f32).collect(),
            Init::Kaiming { .. } => candle_core::bail!("`{name}`: give the standard deviation explicitly"),
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_string(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("`{name}` was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

/// A standard normal draw (Box and Muller).
fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The safetensors bytes of `tensors`.
pub fn save_parameters(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Vec<u8>> {
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    safetensors::serialize(tensors.iter().map(|(k, v)| (k.as_str(), v)), None)
        .map_err(|e| candle_core::Error::Msg(e.to_string()).into())
}

/// Tensors of a safetensors file in memory; `path` only names it in errors.
///
/// # Errors
/// [`Error::Corrupt`] when the file is damaged or holds a value that is not finite.
pub fn load_parameters(bytes: &[u8], path: &Path) -> Result<HashMap<String, Tensor>> {
    let corrupt = |reason: String| Error::Corrupt { path: path.to_path_buf(), reason };
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| corrupt(e.to_string()))?;
    let mut names: Vec<_> = tensors.keys().collect();
    names.sort();
    for name in names {
        let sum = tensors[name].to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(corrupt(format!("tensor `{name}` holds NaN or infinity")));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_depends_on_seed_and_name_only() {
        let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
        let draw = |seed, name: &str| {
            let params = Parameters::new(seed);
            params.builder().get_with_hints(4, name, normal).unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn files_round_trip_and_nan_is_refused() {
        let params = Parameters::new(0);
        params.builder().get_with_hints((2, 3), "w", Init::Const(0.5)).unwrap();
        let bytes = save_parameters(params.snapshot().unwrap()).unwrap();
        params.all()["w"].set(&Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
        params.assign(&load_parameters(&bytes, Path::new("w")).unwrap()).unwrap();
        assert_eq!(params.all()["w"].sum_all().unwrap().to_scalar::<f32>().unwrap(), 3.0);
        assert!(load_parameters(&bytes[..bytes.len() - 3], Path::new("w")).is_err());
        let nan = save_parameters([("w".into(), Tensor::new(&[f32::NAN], &Device::Cpu).unwrap())]).unwrap();
        assert!(load_parameters(&nan, Path::new("w")).is_err());
    }
}
