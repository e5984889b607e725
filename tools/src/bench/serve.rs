//! `sidrec bench serve`: the server on loopback beside the bare engine, on the same histories.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use super::load::{Seen, closed_loop, open_loop};
use crate::cli::json_line;
use crate::error::{Fault, fault};
use crate::gpu::DeviceChoice;
use crate::models::Asking;
use crate::progress::Stage;
use crate::serve::engine::Ask;
use crate::serve::limits::Limits;
use crate::serve::metrics::Metrics;
use crate::serve::swap::Versions;
use crate::serve::version::{Source, Version};
use crate::serve::{Server, Tokens};
use crate::table::{ReadOptions, read_histories};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use hyper::body::Bytes;
use rand::seq::SliceRandom;
use rqvae::{ItemIdx, SeededRng};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

#[derive(Args)]
pub(crate) struct ServeBenchArgs {
    /// Run directory
    #[arg(long, value_name = "DIR", env = "SIDREC_RUN")]
    run: PathBuf,
    /// Catalogue directory
    #[arg(long, value_name = "DIR", env = "SIDREC_CATALOGUE")]
    catalogue: PathBuf,
    /// Real histories: interactions, or user_id and a list `history`; made up without it
    #[arg(long, value_name = "FILE")]
    histories: Option<PathBuf>,
    /// Beams
    #[arg(long, default_value_t = 50)]
    beam: usize,
    /// Length of the lists
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Seconds at each load; the constant rate of 70 % is kept six times as long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Order of the histories follows from it
    #[arg(long, default_value_t = 0, env = "SIDREC_SEED")]
    seed: u64,
    /// Only the JSON line
    #[arg(long)]
    json: bool,
}

/// Histories asked about: more than any cache would hold by chance.
const HISTORIES: usize = 2000;

fn histories(args: &ServeBenchArgs, version: &Version) -> Result<Vec<Vec<ItemIdx>>> {
    let mut rng = SeededRng::new(args.seed).stream("histories");
    if let Some(path) = &args.histories {
        let read = read_histories(path, &version.catalogue.keys, &ReadOptions::default())?;
        let mut all: Vec<Vec<ItemIdx>> = read.histories.iter().map(<[ItemIdx]>::to_vec).collect();
        all.retain(|history| !history.is_empty());
        all.shuffle(&mut rng);
        all.truncate(HISTORIES);
        return Ok(all);
    }
    let mut items = version.catalogue.trie.in_order().to_vec();
    let some = |_| {
        items.shuffle(&mut rng);
        items[..items.len().min(8)].to_vec()
    };
    Ok((0..HISTORIES).map(some).collect())
}

/// Seconds of one question at a time, sorted, and questions per second in batches.
fn bare(version: &Version, asks: &[Ask], time: Duration, batch: usize) -> Result<(Vec<Duration>, f64)> {
    let fail = |error| anyhow!("the engine: {error:?}");
    let mut alone = Vec::new();
    let began = Instant::now();
    for ask in asks.iter().cycle() {
        let since = Instant::now();
        version.engine.answer(&[ask]).map_err(fail)?;
        alone.push(since.elapsed());
        if began.elapsed() > time {
            break;
        }
    }
    let (began, mut answered) = (Instant::now(), 0);
    for some in asks.chunks(batch).cycle() {
        version.engine.answer(&some.iter().collect::<Vec<_>>()).map_err(fail)?;
        answered += some.len();
        if began.elapsed() > time {
            break;
        }
    }
    alone.sort_unstable();
    Ok((alone, answered as f64 / began.elapsed().as_secs_f64()))
}

