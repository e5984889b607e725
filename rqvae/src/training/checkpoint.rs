//! Checkpoint directories: complete or invisible.
//!
//! A checkpoint is written into a temporary sibling folder, file by file with `fsync`, its manifest (sizes and BLAKE3
//! digests) last; the folder is renamed into place and the pointers `latest` and `best` are replaced by rename. A kill
//! at any moment leaves the previous checkpoint readable.

use crate::{Error, Result, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
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

    /// Writes a checkpoint, points `latest` (and `best`) to it, then deletes older ones that nothing points to.
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
            let mut manifest =
                Manifest { format: "sidrec-checkpoint".into(), version: VERSION, files: BTreeMap::new() };
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
        let keep = [self.pointer("latest")?, self.pointer("best")?];
        for entry in fs::read_dir(&self.root).map_err(Error::io(&self.root))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("step-") && !keep.iter().flatten().any(|k| *k == name) {
                fs::remove_dir_all(entry.path()).map_err(Error::io(&entry.path()))?;
            }
        }
        Ok(())
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
                let digits = name.strip_prefix("step-").is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
                if !digits {
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
        for (step, best) in [(1, true), (2, false), (3, false)] {
            checkpoints.save(step, &[("w", vec![step as u8; 4])], best).unwrap();
        }
        assert_eq!(checkpoints.latest().unwrap().unwrap().read("w").unwrap(), vec![3; 4]);
        assert_eq!(checkpoints.best().unwrap().unwrap().read("w").unwrap(), vec![1; 4]);
        assert!(!dir.path().join("step-000000002").exists());
    }

    #[test]
    fn a_flipped_byte_a_torn_file_and_a_half_written_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = CheckpointDir::create(dir.path()).unwrap();
        checkpoints.save(5, &[("w", vec![7; 64])], true).unwrap();
        let file = dir.path().join("step-000000005/w");
        let mut bytes = fs::read(&file).unwrap();
        bytes[9] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(matches!(checkpoints.latest(), Err(Error::DigestMismatch { .. })));
        fs::write(&file, [7; 10]).unwrap();
        assert!(matches!(checkpoints.latest(), Err(Error::DigestMismatch { .. })));
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
