//! What Prometheus sees. Few label values, base units in names.

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Route as registered, and status code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Route pattern, `other` where there is none.
    pub route: String,
    /// Status code.
    pub code: u16,
}

/// One label called `result`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Result {
    /// `ok`, `refused` or `failed`.
    pub result: &'static str,
}

/// One label called `version`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct IndexVersion {
    /// The index.
    pub version: String,
}

/// All counters of a server.
pub struct Metrics {
    registry: Registry,
    /// Requests by route and code.
    pub requests: Family<Outcome, Counter>,
    /// Seconds from the first byte of the header to the answer.
    pub duration: Histogram,
    /// Seconds in line.
    pub queued: Histogram,
    /// Seconds of a batch on the device.
    pub decode: Histogram,
    /// Entries per batch.
    pub batch: Histogram,
    /// Entries in line at the last scrape.
    pub depth: Gauge,
    /// Lists shorter than asked for.
    pub dead_ends: Counter,
    /// Ids of histories that the catalogue does not have.
    pub unknown_items: Counter,
    /// Entries answered without a model.
    pub fallbacks: Counter,
    /// Panics caught.
    pub panics: Counter,
    /// 1 for the version that is served.
    pub index: Family<IndexVersion, Gauge>,
    /// Reloads by result.
    pub reloads: Family<Result, Counter>,
    memory: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        // 0.25 ms to 8 s, doubling.
        let seconds = || Histogram::new((0..16).map(|i| 0.00025 * f64::from(1 << i)));
        let metrics = Self {
            requests: Family::default(),
            duration: seconds(),
            queued: seconds(),
            decode: seconds(),
            batch: Histogram::new((0..10).map(|i| f64::from(1 << i))),
            depth: Gauge::default(),
            dead_ends: Counter::default(),
            unknown_items: Counter::default(),
            fallbacks: Counter::default(),
            panics: Counter::default(),
            index: Family::default(),
            reloads: Family::default(),
            memory: Gauge::default(),
            registry: Registry::default(),
        };
        let r = registry.sub_registry_with_prefix("sidrec");
        r.register("requests", "Requests by route and status code", metrics.requests.clone());
        r.register("request_duration_seconds", "Time from header to answer", metrics.duration.clone());
        r.register("queue_duration_seconds", "Time in line", metrics.queued.clone());
        r.register("decode_duration_seconds", "Time of a batch on the device", metrics.decode.clone());
        r.register("batch_size", "Entries per batch", metrics.batch.clone());
        r.register("queue_depth", "Entries in line", metrics.depth.clone());
        r.register("beam_dead_ends", "Lists shorter than asked for", metrics.dead_ends.clone());
        r.register("unknown_items", "Ids of histories not in the catalogue", metrics.unknown_items.clone());
        r.register("fallbacks", "Entries answered by popular items", metrics.fallbacks.clone());
        r.register("panics", "Panics caught", metrics.panics.clone());
        r.register("index_info", "The index that is served", metrics.index.clone());
        r.register("reload", "Reloads by result", metrics.reloads.clone());
        registry.register("process_resident_memory_bytes", "Memory in use", metrics.memory.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// The OpenMetrics text.
    pub fn text(&self, depth: usize) -> std::result::Result<String, std::fmt::Error> {
        self.depth.set(depth as i64);
        self.memory.set(resident_bytes().unwrap_or(0) as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The version that is served from now on.
    pub fn serving(&self, version: &str) {
        self.index.clear();
        self.index.get_or_create(&IndexVersion { version: version.to_string() }).set(1);
    }

    /// Counts a reload.
    pub fn reloaded(&self, result: &'static str) {
        self.reloads.get_or_create(&Result { result }).inc();
    }
}

/// Memory of this process in use, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
