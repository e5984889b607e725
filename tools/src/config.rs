//! A run's configuration in layers: preset, then a file, then single values, each value with its origin.

use crate::error::{Fault, bad_data, fault, input_missing};
use crate::models::RunConfig;
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use toml::{Table, Value};

/// A configuration and where each value came from.
pub struct Layers {
    values: BTreeMap<String, (Value, String)>,
}

impl Layers {
    /// Starts from a preset, which names every key there is.
    pub fn preset(config: &impl Serialize, origin: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        flatten("", &Table::try_from(config)?, &mut |key, value| {
            values.insert(key, (value.clone(), origin.to_string()));
        });
        Ok(Self { values })
    }

    /// Lays a TOML file over it.
    ///
    /// # Errors
    /// Input missing; bad data for a syntax error or an unknown key, with the nearest known one.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        if !path.is_file() {
            return Err(input_missing(path));
        }
        let text = std::fs::read_to_string(path)?;
        let table: Table = text.parse().map_err(|e| bad_data(format!("{}: {e}", path.display())))?;
        let mut found = Vec::new();
        flatten("", &table, &mut |key, value| found.push((key, value.clone())));
        for (key, value) in found {
            self.put(&key, value, &path.display().to_string())?;
        }
        Ok(())
    }

    /// Lays one `a.b=value` over it; a value that is no TOML is taken as a string.
    pub fn set(&mut self, assignment: &str, origin: &str) -> Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(fault(Fault::Usage, format!("`--set {assignment}`: expected KEY=VALUE")));
        };
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        self.put(key.trim(), parsed.unwrap_or_else(|| Value::String(value.to_string())), origin)
    }

    fn put(&mut self, key: &str, value: Value, origin: &str) -> Result<()> {
        let Some((old, _)) = self.values.get(key) else {
            let near = self
                .values
                .keys()
                .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)).then(b.cmp(a)));
            let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(fault(Fault::Usage, format!("unknown key `{key}` in {origin}{hint}")));
        };
        let value = match (old, value) {
            (Value::Float(_), Value::Integer(n)) => Value::Float(n as f64),
            (_, value) => value,
        };
        if old.type_str() != value.type_str() {
            let message = format!("key `{key}` in {origin}: expected {}, found {}", old.type_str(), value.type_str());
            return Err(fault(Fault::Usage, message));
        }
        self.values.insert(key.to_string(), (value, origin.to_string()));
        Ok(())
    }

    /// The configuration of a run, checked.
    pub fn resolve(&self) -> Result<RunConfig> {
        let config: RunConfig = self.config()?;
        config.validate().map_err(|e| fault(Fault::Usage, format!("{e:#}")))?;
        Ok(config)
    }

    /// The values as the configuration that the preset was.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        let mut root = Table::new();
        for (key, (value, _)) in &self.values {
            let mut table = &mut root;
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            for part in parts {
                let next = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
                let Value::Table(next) = next else { return Err(fault(Fault::Usage, format!("key `{key}`"))) };
                table = next;
            }
            table.insert(last.to_string(), value.clone());
        }
        root.try_into().map_err(|e| fault(Fault::Usage, e))
    }

    /// Every value with its origin, as TOML lines.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for (key, (value, origin)) in &self.values {
            let _ = writeln!(text, "{:<40} # {origin}", format!("{key} = {value}"));
        }
        text
    }
}

fn flatten(prefix: &str, table: &Table, each: &mut dyn FnMut(String, &Value)) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => flatten(&key, table, each),
            value => each(key, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_layers_win_and_unknown_keys_are_named() {
        let mut layers = Layers::preset(&RunConfig::preset("rqt", "default").unwrap(), "preset").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[train]\nbatch_size = 64\nlearning_rate = 1\n").unwrap();
        layers.file(&path).unwrap();
        layers.set("train.batch_size=32", "--set").unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.train.batch_size, config.train.learning_rate), (32, 1.0));
        assert!(layers.print().contains("train.batch_size = 32"));
        let error = layers.set("train.batchsize=3", "--set").unwrap_err().to_string();
        assert!(error.contains("did you mean `train.batch_size`"), "{error}");
        assert!(layers.set("train.batch_size=\"x\"", "--set").is_err());
        layers.set("model.dropout=2", "--set").unwrap();
        assert!(layers.resolve().is_err());
    }
}
