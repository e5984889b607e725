//! Checkpoint directories: complete or invisible.
//!
//! A checkpoint is written into a temporary sibling folder, file by file with `fsync`, its manifest (sizes and BLAKE3
//! digests) last; the folder is renamed into place and the pointers `latest` and `best` are replaced by rename. A kill
//! at any moment leaves the previous checkpoint readable. The one before the newest is kept as well, for the case that the
//! disk or somebody damages the newest.

use crate::{Error, Result, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
const FORMAT: &str = "sidrec-checkpoint";
const MANIFEST: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// A folder of checkpoints `step-000012000/` with the pointers `latest` and `best`.
#[derive(Debug, Clone)]
pub struct CheckpointDir {
    root: PathBuf,
}

/// One complete checkpoint whose files have been verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
}

impl CheckpointDir {
    /// Creates `root` where needed and removes what a killed writer left behind.
    pub fn create(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io(root))?;
        for entry in fs::read_dir(root).map_err(Error::io(root))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// An existing folder, read only.
    pub fn open(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a checkpoint, points `latest` (and `best`) to it, then deletes older ones that nothing points to, but for the
    /// newest of them.
    ///
    /// A complete checkpoint of the same step stays as it is: a run resumed and cut at once is where it was.
    pub fn save(&self, step: u64, files: &[(&str, Vec<u8>)], best: bool) -> Result<()> {
        self.save_through(step, files, best, &mut |_| Ok(()))
    }

    /// As [`CheckpointDir::save`], asking `before` ahead of each change on the disk; an error of it is one of the disk.
    fn save_through(
        &self,
        step: u64,
        files: &[(&str, Vec<u8>)],
        best: bool,
        before: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut ask = |what: &str| before(what).map_err(Error::io(&self.root));
        let name = format!("step-{step:09}");
        let (temporary, target) = (self.root.join(format!(".tmp-{name}")), self.root.join(&name));
        if temporary.exists() {
            ask("remove temporary folder")?;
            fs::remove_dir_all(&temporary).map_err(Error::io(&temporary))?;
        }
        if Checkpoint::open(&target).is_err() {
            ask("create temporary folder")?;
            fs::create_dir(&temporary).map_err(Error::io(&temporary))?;
            let mut manifest = Manifest { format: FORMAT.into(), version: VERSION, files: BTreeMap::new() };
            for (file, bytes) in files {
                ask("write file")?;
                write_synced(&temporary.join(file), bytes)?;
                let entry = Entry { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() };
                manifest.files.insert((*file).to_string(), entry);
            }
            let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::corrupt(&temporary, e))?;
            ask("write manifest")?;
            write_synced(&temporary.join(MANIFEST), &manifest)?;
            ask("sync temporary folder")?;
            sync_dir(&temporary)?;
            if target.exists() {
                ask("remove damaged checkpoint")?;
                fs::remove_dir_all(&target).map_err(Error::io(&target))?;
            }
            ask("rename")?;
            fs::rename(&temporary, &target).map_err(Error::io(&target))?;
            ask("sync folder")?;
            sync_dir(&self.root)?;
        }
        if best {
            ask("point best")?;
            write_atomic(&self.root.join("best"), name.as_bytes())?;
        }
        ask("point latest")?;
        write_atomic(&self.root.join("latest"), name.as_bytes())?;
        ask("delete old checkpoints")?;
        self.prune()
    }

