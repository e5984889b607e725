//! Models by their names on a hub: `org/name` or `org/name@revision`, kept in the usual cache.
//!
//! The cache is laid out as Hugging Face's own programs lay it out (`models--org--name/{refs,blobs,snapshots}`), so what
//! they have fetched is found here and the other way round. With `HF_HUB_OFFLINE` set the network is never touched.
//! A download that broke off goes on where it stopped; a file counts only when size and SHA-256 are right.

use super::client::{Client, Patience};
use crate::error::{Fault, bad_data, cannot_create, fault, input_missing};
use anyhow::Result;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const MAX_INDEX_BYTES: u64 = 16 << 20;
const BUFFER: usize = 1 << 16;

/// Where models are and how they are fetched.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

#[derive(Deserialize)]
struct Index {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// A name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `org/name`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl ModelName {
    /// Reads `org/name` or `org/name@revision`; none when the text is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            known && !part.is_empty() && !part.starts_with('.') && !part.contains("..")
        };
        let (org, model) = name.split_once('/')?;
        let revision_is_plain = revision.split('/').all(plain);
        (plain(org) && plain(model) && revision_is_plain)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl Hub {
    /// As the environment says: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || {
            let cache = text("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(Path::new(&text("HOME")?).join(".cache")));
            cache.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
        };
        let cache = text("HF_HUB_CACHE").map(PathBuf::from);
        let offline = |name: &str| {
            text(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str()))
        };
        Self {
            cache: cache.unwrap_or_else(|| text("HF_HOME").map_or_else(home, PathBuf::from).join("hub")),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: text("HF_TOKEN"),
            offline: offline("HF_HUB_OFFLINE") || offline("TRANSFORMERS_OFFLINE"),
        }
    }

    /// The folder of a model and the commit that it is of, fetched where that is needed and allowed.
    ///
    /// # Errors
    /// Input missing when it is not in the cache and the network is not to be touched; temporary when the hub cannot be
    /// reached or what came was not what it should be.
    pub fn folder(&self, model: &ModelName) -> Result<(PathBuf, String)> {
        self.folder_with(model, Patience::default())
    }

    pub(super) fn folder_with(&self, model: &ModelName, patience: Patience) -> Result<(PathBuf, String)> {
        let root = self.cache.join(format!("models--{}", model.name.replace('/', "--")));
        let cached = cached(&root, &model.revision);
        if self.offline {
            return cached.ok_or_else(|| {
                let what = format!("{}@{} is not in the cache and HF_HUB_OFFLINE is set", model.name, model.revision);
                input_missing(&root).context(what)
            });
        }
        // A commit never changes.
        if let Some((folder, commit)) = cached.as_ref().filter(|(_, commit)| *commit == model.revision) {
            return Ok((folder.clone(), commit.clone()));
        }
        let client = Client::new(patience, self.token.clone());
        match (self.fetch(&client, model, &root), cached) {
            (Ok(found), _) => Ok(found),
            (Err(error), Some(found)) if crate::error::exit_code(&error) == Fault::Temporary.exit_code() => {
                tracing::warn!(
                    model = model.name,
                    error = format!("{error:#}"),
                    "the hub cannot be reached; using the cache"
                );
                Ok(found)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn fetch(&self, client: &Client, model: &ModelName, root: &Path) -> Result<(PathBuf, String)> {
        let ModelName { name, revision } = model;
        let url = format!("{}/api/models/{name}/revision/{revision}?blobs=true", self.endpoint);
        let index: Index = serde_json::from_slice(&client.body(&url, MAX_INDEX_BYTES)?)
            .map_err(|e| fault(Fault::Temporary, format!("{url}: expected the list of a model's files: {e}")))?;
        if !(7..=64).contains(&index.sha.len()) || !index.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(bad_data(format!("{url}: commit `{}` is no hexadecimal number", index.sha)));
        }
        let mut wanted: Vec<&Sibling> = index.siblings.iter().filter(|file| is_ours(&file.rfilename)).collect();
        if wanted.iter().any(|file| file.rfilename == "model.safetensors") {
            wanted.retain(|file| !(is_part(&file.rfilename) || file.rfilename == "model.safetensors.index.json"));
        }
        // What says that a folder is whole comes last, the settings of the model at the very end: without those a folder
        // is refused, without the list of modules it would be read in another way.
        wanted.sort_by_key(|file| MARKS.iter().position(|mark| *mark == file.rfilename));
        if !wanted.iter().any(|file| MARKS.contains(&file.rfilename.as_str())) {
            return Err(bad_data(format!(
                "{name}: no encoder; expected config.json and model.safetensors among its files"
            )));
        }
        let snapshot = root.join("snapshots").join(&index.sha);
        for file in wanted {
            let place = snapshot.join(&file.rfilename);
            if place.is_file() {
                continue;
            }
            let url = format!("{}/{name}/resolve/{}/{}", self.endpoint, index.sha, file.rfilename);
            let blob = download(client, &url, file, &root.join("blobs"))?;
            link(&blob, &place)?;
        }
        let reference = root.join("refs").join(revision);
        if *revision != index.sha {
            let parent = reference.parent().unwrap_or(root);
            fs::create_dir_all(parent).map_err(|e| cannot_create(parent, e))?;
            rqvae::write_atomic(&reference, index.sha.as_bytes())?;
        }
        Ok((snapshot, index.sha))
    }
}

/// The folder of a revision in the cache, if it is there.
fn cached(root: &Path, revision: &str) -> Option<(PathBuf, String)> {
    let commit = fs::read_to_string(root.join("refs").join(revision)).ok();
    let commit = commit.map_or_else(|| revision.to_owned(), |commit| commit.trim().to_owned());
    let folder = root.join("snapshots").join(&commit);
    let whole = MARKS.iter().any(|name| folder.join(name).is_file());
    whole.then_some((folder, commit))
}

/// Files one of which every encoder has.
const MARKS: [&str; 2] = ["modules.json", "config.json"];

/// Whether a file belongs to an encoder: settings, tokenizer and weights at the top, and those of numbered modules.
fn is_ours(name: &str) -> bool {
    const TOP: [&str; 6] = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "modules.json",
        "sentence_bert_config.json",
    ];
    match name.split_once('/') {
        None => TOP.contains(&name) || is_part(name),
        Some((module, file)) => {
            let (number, kind) = module.split_once('_').unwrap_or_default();
            let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
            number.chars().all(|c| c.is_ascii_digit())
                && plain(number)
                && plain(kind)
                && (TOP.contains(&file) || is_part(file))
        }
    }
}

