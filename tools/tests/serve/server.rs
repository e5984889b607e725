//! Servers of this process: over a stub engine, or over small trained models in folders.

use rqvae::{ItemIdx, QuantizerConfig};
use seqmodel::Scored;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tools::catalogue::Catalogue;
use tools::demo::{DemoConfig, generate};
use tools::gpu::DeviceChoice;
use tools::interrupt::Interrupt;
use tools::jobs::build_sids::{Content, build};
use tools::jobs::train;
use tools::models::{Asking, RunConfig};
use tools::serve::engine::{Answer, Ask, Engine, EngineError};
use tools::serve::limits::Limits;
use tools::serve::metrics::Metrics;
use tools::serve::swap::Versions;
use tools::serve::version::{Source, Version};
use tools::serve::{Ended, Server, Tokens};
use tools::table::{ReadOptions, find_in, read_interactions, read_items};

/// Runs of a small shop: `shop/`, `a/{run,catalogue}`, and `b/` with other IDs for the same items.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

pub(crate) static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new().unwrap());

impl Lab {
    fn new() -> anyhow::Result<Self> {
        let lab = Self { dir: tempfile::tempdir()? };
        tools::demo::write(&lab.path("shop"), &generate(&DemoConfig { items: 300, users: 150, seed: 3 }))?;
        let options = ReadOptions::default();
        let items = read_items(&find_in(&lab.path("shop"), "items")?, &options)?;
        let interactions = read_interactions(&find_in(&lab.path("shop"), "interactions")?, &items.keys, &options)?;
        let interrupt = Interrupt::install()?;
        for (name, seed) in [("a", 1), ("b", 2)] {
            let source = Content::choose(&items, None, Some("hashed"), seed)?;
            let quantizer = QuantizerConfig { levels: 2, codebook_size: 16, seed, ..QuantizerConfig::default() };
            let built = build(&items, &source.vectors(&items)?, "hashed", &quantizer, &|_| true)?;
            let out = lab.path(name).join("catalogue");
            built.catalogue.write(&out, &built.residual_norms, built.quantizer.as_ref(), &|at| source.save(at))?;
            let mut config = RunConfig::preset("rqt", "quick")?;
            config.train.max_epochs = 1;
            train::run(&config, &built.catalogue, &interactions, &lab.path(name).join("run"), false, None, &interrupt)?;
        }
        Ok(lab)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn source(&self, name: &str) -> Source {
        Source {
            run: self.path(name).join("run"),
            catalogue: self.path(name).join("catalogue"),
            asking: Asking { device: DeviceChoice::Cpu, ..Asking::default() },
        }
    }

    pub(crate) fn catalogue(&self) -> Catalogue {
        Catalogue::open(&self.path("a").join("catalogue")).unwrap()
    }
}

/// Recommends the first items, after a while.
#[derive(Default)]
pub(crate) struct Stub {
    pub(crate) sleep: Duration,
    /// Most entries at once before memory runs out; 0: any number.
    pub(crate) memory: usize,
    /// An item whose mention loses the device.
    pub(crate) deadly: Option<ItemIdx>,
    /// An item whose mention makes it panic.
    pub(crate) startling: Option<ItemIdx>,
    /// Entries answered so far.
    pub(crate) answered: Arc<AtomicUsize>,
}

impl Engine for Stub {
    fn answer(&self, asks: &[&Ask]) -> Result<Vec<Answer>, EngineError> {
        let mentions =
            |item: Option<ItemIdx>| item.is_some_and(|item| asks.iter().any(|ask| ask.history.contains(&item)));
        if mentions(self.deadly) {
            return Err(EngineError::DeviceLost("it fell off the bus".into()));
        }
        assert!(!mentions(self.startling), "startled");
        if self.memory > 0 && asks.len() > self.memory {
            return Err(EngineError::OutOfMemory);
        }
        std::thread::sleep(self.sleep);
        self.answered.fetch_add(asks.len(), Ordering::SeqCst);
        let list = |ask: &&Ask| {
            let items = (0..ask.k as u32).map(|item| Scored { item: ItemIdx(item), score: -(item as f32) });
            Answer { items: items.collect(), levels: Vec::new() }
        };
        Ok(asks.iter().map(list).collect())
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Ended>,
}

impl Running {
    pub(crate) fn stub(stub: Stub, limits: &Limits) -> Self {
        let version = Version::with_engine(LAB.catalogue(), "stub", Box::new(stub));
        Self::new(version, None, limits, Tokens::default())
    }

    pub(crate) fn model(source: &Source) -> Self {
        Self::new(Version::load(source).unwrap(), Some(source.clone()), &Limits::default(), Tokens::default())
    }

    pub(crate) fn new(version: Version, source: Option<Source>, limits: &Limits, tokens: Tokens) -> Self {
        let metrics = Arc::new(Metrics::default());
        let versions = Arc::new(Versions::new(version, source, Arc::clone(&metrics)));
        let server = Server::new(versions, limits, tokens, Arc::clone(&metrics)).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async { server.run(TcpListener::from_std(listener).unwrap(), stopped).await.unwrap() })
        });
        Self { address, metrics, stop, thread }
    }

    pub(crate) fn client(&self) -> super::client::Client {
        super::client::Client::new(self.address)
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop.send(true).unwrap();
    }

    pub(crate) fn ended(self) -> Ended {
        self.thread.join().unwrap()
    }

    pub(crate) fn stop(self) -> Ended {
        self.ask_to_stop();
        self.ended()
    }
}

/// Waits until `done`, for at most ten seconds.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { assert!(std::fs::copy(&path, &to).is_ok()) }
    }
}
