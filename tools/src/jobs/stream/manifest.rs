//! What a table in shards says of itself: `manifest.json`, written last.

use crate::catalogue::{Collisions, Origin};
use crate::error::bad_data;
use crate::jobs::inspect::Inspection;
use crate::report::TokenizerReport;
use anyhow::Result;
use rqvae::SidSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const FORMAT: &str = "sid-shards";
pub(super) const VERSION: u32 = 1;

/// A table of IDs in shards, and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardsManifest {
    /// `sid-shards`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// Items with an ID.
    pub items: u64,
    /// Shape of the IDs.
    pub spec: SidSpec,
    /// Shards, `sids/part-00000.parquet` and so on, in the order of the IDs.
    pub shards: usize,
    /// Items that quantiser and encoder were fitted on.
    pub fit_items: usize,
    /// Rows that were unusable.
    pub rejected: u64,
    /// Rows that repeated an item.
    pub duplicates: u64,
    /// How the IDs came about.
    pub origin: Origin,
    /// The health of the IDs.
    pub health: TokenizerReport,
    /// Seconds by stage.
    pub seconds: BTreeMap<String, f64>,
    /// Most memory that the process which finished the build ever had.
    pub peak_rss_bytes: Option<u64>,
    /// BLAKE3 of every file.
    pub files: BTreeMap<String, String>,
}

impl ShardsManifest {
    /// The manifest of a folder of shards, none where the folder is something else.
    ///
    /// # Errors
    /// Bad data when it is broken or of another version.
    pub fn of(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("manifest.json");
        let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
        let wrong = |reason: String| bad_data(format!("{}: {reason}", path.display()));
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if value["format"] != FORMAT {
            return Ok(None);
        }
        if value["version"] != VERSION {
            return Err(wrong(format!("version {}, this program reads {VERSION}; build it again", value["version"])));
        }
        Ok(Some(serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?))
    }

    /// What `sids inspect` says of it.
    pub fn inspection(&self) -> Inspection {
        let collisions: Option<Collisions> = self.origin.collisions.clone();
        Inspection { tokenizer: self.health.clone(), collisions, removed: 0 }
    }
}