/// One question at a time at `rate`, as a quiet server sees them: cores that slept take a while to be fast again.
fn bare_at(version: &Version, asks: &[Ask], rate: f64, time: Duration) -> Result<Vec<Duration>> {
    let (began, mut took) = (Instant::now(), Vec::new());
    for (at, ask) in asks.iter().cycle().take((rate * time.as_secs_f64()) as usize).enumerate() {
        let due = began + Duration::from_secs_f64(at as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        version.engine.answer(&[ask]).map_err(|error| anyhow!("the engine: {error:?}"))?;
        took.push(due.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn row(seen: &Seen, share: f64, rate: f64) -> Value {
    json!({"share_of_capacity": share, "offered_per_second": rate, "p50_ms": quantile_ms(&seen.ok, 0.5),
        "p99_ms": quantile_ms(&seen.ok, 0.99), "ok": seen.ok.len(), "refused": seen.refused, "failed": seen.failed})
}

pub(super) fn run(args: &ServeBenchArgs) -> Result<()> {
    let limits = Limits { timeout_ms: 10_000, ..Limits::default() };
    let source = Source {
        run: args.run.clone(),
        catalogue: args.catalogue.clone(),
        asking: Asking { device: DeviceChoice::Cpu, ..Asking::default() },
    };
    let stage = Stage::new("load", 0);
    let version = Version::load(&source)?;
    let load_seconds = stage.done(&format!("{} items", version.catalogue.trie.items_total()));
    let histories = histories(args, &version)?;
    if histories.is_empty() {
        return Err(fault(Fault::BadData, "no history has an item of the catalogue"));
    }
    let keys = &version.catalogue.keys;
    let body = |history: &Vec<ItemIdx>| {
        let ids: Vec<Value> = history.iter().map(|item| keys.json(*item)).collect();
        let entry = json!({"history": ids, "k": args.k, "beam_width": args.beam});
        Bytes::from(json!({"requests": [entry]}).to_string())
    };
    let bodies: Arc<Vec<Bytes>> = Arc::new(histories.iter().map(body).collect());
    let ask = |history: &Vec<ItemIdx>| Ask {
        history: history[history.len().saturating_sub(version.history_cap)..].to_vec(),
        exclude: history.clone(),
        k: args.k,
        beam: args.beam,
        ..Ask::default()
    };
    let asks: Vec<Ask> = histories.iter().map(ask).collect();
    let items = version.catalogue.trie.items_total();
    let time = Duration::from_secs(args.seconds);

    let stage = Stage::new("engine alone", 0);
    let (alone, engine_per_second) = bare(&version, &asks, time, limits.max_batch as usize)?;
    let bare_p50 = quantile_ms(&alone, 0.5);
    stage.done(&format!("p50 {bare_p50:.2} ms alone, {engine_per_second:.0} a second in batches"));
    let stage = Stage::new("engine, 10 %", 0);
    let quiet_engine = quantile_ms(&bare_at(&version, &asks, 0.1 * engine_per_second, time)?, 0.5);
    stage.done(&format!("p50 {quiet_engine:.2} ms"));

    let metrics = Arc::new(Metrics::default());
    let versions = Arc::new(Versions::new(version, None, Arc::clone(&metrics)));
    let server = Server::new(versions, &limits, Tokens::default(), Arc::clone(&metrics))?;
    let (stop, stopped) = watch::channel(false);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let serving = runtime()?;
    let listener = serving.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let served = serving.spawn(server.run(listener, stopped));
    let asking = runtime()?;

    let stage = Stage::new("server, saturated", 0);
    let lanes = 4 * limits.max_batch as usize;
    let full = closed_loop(&asking, address, &bodies, lanes, time);
    let capacity = full.per_second;
    stage.done(&format!(
        "{capacity:.0} a second, {:.1} % below the engine",
        100.0 * (1.0 - capacity / engine_per_second)
    ));
    let mut loads = Vec::new();
    let mut failed = full.failed;
    for (share, times) in [(0.1, 1), (0.5, 1), (0.9, 1), (0.7, 6)] {
        let rate = share * capacity;
        let stage = Stage::new(&format!("{:.0} % of capacity", 100.0 * share), 0);
        let seen = open_loop(&asking, address, &bodies, rate, times * time);
        failed += seen.failed;
        let (p50, p99) = (quantile_ms(&seen.ok, 0.5), quantile_ms(&seen.ok, 0.99));
        stage.done(&format!("p50 {p50:.2} ms, p99 {p99:.2} ms, {} refused, {} failed", seen.refused, seen.failed));
        loads.push((share, rate, seen));
    }
    let _ = stop.send(true);
    serving.block_on(served).context("the server")??;

    let quiet = &loads[0].2;
    let rows: Vec<Value> = loads.iter().map(|(share, rate, seen)| row(seen, *share, *rate)).collect();
    let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
    let line = BenchLine {
        name: "serve",
        device: "cpu",
        threads: rayon::current_num_threads(),
        params: object(json!({"items": items, "beam": args.beam, "k": args.k, "histories": histories.len(),
            "real_histories": args.histories.is_some(), "max_batch": limits.max_batch, "seconds": args.seconds, "seed": args.seed})),
        p50_ms: quantile_ms(&quiet.ok, 0.5),
        p99_ms: quantile_ms(&quiet.ok, 0.99),
        per_second: capacity,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"failed": failed, "panics": metrics.panics.get(),
            "failed_at_70_percent": loads[3].2.failed + loads[3].2.refused})),
        more: object(
            json!({"load_seconds": load_seconds, "engine_p50_ms": bare_p50, "engine_per_second": engine_per_second,
            "engine_quiet_p50_ms": quiet_engine,
            "overhead_p50_ms": quantile_ms(&quiet.ok, 0.5) - quiet_engine, "throughput_share": capacity / engine_per_second,
            "loads": rows}),
        ),
    };
    json_line(&line)
}
