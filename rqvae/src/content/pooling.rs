//! What sentence-transformers does around the transformer: `modules.json`, `1_Pooling`, `sentence_bert_config.json`.

use super::bert::read;
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Longest input in tokens, whatever a folder says.
const MAX_TOKENS: usize = 256;

/// How token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    Cls,
}

/// The steps of an encoder folder.
#[derive(Debug, PartialEq)]
pub(super) struct Pipeline {
    /// Where the transformer's own files are.
    pub(super) transformer: PathBuf,
    /// How token vectors become one.
    pub(super) pooling: Pooling,
    /// Whether the result is scaled to length 1.
    pub(super) normalize: bool,
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

impl Pipeline {
    /// Reads `modules.json`; a folder without one gets mean pooling and unit length.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut pipeline =
            Self { transformer: folder.to_owned(), pooling: Pooling::Mean, normalize: true, max_tokens: MAX_TOKENS };
        let path = folder.join("modules.json");
        if path.is_file() {
            pipeline.normalize = false;
            for module in json::<Vec<Module>>(&path)? {
                let inner = folder.join(plain_name(&path, &module.path)?);
                match module.r#type.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => pipeline.transformer = inner,
                    "Pooling" => pipeline.pooling = pooling(&inner.join("config.json"))?,
                    "Normalize" => pipeline.normalize = true,
                    _ => {
                        return Err(Error::corrupt(
                            &path,
                            format!(
                                "module {} is not supported; expected Transformer, Pooling, Normalize",
                                module.r#type
                            ),
                        ));
                    }
                }
            }
        }
        let path = pipeline.transformer.join("sentence_bert_config.json");
        if path.is_file()
            && let Some(length) = json::<LengthFile>(&path)?.max_seq_length
        {
            pipeline.max_tokens = length.clamp(2, MAX_TOKENS);
        }
        Ok(pipeline)
    }
}

pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|e| Error::corrupt(path, e.to_string()))
}

/// A module's folder is one name beside `modules.json`, never a way out of the folder.
fn plain_name<'a>(path: &Path, name: &'a str) -> Result<&'a str> {
    if name.contains(['/', '\\']) || name.starts_with("..") {
        return Err(Error::corrupt(path, format!("module path `{name}` leaves the folder")));
    }
    Ok(name)
}

fn pooling(path: &Path) -> Result<Pooling> {
    // Older files switch on one of several modes, newer ones name it.
    let file: serde_json::Map<String, Value> = json(path)?;
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
        other => Err(Error::corrupt(path, format!("pooling {other:?} is not supported; expected mean or cls"))),
    }
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

    const MODULES: &str = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;

    #[test]
    fn a_bare_folder_gets_mean_pooling_and_unit_length() {
        let dir = folder(&[]);
        let pipeline = Pipeline::of(dir.path()).unwrap();
        assert_eq!(pipeline.pooling, Pooling::Mean);
        assert!(pipeline.normalize);
        assert_eq!(pipeline.max_tokens, 256);
    }

    #[test]
    fn the_modules_are_honoured() {
        let dir = folder(&[
            ("modules.json", MODULES),
            ("1_Pooling/config.json", r#"{"pooling_mode_cls_token":true}"#),
            ("sentence_bert_config.json", r#"{"max_seq_length":64}"#),
        ]);
        let pipeline = Pipeline::of(dir.path()).unwrap();
        assert_eq!(pipeline.pooling, Pooling::Cls);
        assert!(!pipeline.normalize);
        assert_eq!(pipeline.max_tokens, 64);
    }

    #[test]
    fn what_we_cannot_do_is_refused() {
        let max = r#"{"pooling_mode_max_tokens":true}"#;
        let dense = MODULES.replace("models.Pooling", "models.Dense");
        let out = MODULES.replace("\"1_Pooling\"", "\"../1_Pooling\"");
        for (modules, pooling) in [(MODULES, max), (MODULES, "{}"), (&dense, "{}"), (&out, "{}"), ("{", "{}")] {
            let dir = folder(&[("modules.json", modules), ("1_Pooling/config.json", pooling)]);
            assert!(Pipeline::of(dir.path()).is_err(), "{modules} {pooling}");
        }
        let dir = folder(&[("modules.json", MODULES)]);
        assert!(Pipeline::of(dir.path()).is_err());
    }
}
