//! `sidrec bench fit`: how long a quantiser takes to fit.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use super::vectors::{QuantizerBenchArgs, object};
use crate::cli::json_line;
use crate::jobs::build_sids;
use crate::progress::Stage;
use anyhow::Result;
use rqvae::{Behavior, SidStats};
use serde_json::json;
use std::time::{Duration, Instant};

pub(super) fn run(args: &QuantizerBenchArgs) -> Result<()> {
    let config = args.config()?;
    let (device, content) = (args.device(&config)?, args.vectors()?);
    let on = device.as_ref().map_or_else(|| "cpu".into(), |device| device.name());
    let mut times: Vec<Duration> = Vec::new();
    let mut outcomes = Vec::new();
    for run in 0..args.runs {
        let mut stage = (!args.json).then(|| Stage::new("fit", u64::from(args.runs)));
        let began = Instant::now();
        let quantizer = build_sids::fit(&config, &content, &Behavior::default(), device.as_ref(), &mut |p| {
            if let Some(stage) = &mut stage {
                stage.at(p.done as u64, p.total as u64, p.stage);
            }
        })?;
        times.push(began.elapsed());
        if let Some(stage) = stage {
            stage.done(&format!("run {}: {:.2} s", run + 1, times[run as usize].as_secs_f64()));
        }
        outcomes.push(build_sids::encode(quantizer.as_ref(), &content, device.as_ref())?);
    }
    times.sort_unstable();
    let first = &outcomes[0];
    let stats = SidStats::of(&first.codes, &config.sizes());
    let median_s = quantile_ms(&times, 0.5) / 1e3;
    json_line(&BenchLine {
        name: "fit",
        device: &on,
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