    fn prune(&self) -> Result<()> {
        let latest = self.pointer("latest")?;
        let step = latest.as_deref().and_then(step_of);
        let before = self.steps()?.into_iter().rfind(|(found, _)| Some(*found) < step).map(|(_, name)| name);
        let keep = [latest, before, self.pointer("best")?];
        for (_, name) in self.steps()? {
            if !keep.iter().flatten().any(|k| *k == name) {
                let path = self.root.join(name);
                fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    /// Steps and names of all checkpoints, whole or not, oldest first.
    fn steps(&self) -> Result<Vec<(u64, String)>> {
        let entries = fs::read_dir(&self.root).map_err(Error::io(&self.root))?.flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut steps: Vec<_> = names.filter_map(|name| Some((step_of(&name)?, name))).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Points `latest` to the newest whole checkpoint where the one it names is torn or edited, so that a run can go on
    /// from there; -> what is wrong with each that was passed over, newest first, nothing where `latest` is whole.
    ///
    /// # Errors
    /// What is wrong with the newest where none is whole; what is wrong with the best one, where it is older than the one
    /// to go on from: no step to come would write it again.
    pub fn recover(&self) -> Result<Vec<Error>> {
        let mut refused = match self.latest() {
            Ok(None) => return Ok(Vec::new()),
            Ok(Some(_)) => Vec::new(),
            Err(error) => vec![error],
        };
        if !refused.is_empty() {
            // Newer ones are left aside: their pointers may not have been moved yet when their writer ended.
            let named = self.pointer("latest").ok().flatten().as_deref().and_then(step_of).unwrap_or(u64::MAX);
            let mut whole = None;
            for (_, name) in self.steps()?.into_iter().rev().filter(|(step, _)| *step < named) {
                match Checkpoint::open(&self.root.join(&name)) {
                    Ok(_) => {
                        whole = Some(name);
                        break;
                    }
                    Err(error) => refused.push(error),
                }
            }
            let Some(name) = whole else { return Err(refused.swap_remove(0)) };
            write_atomic(&self.root.join("latest"), name.as_bytes())?;
        }
        let from = self.pointer("latest")?.as_deref().and_then(step_of);
        if self.pointer("best")?.as_deref().and_then(step_of) <= from {
            self.best()?;
        }
        Ok(refused)
    }

    /// The newest checkpoint, if there is one.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        self.at("latest")
    }

    /// The checkpoint with the best validation metric, if there is one.
    pub fn best(&self) -> Result<Option<Checkpoint>> {
        self.at("best")
    }

    fn at(&self, pointer: &str) -> Result<Option<Checkpoint>> {
        self.pointer(pointer)?.map(|name| Checkpoint::open(&self.root.join(name))).transpose()
    }

    fn pointer(&self, pointer: &str) -> Result<Option<String>> {
        let path = self.root.join(pointer);
        match fs::read_to_string(&path) {
            Ok(name) => {
                let name = name.trim().to_string();
                if step_of(&name).is_none() {
                    return Err(Error::corrupt(&path, format!("expected `step-NNN`, found `{name}`")));
                }
                Ok(Some(name))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path)(e)),
        }
    }
}

impl Checkpoint {
    /// Opens one checkpoint folder and verifies the size and digest of every file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the file that is missing, torn or edited.
    pub fn open(path: &Path) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        let bytes = fs::read(&manifest_path).map_err(Error::io(&manifest_path))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(&manifest_path, e))?;
        if manifest.format != FORMAT {
            let reason = format!("format: expected `{FORMAT}`, found `{}`", manifest.format);
            return Err(Error::corrupt(&manifest_path, reason));
        }
        if manifest.version != VERSION {
            return Err(Error::WrongVersion { path: manifest_path, found: manifest.version, supported: VERSION });
        }
        for (name, entry) in &manifest.files {
            let file = path.join(name);
            if name.contains(['/', '\\']) || name == ".." {
                return Err(Error::corrupt(&manifest_path, format!("file name `{name}` leaves the folder")));
            }
            let bytes = fs::read(&file).map_err(Error::io(&file))?;
            let found = blake3::hash(&bytes).to_hex().to_string();
            if bytes.len() as u64 != entry.bytes || found != entry.blake3 {
                return Err(Error::DigestMismatch { path: file, expected: entry.blake3.clone(), found });
            }
        }
        Ok(Self { path: path.to_path_buf() })
    }

    /// Path of a file in the checkpoint.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Bytes of a file in the checkpoint.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.file(name);
        fs::read(&path).map_err(Error::io(&path))
    }
}