/// Whether it is one of several files of weights: model-00001-of-00002.safetensors.
fn is_part(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let number = |n: &str| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(a, b)| number(a) && number(b))
}

/// Fetches a file into `blobs`, under the name of its digest.
fn download(client: &Client, url: &str, file: &Sibling, blobs: &Path) -> Result<PathBuf> {
    let wrong = |why: String| fault(Fault::Temporary, format!("{url}: {why}"));
    let digest = file.lfs.as_ref().map(|lfs| lfs.sha256.as_str());
    let name = digest.or(file.blob.as_deref()).unwrap_or_default();
    if name.len() < 7 || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(bad_data(format!("{url}: the hub names no digest of it")));
    }
    let (blob, part) = (blobs.join(name), blobs.join(format!("{name}.incomplete")));
    if blob.is_file() {
        return Ok(blob);
    }
    fs::create_dir_all(blobs).map_err(|e| cannot_create(blobs, e))?;
    let have = fs::metadata(&part).map_or(0, |found| found.len());
    let have = if file.size.is_some_and(|size| have < size) { have } else { 0 };
    let mut answer = client.get(url, have)?;
    let goes_on = have > 0 && answer.status().as_u16() == 206;
    let open = || OpenOptions::new().create(true).write(true).append(goes_on).truncate(!goes_on).open(&part);
    let mut out = open().map_err(|e| cannot_create(&part, e))?;
    let limit = file.size.unwrap_or(u64::MAX - 1).saturating_sub(if goes_on { have } else { 0 });
    let mut body = answer.body_mut().as_reader().take(limit.saturating_add(1));
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = body.read(&mut buffer).map_err(|e| wrong(format!("broke off: {e}; it goes on there next time")))?;
        if n == 0 {
            break;
        }
        out.write_all(&buffer[..n]).map_err(|e| cannot_create(&part, e))?;
    }
    out.sync_all().map_err(|e| cannot_create(&part, e))?;
    let found = fs::metadata(&part).map_err(|e| cannot_create(&part, e))?.len();
    if let Some(size) = file.size.filter(|size| *size != found) {
        if found > size {
            let _ = fs::remove_file(&part);
        }
        return Err(wrong(format!("expected {size} bytes, found {found}")));
    }
    if let Some(expected) = digest {
        let found = sha256(&part)?;
        if found != expected {
            let _ = fs::remove_file(&part);
            return Err(wrong(format!("expected SHA-256 {expected}, found {found}")));
        }
    }
    fs::rename(&part, &blob).map_err(|e| cannot_create(&blob, e))?;
    Ok(blob)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(rqvae::Error::io(path))?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; BUFFER]);
    loop {
        let n = file.read(&mut buffer).map_err(rqvae::Error::io(path))?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
    }
    let mut text = String::new();
    for byte in context.finish().as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Makes `place` stand for `blob`: by a link, as the cache is laid out, or by a copy where links cannot be.
