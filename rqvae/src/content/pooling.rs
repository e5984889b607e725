//! What sentence-transformers does around the transformer: `modules.json`, pooling, dense layers, unit length, and the
//! longest input in `sentence_bert_config.json`.

use super::folder::Folder;
use super::normalize;
use super::transformer::Weights;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// Longest input in tokens, whatever a folder says.
const MAX_TOKENS: usize = 256;

/// How token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    Cls,
    /// The largest number of each dimension.
    Max,
}

impl Pooling {
    /// Token vectors of one text (tokens, dim) -> (dim,).
    pub(super) fn pool(self, tokens: &[f32], dim: usize) -> Vec<f32> {
        let mut pooled = tokens[..dim].to_vec();
        match self {
            Self::Cls => {}
            Self::Mean => {
                let mut rows = tokens.chunks_exact(dim);
                let count = rows.len() as f32;
                rows.by_ref().skip(1).for_each(|row| pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
                pooled.iter_mut().for_each(|sum| *sum /= count);
            }
            Self::Max => tokens
                .chunks_exact(dim)
                .for_each(|row| pooled.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x))),
        }
        pooled
    }
}

/// A step behind pooling.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// A linear layer (outputs, inputs) with a bias (outputs,), and a hyperbolic tangent behind it or nothing.
    Dense { weight: Vec<f32>, bias: Vec<f32>, tanh: bool },
    /// Length 1.
    Normalize,
}

/// The steps of an encoder folder.
#[derive(Debug, PartialEq)]
pub(super) struct Pipeline {
    /// Where the transformer's own files are: empty, or a name with a slash behind it.
    pub(super) transformer: String,
    /// How token vectors become one.
    pub(super) pooling: Pooling,
    /// What is done with it.
    pub(super) steps: Vec<Step>,
    /// Longest input in tokens.
    pub(super) max_tokens: usize,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

#[derive(Deserialize)]
struct LengthFile {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct DenseFile {
    in_features: usize,
    out_features: usize,
    #[serde(default = "with_bias")]
    bias: bool,
    #[serde(default)]
    activation_function: String,
}

fn with_bias() -> bool {
    true
}

impl Pipeline {
    /// Reads `modules.json`; a folder without one gets mean pooling and unit length.
    pub(super) fn of(folder: &Folder) -> Result<Self> {
        const MODULES: &str = "modules.json";
        let mut pipeline = Self {
            transformer: String::new(),
            pooling: Pooling::Mean,
            steps: vec![Step::Normalize],
            max_tokens: MAX_TOKENS,
        };
        if folder.has(MODULES) {
            pipeline.steps.clear();
            for module in folder.json::<Vec<Module>>(MODULES)? {
                let inner = part(folder, &module.path)?;
                match module.r#type.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => pipeline.transformer = inner,
                    "Pooling" => pipeline.pooling = pooling(folder, &format!("{inner}config.json"))?,
                    "Dense" => pipeline.steps.push(dense(folder, &inner)?),
                    "Normalize" => pipeline.steps.push(Step::Normalize),
                    _ => {
                        let found = &module.r#type;
                        let expected = "expected Transformer, Pooling, Dense, Normalize";
                        let reason = format!("module {found} is not supported; {expected}");
                        return Err(Error::corrupt(&folder.path(MODULES), reason));
                    }
                }
            }
        }
        let name = format!("{}sentence_bert_config.json", pipeline.transformer);
        if folder.has(&name)
            && let Some(length) = folder.json::<LengthFile>(&name)?.max_seq_length
        {
            pipeline.max_tokens = length.clamp(2, MAX_TOKENS);
        }
        Ok(pipeline)
    }

    /// Width of the result where token vectors have `dim` numbers.
    ///
    /// # Errors
    /// A dense layer expects another width than it gets.
    pub(super) fn dim(&self, folder: &Folder, dim: usize) -> Result<usize> {
        self.steps.iter().try_fold(dim, |dim, step| match step {
            Step::Normalize => Ok(dim),
            Step::Dense { weight, bias, .. } if weight.len() == bias.len() * dim => Ok(bias.len()),
            Step::Dense { weight, bias, .. } => Err(Error::corrupt(
                &folder.path("modules.json"),
                format!(
                    "a dense layer reads {} numbers, the step before gives {dim}",
                    weight.len() / bias.len().max(1)
                ),
            )),
        })
    }

    /// Token vectors of one text (tokens, dim) -> its vector.
    pub(super) fn finish(&self, tokens: &[f32], dim: usize) -> Vec<f32> {
        let mut x = self.pooling.pool(tokens, dim);
        for step in &self.steps {
            match step {
                Step::Normalize => normalize(&mut x),
                Step::Dense { weight, bias, tanh } => {
                    let dot = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
                    let sums = weight.chunks_exact(x.len()).zip(bias).map(|(row, bias)| dot(row) + bias);
                    x = sums.map(|sum| if *tanh { sum.tanh() } else { sum }).collect();
                }
            }
        }
        x
    }
}

/// A module's folder is one name beside `modules.json`, never a way out of the folder.
fn part(folder: &Folder, name: &str) -> Result<String> {
    if name.contains(['/', '\\']) || name.starts_with("..") {
        let reason = format!("module path `{name}` leaves the folder");
        return Err(Error::corrupt(&folder.path("modules.json"), reason));
    }
    Ok(if name.is_empty() { String::new() } else { format!("{name}/") })
}

fn pooling(folder: &Folder, name: &str) -> Result<Pooling> {
    // Older files switch on one of several modes, newer ones name it.
    let file: serde_json::Map<String, Value> = folder.json(name)?;
    let modes: Vec<&str> = file
        .iter()
        .filter_map(|(key, value)| match key.strip_prefix("pooling_mode") {
            Some("") => value.as_str(),
            Some(mode) if value == &Value::Bool(true) => Some(mode.trim_matches('_')),
            _ => None,
        })
        .collect();
    match modes.as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        ["max" | "max_tokens"] => Ok(Pooling::Max),
        other => {
            let reason = format!("pooling {other:?} is not supported; expected mean, cls or max");
            Err(Error::corrupt(&folder.path(name), reason))
        }
    }
}

