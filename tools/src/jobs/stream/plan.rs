//! The folder of an unfinished build: what is being built, who is building it, and what is done already.

use super::StreamJob;
use crate::catalogue::files_below;
use crate::error::{Fault, bad_data, cannot_create, fault};
use anyhow::{Context, Result};
use fs4::fs_std::FileExt;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

const PLAN: &str = "plan.json";

/// The folder, locked for as long as this lives.
pub(super) struct Workplace {
    pub(super) dir: PathBuf,
    _lock: File,
}

/// `a/shop` is built in `a/.shop.building`.
pub(super) fn folder_of(out: &Path) -> PathBuf {
    let name = out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    out.with_file_name(format!(".{name}.building"))
}

/// All that decides the result. A build goes on only where none of it has changed.
pub(super) fn plan_of(job: &StreamJob) -> Result<serde_json::Value> {
    let found = fs::metadata(job.items).with_context(|| job.items.display().to_string())?;
    let modified = found.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(serde_json::json!({
        "items": job.items,
        "size": found.len(),
        "modified": modified.map(|at| at.as_nanos().to_string()),
        "text": job.options.text_template,
        "encoder": job.encoder,
        "quantizer": job.quantizer,
        "fit_items": job.fit_items,
        "shard_items": job.shard_items,
    }))
}

impl Workplace {
    /// Makes the folder, or enters the one that an interrupted build left.
    ///
    /// # Errors
    /// Cannot create: there is one and `resume` is not set, or another process works there. Usage: it was begun with
    /// other settings, which are named.
    pub(super) fn enter(job: &StreamJob) -> Result<Self> {
        let dir = folder_of(job.out);
        if dir.exists() && !job.resume {
            let why = format!("an unfinished build lies in {}; go on with --resume, or remove it", dir.display());
            return Err(cannot_create(job.out, why));
        }
        for folder in ["parts", "sids"] {
            fs::create_dir_all(dir.join(folder)).map_err(|e| cannot_create(&dir, e))?;
        }
        let path = dir.join(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| cannot_create(&path, e))?;
        if !FileExt::try_lock_exclusive(&lock).map_err(|e| cannot_create(&path, e))? {
            return Err(cannot_create(job.out, "another build is at work there"));
        }
        // A build that was killed while it wrote leaves a file behind that has no name yet.
        for path in files_below(&dir)? {
            if path.extension().is_some_and(|ending| ending == "tmp") {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        let place = Self { dir, _lock: lock };
        let plan = plan_of(job)?;
        match place.read::<serde_json::Value>(PLAN)? {
            None => place.write(PLAN, &plan)?,
            Some(begun) if begun == plan => {}
            Some(begun) => {
                let keys = plan.as_object().into_iter().flat_map(serde_json::Map::keys);
                let differing: Vec<&str> = keys.filter(|key| begun[*key] != plan[*key]).map(String::as_str).collect();
                let differing = differing.join(", ");
                let message = format!("--resume: the unfinished build was begun with other settings: {differing}");
                return Err(fault(Fault::Usage, message));
            }
        }
        Ok(place)
    }

    /// A JSON file of the folder, none where there is none.
    pub(super) fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(rqvae::Error::io(&path)(e).into()),
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).map_err(|e| bad_data(format!("{}: {e}", path.display())))?))
            }
        }
    }

    /// Writes a JSON file of the folder: whatever it speaks of must be on disk before.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        Ok(rqvae::write_atomic(&self.dir.join(name), &serde_json::to_vec(value)?)?)
    }

    /// Gives the finished build, whose manifest is written, its name.
    pub(super) fn finish(self, out: &Path) -> Result<()> {
        for name in [PLAN, super::FITTED, ".lock"] {
            let path = self.dir.join(name);
            if path.exists() {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        let parts = self.dir.join("parts");
        fs::remove_dir_all(&parts).with_context(|| parts.display().to_string())?;
        if out.is_dir() {
            fs::remove_dir(out).map_err(|e| cannot_create(out, e))?;
        }
        fs::rename(&self.dir, out).map_err(|e| cannot_create(out, e))
    }
}

/// What the fit left for the parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fitted {
    /// Width of a content vector.
    pub(super) dim: usize,
    /// Items that quantiser and encoder were fitted on.
    pub(super) items: usize,
    /// Their mean vector, from which spread is measured.
    pub(super) mean: Vec<f64>,
    /// Seconds to read the table once and to fit.
    pub(super) sample_seconds: f64,
    pub(super) fit_seconds: f64,
}