fn link(blob: &Path, place: &Path) -> Result<()> {
    let parent = place.parent().unwrap_or(place);
    fs::create_dir_all(parent).map_err(|e| cannot_create(parent, e))?;
    let blob = fs::canonicalize(blob).map_err(rqvae::Error::io(blob))?;
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&blob, place);
    #[cfg(not(unix))]
    let linked: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
    if linked.is_err() {
        fs::copy(&blob, place).map_err(|e| cannot_create(place, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Reply, Server};
    use super::*;
    use crate::error::exit_code;
    use std::time::Duration;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const WEIGHTS: &[u8] = b"some weights, rather few of them";
    /// Of `WEIGHTS`.
    fn weights_digest() -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        fs::write(&path, WEIGHTS).unwrap();
        sha256(&path).unwrap()
    }

    fn index(digest: &str) -> String {
        serde_json::json!({ "sha": COMMIT, "siblings": [
            { "rfilename": "config.json", "size": 2, "blobId": "aaaaaaaa" },
            { "rfilename": "model.safetensors", "size": WEIGHTS.len(), "blobId": "b", "lfs": { "sha256": digest } },
            { "rfilename": "1_Pooling/config.json", "size": 3, "blobId": "cccccccc" },
            { "rfilename": "onnx/model.safetensors", "size": 1u64 << 40, "blobId": "dddddddd" },
            { "rfilename": "../../escape/config.json", "size": 2, "blobId": "eeeeeeee" },
        ]})
        .to_string()
    }

    fn hub(cache: &Path, endpoint: &str, offline: bool) -> Hub {
        Hub { cache: cache.to_owned(), endpoint: endpoint.to_owned(), token: Some("t".to_owned()), offline }
    }

    fn patience() -> Patience {
        Patience { timeout: Duration::from_millis(400), retries: 1, first_wait: Duration::from_millis(2) }
    }

    fn model(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(model("a/b"), ModelName { name: "a/b".into(), revision: "main".into() });
        assert_eq!(model("a-1/b.c@v1/x").revision, "v1/x");
        for other in ["a", "a/b/c", "./a", "../a", "a/..", "/a/b", "a/b@", "a/b@../x", "a b/c", "http://x/y"] {
            assert_eq!(ModelName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn files_of_an_encoder_are_told_from_others() {
        let ours = ["config.json", "model-00002-of-00004.safetensors", "1_Pooling/config.json"];
        assert!(ours.into_iter().all(is_ours));
        let others = [
            "model-x.safetensors",
            "model-1-of-y.safetensors",
            "model-5.safetensors",
            "onnx/model.safetensors",
            "pytorch_model.bin",
        ];
        assert!(!others.into_iter().any(is_ours));
    }

    #[test]
    fn a_model_is_fetched_once_and_found_offline() {
        let cache = tempfile::tempdir().unwrap();
        let digest = weights_digest();
        let of = digest.clone();
        let server = Server::start(move |request, _| match request.path.as_str() {
            "/api/models/org/tiny/revision/main?blobs=true" => Reply::json(200, &index(&of)),
            path if path.ends_with("/1_Pooling/config.json") => Reply::json(200, "[1]"),
            path if path.ends_with("/config.json") => Reply::json(200, "{}"),
            path if path.ends_with("/model.safetensors") => Reply::bytes(200, WEIGHTS),
            _ => Reply::json(404, "no such file"),
        });
        let hub = |offline| hub(cache.path(), &server.url, offline);
        let missing = hub(true).folder_with(&model("org/tiny"), patience()).unwrap_err();
        assert_eq!(exit_code(&missing), 66);
        assert!(format!("{missing:#}").contains("HF_HUB_OFFLINE") && server.requests().is_empty());
        let (folder, commit) = hub(false).folder_with(&model("org/tiny"), patience()).unwrap();
        assert_eq!(commit, COMMIT);
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
        assert_eq!(fs::read(folder.join("1_Pooling/config.json")).unwrap(), b"[1]");
        assert!(!folder.join("onnx").exists() && !cache.path().join("escape").exists());
        let asked = server.requests();
        assert_eq!(asked.len(), 4);
        assert!(asked.iter().all(|request| request.authorization.as_deref() == Some("Bearer t")));
        // Known already: the list alone is asked for; a commit or offline, nothing is.
        hub(false).folder_with(&model("org/tiny"), patience()).unwrap();
        assert_eq!(server.requests().len(), 5);
        for (name, offline) in [("org/tiny", true), (&format!("org/tiny@{COMMIT}")[..], false)] {
            assert_eq!(hub(offline).folder_with(&model(name), patience()).unwrap().0, folder);
        }
        assert_eq!(server.requests().len(), 5);
        // The hub is gone: what is in the cache does.
        let gone = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..hub(false) };
        assert_eq!(gone.folder_with(&model("org/tiny"), patience()).unwrap().0, folder);
        assert_eq!(exit_code(&gone.folder_with(&model("org/other"), patience()).unwrap_err()), 75);
        let unknown = hub(false).folder_with(&model("org/none"), patience()).unwrap_err();
        assert_eq!(exit_code(&unknown), 65, "{unknown}");
    }

    /// A download breaks off, goes on where it stopped, and is refused when it is something else.
    #[test]
    fn downloads_go_on_and_are_checked() {
        let cache = tempfile::tempdir().unwrap();
        let digest = weights_digest();
        let of = digest.clone();
        let server = Server::start(move |request, _| match (request.path.as_str(), &request.range) {
            ("/api/models/org/tiny/revision/main?blobs=true", _) => Reply::json(200, &index(&of)),
            (path, None) if path.ends_with("/model.safetensors") => Reply::cut(&Reply::bytes(200, WEIGHTS)),
            (path, Some(range)) if path.ends_with("/model.safetensors") => {
                let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                Reply::bytes(206, &WEIGHTS[from..])
            }
            (path, _) if path.contains("Pooling") => Reply::json(200, "[1]"),
            _ => Reply::json(200, "{}"),
        });
        let hub = hub(cache.path(), &server.url, false);
        let broken = hub.folder_with(&model("org/tiny"), patience()).unwrap_err();
        assert_eq!(exit_code(&broken), 75, "{broken:#}");
        let part = cache.path().join(format!("models--org--tiny/blobs/{digest}.incomplete"));
        assert_eq!(fs::read(&part).unwrap(), WEIGHTS[..WEIGHTS.len() / 2]);
        assert_eq!(cached(&cache.path().join("models--org--tiny"), COMMIT), None, "half a model is none");
        let (folder, _) = hub.folder_with(&model("org/tiny"), patience()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHTS);
        assert!(!part.exists());

        for (page, words) in
            [("<html>come back later</html>", "bytes"), ("ome weights, rather few of them!", "SHA-256")]
        {
            let (cache, of) = (tempfile::tempdir().unwrap(), digest.clone());
            let server = Server::start(move |request, _| match request.path.as_str() {
                path if path.starts_with("/api") => Reply::json(200, &index(&of)),
                path if path.ends_with("/model.safetensors") => Reply::json(200, page),
                path if path.contains("Pooling") => Reply::json(200, "[1]"),
                _ => Reply::json(200, "{}"),
            });
            let hub = Hub { cache: cache.path().to_owned(), endpoint: server.url.clone(), token: None, offline: false };
            let error = hub.folder_with(&model("org/tiny"), patience()).unwrap_err();
            assert_eq!(exit_code(&error), 75);
            assert!(error.to_string().contains(words), "{error}");
        }
        let server = Server::start(|_, _| Reply::json(200, "<html>sign in</html>"));
        let error = Hub { endpoint: server.url.clone(), ..hub }.folder_with(&model("org/x"), patience()).unwrap_err();
        assert_eq!(exit_code(&error), 75, "{error}");
    }
}
