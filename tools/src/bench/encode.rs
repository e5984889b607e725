//! `sidrec bench encode`: items encoded per second by a fitted quantiser, and whether their codes are the nearest ones.

use super::line::{BenchLine, peak_rss_bytes, quantile_ms};
use super::vectors::{QuantizerBenchArgs, object};
use crate::cli::json_line;
use crate::jobs::build_sids;
use anyhow::Result;
use rqvae::{Behavior, Encoded, SidEncoder, Vectors};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Items that are looked at one by one.
const SAMPLE: usize = 500;

pub(super) fn run(args: &QuantizerBenchArgs) -> Result<()> {
    let config = args.config()?;
    let (device, content) = (args.device(&config)?, args.vectors()?);
    let on = device.as_ref().map_or_else(|| "cpu".into(), |device| device.name());
    let quantizer = build_sids::fit(&config, &content, &Behavior::default(), device.as_ref(), &mut |_| ())?;
    let encode = || build_sids::encode(quantizer.as_ref(), &content, device.as_ref());
    let mut times: Vec<Duration> = Vec::new();
    let mut encoded = encode()?;
    for _ in 0..args.runs {
        let began = Instant::now();
        encoded = encode()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let median_s = quantile_ms(&times, 0.5) / 1e3;
    let sample: Vec<usize> = (0..content.rows()).step_by((content.rows() / SAMPLE).max(1)).collect();
    let began = Instant::now();
    let mut alone_equal = true;
    for &row in &sample {
        let alone = quantizer.encode(&Vectors::new(content.dim, content.row(row).to_vec())?)?;
        alone_equal &= alone.codes.row(0) == encoded.codes.row(row);
    }
    let alone_per_second = sample.len() as f64 / began.elapsed().as_secs_f64();
    let nearest = last_codes_are_nearest(quantizer.as_ref(), &content, &encoded, &sample)?;
    json_line(&BenchLine {
        name: "encode",
        device: &on,
        threads: rayon::current_num_threads(),
        params: args.params(&content, &config),
        p50_ms: 1e3 * median_s,
        p99_ms: quantile_ms(&times, 0.99),
        per_second: content.rows() as f64 / median_s,
        peak_rss_bytes: peak_rss_bytes(),
        checks: object(json!({"alone_equals_batch": alone_equal, "last_codes_are_nearest": nearest})),
        more: object(json!({"relative_error": encoded.relative_error(&content), "alone_per_second": alone_per_second})),
    })
}

/// Whether no codeword is nearer to what the last level of the `sample` is given than that of its code; null for
/// methods whose last code is no nearest codeword.
fn last_codes_are_nearest(
    quantizer: &dyn SidEncoder,
    content: &Vectors,
    encoded: &Encoded,
    sample: &[usize],
) -> Result<Value> {
    let last = match quantizer.last_level(content)? {
        Some(last) if quantizer.method() != "balanced" => last,
        _ => return Ok(Value::Null),
    };
    let level = encoded.codes.levels() - 1;
    let all = sample.iter().all(|&row| {
        let residual = &last.residuals[row * last.dim..][..last.dim];
        let distance = |code: usize| -> f64 {
            let pairs = residual.iter().zip(&last.codewords[code * last.dim..]);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let own = distance(usize::from(encoded.codes.row(row)[level]));
        let norm: f64 = residual.iter().map(|x| f64::from(*x).powi(2)).sum();
        // Single-precision products may turn what is this close.
        (0..last.codewords.len() / last.dim).all(|code| distance(code) >= own - 1e-5 * norm.max(own))
    });
    Ok(Value::Bool(all))
}
