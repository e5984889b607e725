//! A model and the catalogue that it answers from, as one unit that is swapped as a whole.

use super::engine::{Ask, Engine, ModelEngine};
use crate::catalogue::Catalogue;
use crate::error::bad_data;
use crate::jobs::change_sids::{Changed, Extended, extend, frozen_quantizer, retire};
use crate::jobs::counts::TrainCounts;
use crate::jobs::sources::{Sources, are_several};
use crate::jobs::train;
use crate::models::{Asking, Model};
use crate::table::{ItemKeys, Items};
use anyhow::{Context, Result};
use rqvae::{CheckpointDir, ItemIdx};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Where versions are read from. `catalogue` may also be a folder with a file `current` that names one of its folders.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Run directory.
    pub run: PathBuf,
    /// Catalogue directory, or the folder that holds its versions.
    pub catalogue: PathBuf,
    /// How the model is asked.
    pub asking: Asking,
}

impl Source {
    /// The catalogue directory of now.
    pub fn catalogue_now(&self) -> Result<PathBuf> {
        let pointer = self.catalogue.join("current");
        if self.catalogue.join("manifest.json").is_file() || !pointer.is_file() {
            return Ok(self.catalogue.clone());
        }
        let name = std::fs::read_to_string(&pointer).with_context(|| pointer.display().to_string())?;
        let name = name.trim();
        let plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if name.is_empty() || !plain {
            return Err(bad_data(format!(
                "{}: expected the name of a folder beside it, found `{name}`",
                pointer.display()
            )));
        }
        Ok(self.catalogue.join(name))
    }