/// Step of a checkpoint by its name.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_and_best_survive_and_others_go() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = CheckpointDir::create(dir.path()).unwrap();
        assert!(checkpoints.latest().unwrap().is_none());
        for (step, best) in [(1, true), (2, false), (3, false), (4, false)] {
            checkpoints.save(step, &[("w", vec![step as u8; 4])], best).unwrap();
        }
        assert_eq!(checkpoints.latest().unwrap().unwrap().read("w").unwrap(), vec![4; 4]);
        assert_eq!(checkpoints.best().unwrap().unwrap().read("w").unwrap(), vec![1; 4]);
        let there = [1, 2, 3, 4].map(|step| dir.path().join(format!("step-{step:09}")).exists());
        assert_eq!(there, [true, false, true, true]);
    }

    fn three(root: &Path, best: u64) -> CheckpointDir {
        let checkpoints = CheckpointDir::create(root).unwrap();
        for step in 1..4 {
            let files = [("state.json", vec![b'7'; 9]), ("model", vec![step as u8; 64]), ("empty", Vec::new())];
            checkpoints.save(step, &files, step == best).unwrap();
        }
        checkpoints
    }

    /// Each file, its digests included, cut anywhere or with any byte of it changed: refused by name, and the checkpoint
    /// before it is the one to go on from.
    #[test]
    fn a_torn_or_edited_file_is_refused_by_name_and_the_previous_checkpoint_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = three(dir.path(), 3);
        let folder = dir.path().join("step-000000003");
        let mut damages = 0;
        for name in ["state.json", "model", "empty", MANIFEST] {
            let path = folder.join(name);
            let whole = fs::read(&path).unwrap();
            let cut = (0..whole.len()).map(|at| whole[..at].to_vec());
            let flipped = (0..whole.len()).map(|at| {
                let mut bytes = whole.clone();
                bytes[at] ^= 1;
                bytes
            });
            for bytes in cut.chain(flipped).chain([[&whole[..], b"!"].concat()]) {
                fs::write(&path, bytes).unwrap();
                let error = checkpoints.latest().expect_err("damage is noticed");
                // A changed name in the list of files is a file that is not there.
                let named = format!("{}", folder.join(if name == MANIFEST { "" } else { name }).display());
                assert!(error.to_string().contains(&named), "{error}");
                damages += 1;
            }
            let refused = checkpoints.recover().unwrap();
            assert!(refused.len() == 1 && refused[0].to_string().contains(&folder.display().to_string()));
            assert_eq!(checkpoints.latest().unwrap().unwrap().read("model").unwrap(), vec![2; 64]);
            assert!(checkpoints.recover().unwrap().is_empty());
            fs::remove_file(&path).unwrap();
            fs::write(dir.path().join("latest"), "step-000000003").unwrap();
            assert!(checkpoints.latest().unwrap_err().to_string().contains(&path.display().to_string()));
            fs::write(&path, whole).unwrap();
            assert_eq!(checkpoints.latest().unwrap().unwrap().read("model").unwrap(), vec![3; 64]);
        }
        assert!(damages > 500, "{damages}");
        // A pointer that is no pointer any more, and what is written next.
        fs::write(dir.path().join("latest"), "step-0000000").unwrap();
        assert!(checkpoints.latest().is_err());
        fs::write(dir.path().join("latest"), [0; 14]).unwrap();
        assert!(checkpoints.latest().unwrap_err().to_string().contains("latest"));
        assert_eq!(checkpoints.recover().unwrap().len(), 1);
        assert_eq!(checkpoints.latest().unwrap().unwrap().read("model").unwrap(), vec![3; 64]);
    }

    #[test]
    fn what_cannot_be_recovered_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = three(dir.path(), 1);
        let damage = |step: u64| fs::write(dir.path().join(format!("step-{step:09}/model")), [9; 64]).unwrap();
        // A best one that no later step writes again.
        damage(1);
        assert!(checkpoints.recover().unwrap_err().to_string().contains("step-000000001"));
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = three(dir.path(), 3);
        let damage = |step: u64| fs::write(dir.path().join(format!("step-{step:09}/model")), [9; 64]).unwrap();
        damage(2);
        assert!(checkpoints.recover().unwrap().is_empty());
        damage(3);
        assert!(checkpoints.recover().unwrap_err().to_string().contains("step-000000003"));
        assert!(CheckpointDir::create(&dir.path().join("none")).unwrap().recover().unwrap().is_empty());
    }

    #[test]
    fn a_half_written_folder_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".tmp-step-000000009")).unwrap();
        CheckpointDir::create(dir.path()).unwrap();
        assert!(!dir.path().join(".tmp-step-000000009").exists());
    }

    /// A writer stopped before its n-th change on the disk, for every n: the newest checkpoint is the one before or the
    /// new one, complete, and the next writer gets through.
    #[test]
    fn stopped_at_any_point_the_last_checkpoint_or_the_new_one_is_there() {
        let files = |step: u64| [("w", vec![step as u8; 40]), ("state", vec![step as u8; 3])];
        let mut points = Vec::new();
        for stop in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let checkpoints = CheckpointDir::create(dir.path()).unwrap();
            checkpoints.save(1, &files(1), true).unwrap();
            let mut left = stop;
            let outcome = checkpoints.save_through(2, &files(2), true, &mut |what| {
                if left == 0 {
                    points.push(what.to_string());
                    return Err(std::io::Error::other(what.to_string()));
                }
                left -= 1;
                Ok(())
            });
            let again = CheckpointDir::create(dir.path()).unwrap();
            for found in [again.latest().unwrap().unwrap(), again.best().unwrap().unwrap()] {
                let step = found.read("w").unwrap()[0];
                assert!(found.read("w").unwrap() == vec![step; 40] && found.read("state").unwrap() == vec![step; 3]);
                assert!(step == 2 || (step == 1 && outcome.is_err()));
            }
            if outcome.is_ok() {
                break;
            }
            assert!(matches!(outcome, Err(Error::Io { .. })));
            again.save(3, &files(3), false).unwrap();
            assert_eq!(again.latest().unwrap().unwrap().read("w").unwrap(), vec![3; 40]);
        }
        assert!(points.len() >= 9, "{points:?}");
    }

    /// Where `latest` points to is never removed: a kill in between would leave a run without any checkpoint.
    #[test]
    fn a_complete_checkpoint_of_the_same_step_stays() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = CheckpointDir::create(dir.path()).unwrap();
        checkpoints.save(4, &[("w", vec![1; 8])], false).unwrap();
        let mut changes = Vec::new();
        let note = &mut |what: &str| {
            changes.push(what.to_string());
            Ok(())
        };
        checkpoints.save_through(4, &[("w", vec![2; 8])], true, note).unwrap();
        assert_eq!(changes, ["point best", "point latest", "delete old checkpoints"]);
        assert_eq!(checkpoints.latest().unwrap().unwrap().read("w").unwrap(), vec![1; 8]);
        fs::write(dir.path().join("step-000000004/w"), [9; 8]).unwrap();
        checkpoints.save(4, &[("w", vec![2; 8])], true).unwrap();
        assert_eq!(checkpoints.latest().unwrap().unwrap().read("w").unwrap(), vec![2; 8]);
    }
}
