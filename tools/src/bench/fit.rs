//! `sidrec bench fit`: how long a quantiser takes to fit.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use super::vectors::{QuantizerBenchArgs, object};
use crate::cli::json_line;
use crate::progress::Stage;
use anyhow::Result;
use rqvae::{SidStats, fit_quantizer};
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn run(args: &QuantizerBenchArgs) -> Result<()> {
    let (config, content) = (args.config()?, args.vectors()?);
    let mut times: Vec<Duration> = Vec::new();
    let mut outcomes = Vec::new();
    for run in 0..args.runs {
        let mut stage = (!args.json).then(|| Stage::new("fit", u64::from(args.runs)));
        let began = Instant::now();
        let quantizer = fit_quantizer(&config, &content, &mut |p| {
            if let Some(stage) = &mut stage {
                stage.at(p.done as u64, p.total as u64, p.stage);
            }
        })?;
        times.push(began.elapsed());
        if let Some(stage) = stage {
            stage.done(&format!("run {}: {:.2} s", run + 1, times[run as usize].as_secs_f64()));
        }
        outcomes.push(quantizer.encode(&content)?);
    }
    times.sort_unstable();
    let first = &outcomes[0];
    let stats = SidStats::of(&first.codes, &config.sizes());
    let median_s = quantile_ms(&times, 0.5) / 1e3;
    json_line(&BenchLine {
        name: "fit",
        device: "cpu",
        threads: rayon::current_num_threads(),
        params: args.params(&content, &config),
        p50_ms: 1e3 * median_s,
        p99_ms: quantile_ms(&times, 0.99),
        per_second: content.rows() as f64 / median_s,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"same_seed_same_codes": outcomes.iter().all(|other| other.codes == first.codes)})),
        more: object(json!({"relative_error": first.relative_error(&content), "usage": stats.usage,
            "perplexity": stats.perplexity, "unique_fraction": stats.unique_fraction})),
    })
}