fn dense(folder: &Folder, at: &str) -> Result<Step> {
    let name = format!("{at}config.json");
    let config: DenseFile = folder.json(&name)?;
    let corrupt = |reason: String| Error::corrupt(&folder.path(&name), reason);
    let (inputs, outputs) = (config.in_features, config.out_features);
    for (field, found) in [("in_features", inputs), ("out_features", outputs)] {
        if !(1..=16_384).contains(&found) {
            return Err(corrupt(format!("{field} is {found}; expected 1 to 16384")));
        }
    }
    let tanh = match config.activation_function.rsplit('.').next().unwrap_or_default() {
        "" | "Identity" => false,
        "Tanh" => true,
        other => {
            return Err(corrupt(format!("activation_function `{other}` is not supported; expected Identity or Tanh")));
        }
    };
    let weights = Weights::read(folder, at)?;
    let weight = weights.get(&["linear.weight"], &[outputs, inputs])?;
    let bias = if config.bias { weights.get(&["linear.bias"], &[outputs])? } else { vec![0.0; outputs] };
    Ok(Step::Dense { weight, bias, tanh })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn pipeline(dir: &tempfile::TempDir) -> Result<Pipeline> {
        Pipeline::of(&Folder::new(dir.path()))
    }

    const MODULES: &str = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

    #[test]
    fn a_bare_folder_gets_mean_pooling_and_unit_length() {
        let pipeline = pipeline(&folder(&[])).unwrap();
        assert_eq!((pipeline.pooling, pipeline.max_tokens), (Pooling::Mean, 256));
        assert_eq!(pipeline.steps, [Step::Normalize]);
    }

    #[test]
    fn the_modules_are_honoured() {
        let dir = folder(&[
            ("modules.json", MODULES),
            ("1_Pooling/config.json", r#"{"pooling_mode_cls_token":true}"#),
            ("sentence_bert_config.json", r#"{"max_seq_length":64}"#),
        ]);
        let pipeline = pipeline(&dir).unwrap();
        assert_eq!((pipeline.pooling, pipeline.max_tokens), (Pooling::Cls, 64));
        assert!(pipeline.steps.is_empty());
    }

    #[test]
    fn steps_on_paper() {
        let tokens = [3.0, 0.0, 1.0, -4.0];
        assert_eq!(Pooling::Mean.pool(&tokens, 2), [2.0, -2.0]);
        assert_eq!(Pooling::Cls.pool(&tokens, 2), [3.0, 0.0]);
        assert_eq!(Pooling::Max.pool(&tokens, 2), [3.0, 0.0]);
        let dense = |tanh| Step::Dense { weight: vec![1.0, 1.0, 0.5, 0.0, 0.0, 2.0], bias: vec![0.0, 0.0, 1.0], tanh };
        let mut pipeline =
            Pipeline { transformer: String::new(), pooling: Pooling::Mean, steps: vec![dense(false)], max_tokens: 9 };
        assert_eq!(pipeline.finish(&tokens, 2), [0.0, 1.0, -3.0]);
        pipeline.steps = vec![dense(true), Step::Normalize];
        let found = pipeline.finish(&tokens, 2);
        assert!((found[1] / found[2] - 1f32.tanh() / (-3f32).tanh()).abs() < 1e-6, "{found:?}");
        assert!((found.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
        let dir = folder(&[]);
        let folder = Folder::new(dir.path());
        assert_eq!(pipeline.dim(&folder, 2).unwrap(), 3);
        assert!(pipeline.dim(&folder, 3).unwrap_err().to_string().contains("reads 2 numbers"));
    }

    #[test]
    fn what_we_cannot_do_is_refused() {
        let last = r#"{"pooling_mode_lasttoken":true}"#;
        let other = MODULES.replace("models.Pooling", "models.WeightedLayerPooling");
        let dense = MODULES.replace("models.Pooling", "models.Dense");
        let out = MODULES.replace("\"1_Pooling\"", "\"../1_Pooling\"");
        let (relu, huge) = (
            r#"{"in_features":2,"out_features":2,"activation_function":"torch.nn.ReLU"}"#,
            r#"{"in_features":2,"out_features":99999999}"#,
        );
        for (modules, config) in [
            (MODULES, last),
            (MODULES, "{}"),
            (&other, "{}"),
            (&out, "{}"),
            ("{", "{}"),
            (&dense, relu),
            (&dense, huge),
            (&dense, r#"{"in_features":2,"out_features":2}"#),
        ] {
            let dir = folder(&[("modules.json", modules), ("1_Pooling/config.json", config)]);
            assert!(pipeline(&dir).is_err(), "{modules} {config}");
        }
        assert!(pipeline(&folder(&[("modules.json", MODULES)])).is_err());
    }
}
