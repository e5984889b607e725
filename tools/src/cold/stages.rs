//! Stages of a run of the harness: what is done is kept, so that a run that was cut goes on behind it.
//!
//! `stages/question` names what is asked; `stages/GROUP.safetensors` holds the lists of a group of methods, once they are
//! whole; `stages/MODEL/` the checkpoints of a model. A stage is never taken from another question.

use super::methods::{Method, Places};
use crate::error::cannot_create;
use anyhow::{Context, Result};
use rqvae::{Artefact, ArtefactWriter, CheckpointDir, ItemIdx};
use seqmodel::Scored;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT: &str = "cold-start-lists";
const VERSION: u32 = 1;
/// No item: a list ends before it.
const NOTHING: u32 = u32::MAX;

/// A folder of stages.
pub(super) struct Stages {
    dir: PathBuf,
}

impl Stages {
    /// In `out`, for a question with this digest.
    ///
    /// # Errors
    /// The folder holds stages of another question.
    pub(super) fn open(out: &Path, question: &str) -> Result<Self> {
        let dir = out.join("stages");
        std::fs::create_dir_all(&dir).map_err(|e| cannot_create(&dir, e))?;
        let path = dir.join("question");
        match std::fs::read_to_string(&path) {
            Ok(found) if found != question => {
                let why = "it holds stages of other data or another configuration; take a new --out";
                return Err(cannot_create(out, why));
            }
            Ok(_) => {}
            Err(_) => rqvae::write_atomic(&path, question.as_bytes())?,
        }
        Ok(Self { dir })
    }

    /// Where the checkpoints of a model go.
    pub(super) fn checkpoints(&self, model: &str) -> Result<CheckpointDir> {
        Ok(CheckpointDir::create(&self.dir.join(model))?)
    }

    /// The methods of `group`, read where they are whole, made and kept otherwise; and whether they were read.
    pub(super) fn methods(
        &self,
        group: &str,
        make: impl FnOnce() -> Result<Vec<Method>>,
    ) -> Result<(Vec<Method>, bool)> {
        let path = self.dir.join(format!("{group}.safetensors"));
        if path.is_file() {
            return Ok((read(&path)?, true));
        }
        let methods = make()?;
        write(&path, &methods)?;
        Ok((methods, false))
    }
}

fn write(path: &Path, methods: &[Method]) -> Result<()> {
    let mut writer = ArtefactWriter::new(FORMAT, VERSION);
    // Methods share lists; each is written once.
    let mut kept: Vec<*const Vec<Vec<Scored>>> = Vec::new();
    let mut names = Vec::new();
    for method in methods {
        let mut place = |lists: &Arc<Vec<Vec<Scored>>>| -> Result<usize> {
            let key = Arc::as_ptr(lists);
            if let Some(at) = kept.iter().position(|kept| *kept == key) {
                return Ok(at);
            }
            kept.push(key);
            let at = kept.len() - 1;
            let width = lists.iter().map(Vec::len).max().unwrap_or(0).max(1);
            let (mut items, mut scores) = (vec![NOTHING; lists.len() * width], vec![0f32; lists.len() * width]);
            for (row, list) in lists.iter().enumerate() {
                for (slot, scored) in list.iter().enumerate() {
                    (items[row * width + slot], scores[row * width + slot]) = (scored.item.0, scored.score);
                }
            }
            writer.u32s(&format!("{at}.items"), &[lists.len(), width], &items)?;
            writer.f32s(&format!("{at}.scores"), &[lists.len(), width], &scores)?;
            Ok(at)
        };
        let (all, unseen) = (place(&method.all)?, place(&method.unseen)?);
        let places = match method.places {
            Places::None => "none",
            Places::Slots => "slots",
            Places::Shares => "shares",
        };
        names.push((method.name.clone(), places, all, unseen));
    }
    writer.metadata("methods", &serde_json::to_string(&names)?);
    Ok(writer.write(path)?)
}

fn read(path: &Path) -> Result<Vec<Method>> {
    let file = Artefact::open(path, FORMAT, VERSION)?;
    let names: Vec<(String, String, usize, usize)> = serde_json::from_str(file.metadata("methods")?)
        .with_context(|| format!("{}: field `methods`", path.display()))?;
    let mut known: Vec<Option<Arc<Vec<Vec<Scored>>>>> = Vec::new();
    let mut lists = |at: usize| -> Result<Arc<Vec<Vec<Scored>>>> {
        if known.len() <= at {
            known.resize(at + 1, None);
        }
        if let Some(lists) = &known[at] {
            return Ok(Arc::clone(lists));
        }
        let (shape, items) = file.u32s(&format!("{at}.items"))?;
        let (_, scores) = file.f32s(&format!("{at}.scores"))?;
        let width = shape.last().copied().unwrap_or(1).max(1);
        let row = |(items, scores): (&[u32], &[f32])| -> Vec<Scored> {
            let pairs = items.iter().zip(scores).take_while(|(item, _)| **item != NOTHING);
            pairs.map(|(item, score)| Scored { item: ItemIdx(*item), score: *score }).collect()
        };
        let read = Arc::new(items.chunks(width).zip(scores.chunks(width)).map(row).collect());
        known[at] = Some(Arc::clone(&read));
        Ok(read)
    };
    let method = |(name, places, all, unseen): (String, String, usize, usize)| -> Result<Method> {
        let places = match places.as_str() {
            "none" => Places::None,
            "slots" => Places::Slots,
            "shares" => Places::Shares,
            other => anyhow::bail!("{}: method `{name}`: no places `{other}`", path.display()),
        };
        Ok(Method { name, places, all: lists(all)?, unseen: lists(unseen)? })
    };
    names.into_iter().map(method).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_read_again_and_never_for_another_question() {
        let dir = tempfile::tempdir().unwrap();
        let list = |items: &[u32]| -> Vec<Scored> {
            items.iter().map(|i| Scored { item: ItemIdx(*i), score: *i as f32 / 3.0 }).collect()
        };
        let (warm, none) = (Arc::new(vec![list(&[1, 2]), list(&[])]), Arc::new(Vec::new()));
        let unseen = Arc::new(vec![list(&[7]), list(&[8, 9, 4])]);
        let make = || {
            Ok(vec![
                Method { name: "a".into(), places: Places::None, all: Arc::clone(&warm), unseen: Arc::clone(&none) },
                Method { name: "b".into(), places: Places::Slots, all: Arc::clone(&warm), unseen: Arc::clone(&unseen) },
            ])
        };
        let stages = Stages::open(dir.path(), "q").unwrap();
        assert!(!stages.methods("g", make).unwrap().1);
        let (again, kept) = stages.methods("g", || anyhow::bail!("must not be made again")).unwrap();
        assert!(kept && again[0].name == "a" && again[1].places == Places::Slots);
        assert_eq!((&again[0].all, &again[1].unseen, again[0].unseen.len()), (&warm, &unseen, 0));
        assert!(stages.methods("h", || anyhow::bail!("failed")).is_err());
        let error = Stages::open(dir.path(), "other").err().unwrap();
        assert_eq!(crate::error::exit_code(&error), 73);
    }
}