    /// Bytes of the files that a version is made of.
    fn bytes(&self) -> Result<u64> {
        let mut folders = vec![self.catalogue_now()?];
        let checkpoints = CheckpointDir::open(&self.run);
        if let Some(best) = checkpoints.best()?.or(checkpoints.latest()?) {
            folders.extend(best.file("model.safetensors").parent().map(Path::to_path_buf));
        }
        let mut bytes = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry?;
                let meta = entry.metadata()?;
                if meta.is_dir() { folders.push(entry.path()) } else { bytes += meta.len() }
            }
        }
        Ok(bytes)
    }

    /// Refuses to load a version beside the one that serves where the system says that there is no room for it.
    ///
    /// # Errors
    /// Twice its files, what reading and packing them takes at most, is more than the memory that is available.
    pub fn check_room(&self, available: Option<u64>) -> Result<()> {
        let need = 2 * self.bytes()?;
        match available {
            Some(available) if need > available => {
                let (need, available) = (need >> 20, available >> 20);
                Err(bad_data(format!(
                    "two versions do not fit: the next one takes up to {need} MiB, {available} MiB of memory are free"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Changes when there is something new to load: names and times of the files that say what is current.
    pub fn fingerprint(&self) -> Result<Vec<(PathBuf, Option<SystemTime>, u64)>> {
        let files = [self.catalogue_now()?.join("manifest.json"), self.run.join("best"), self.run.join("latest")];
        let stat = |path: PathBuf| {
            let meta = std::fs::metadata(&path).ok();
            let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
            (path, modified, meta.map_or(0, |meta| meta.len()))
        };
        Ok(files.into_iter().map(stat).collect())
    }
}

/// What a server answers from.
pub struct Version {
    /// Name of the model's kind.
    pub model: String,
    /// Digest of the weights.
    pub model_version: String,
    /// Digest of the IDs and of which of them are live.
    pub index_version: String,
    /// The items.
    pub catalogue: Catalogue,
    /// Where the catalogue was read from; its encoder and quantiser give new items their IDs.
    pub dir: PathBuf,
    /// Answers.
    pub engine: Box<dyn Engine>,
    /// Where it computes: `cpu`, or the name of a GPU.
    pub device: String,
    /// Newest items of a history that the model reads.
    pub history_cap: usize,
    /// Shown where there is no history, with log shares; empty where the run does not know.
    pub popular: Vec<(ItemIdx, f32)>,
    /// How often training saw each item.
    pub counts: Option<TrainCounts>,
    /// Kept to answer from the next version of the catalogue; `None` for engines that are no model.
    network: Option<Arc<Model>>,
}

/// Memory that programs may still take, where the system tells.
pub fn available_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Popular items kept for empty histories: more than any list with any exclusions needs in practice.
const POPULAR: usize = 20_000;

impl Version {
    /// Loads, verifies and warms up what `source` names now.
    ///
    /// # Errors
    /// Missing or damaged files, or a run of another catalogue.
    pub fn load(source: &Source) -> Result<Self> {
        let dir = source.catalogue_now()?;
        let catalogue = Catalogue::open(&dir)?;
        let model = train::load(&source.run, &catalogue)?.model.asked(source.asking)?;
        let counts = TrainCounts::read(&source.run, &catalogue)?;
        let checkpoints = CheckpointDir::open(&source.run);
        let weights = match checkpoints.best()? {
            Some(best) => best.file("model.safetensors"),
            None => checkpoints.latest()?.context("no checkpoint")?.file("model.safetensors"),
        };
        let digest = rqvae::file_digest(&weights)?;
        let model_version = format!("{}-{}", model.config().name(), digest.get(..12).unwrap_or(&digest));
        Self::assemble(Arc::new(model), model_version, catalogue, dir, counts)
    }

    fn assemble(
        model: Arc<Model>,
        model_version: String,
        catalogue: Catalogue,
        dir: PathBuf,
        counts: Option<TrainCounts>,
    ) -> Result<Self> {
        let is_new = counts.as_ref().map(|counts| |item| counts.get(item) == 0);
        let is_new = is_new.as_ref().map(|is_new| is_new as &dyn Fn(ItemIdx) -> bool);
        let ties = catalogue.keys.tie_hash();
        let engine = ModelEngine::new(Arc::clone(&model), &catalogue.trie, ties, &catalogue.removed, is_new)?;
        let popular = counts.as_ref().map(|counts| counts.popular(ties)).unwrap_or_default();
        let popular = popular.into_iter().filter(|(item, _)| catalogue.is_live(*item)).take(POPULAR);
        let version = Self {
            model: model.config().name().to_string(),
            model_version,
            index_version: catalogue.version(),
            popular: popular.map(|(item, share)| (item, share.ln() as f32)).collect(),
            device: model.device().map_or_else(|| "cpu".into(), |device| device.name()),
            history_cap: model.config().history_cap(),
            catalogue,
            dir,
            engine: Box::new(engine),
            counts,
            network: Some(model),
        };
        version.warm_up()?;
        Ok(version)
    }

    /// A version that answers by `engine`, which need not be a model.
    pub fn with_engine(catalogue: Catalogue, name: &str, engine: Box<dyn Engine>) -> Self {
        Self {
            model: name.to_string(),
            model_version: name.to_string(),
            index_version: catalogue.version(),
            catalogue,
            dir: PathBuf::new(),
            engine,
            device: "cpu".into(),
            history_cap: 20,
            popular: Vec::new(),
            counts: None,
            network: None,
        }
    }

    fn warm_up(&self) -> Result<()> {
        let Some(item) = self.catalogue.trie.in_order().first().copied() else {
            return Err(bad_data("the catalogue has no items that can be found"));
        };
        let ask = Ask { history: vec![item], k: 1, beam: 50, ..Ask::default() };
        self.engine.answer(&[&ask]).map_err(|error| anyhow::anyhow!("warming up: {error:?}"))?;
        Ok(())
    }

    /// Whether `item` has never been seen in training; `None` where that is not known.
    pub fn is_new(&self, item: ItemIdx) -> Option<bool> {
        self.counts.as_ref().map(|counts| counts.get(item) == 0)
    }

    /// The next version with `items`: content vectors by the catalogue's encoders or from their `embedding` column, IDs
    /// from the frozen quantiser.
    ///
    /// # Errors
    /// The catalogue was packed without encoder and quantiser, vectors are of another width, or an ID has no room left.
    pub fn with_items(&self, items: &Items) -> Result<(Self, Changed)> {
        let Some(model) = &self.network else { return Err(bad_data("this engine takes no new items")) };
        let quantizer = frozen_quantizer(&self.dir)?;
        let encoder = self.dir.join("encoder");
        let content = match &items.embeddings {
            Some(vectors) if !are_several(&encoder) => vectors.clone(),
            _ => Sources::reopen(items, &encoder, None, None, &[])?.vectors(items)?.vectors,
        };
        let Extended { catalogue, changed, .. } = extend(&self.catalogue, quantizer.as_ref(), items, &content)?;
        Ok((self.next(model, catalogue)?, changed))
    }

    /// The next version without the items called `ids`.
    ///
    /// # Errors
    /// Ids that the catalogue does not have.
    pub fn without_items(&self, ids: &ItemKeys) -> Result<(Self, Changed)> {
        let Some(model) = &self.network else { return Err(bad_data("this engine keeps its items")) };
        let (catalogue, changed) = retire(&self.catalogue, ids)?;
        Ok((self.next(model, catalogue)?, changed))
    }

    fn next(&self, model: &Model, catalogue: Catalogue) -> Result<Self> {
        let model = train::carry_over(model, &catalogue)?;
        Self::assemble(Arc::new(model), self.model_version.clone(), catalogue, self.dir.clone(), self.counts.clone())
    }
}
