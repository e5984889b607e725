//! The line that a bench prints last.

use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// One bench; keys are fixed, further ones are added behind.
#[derive(Debug, Serialize)]
pub(super) struct BenchLine<'a> {
    pub(super) name: &'static str,
    pub(super) device: &'a str,
    pub(super) threads: usize,
    pub(super) params: Map<String, Value>,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) per_second: f64,
    pub(super) peak_rss_bytes: Option<u64>,
    /// What was verified in the same run.
    pub(super) checks: Map<String, Value>,
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
}

/// The share `q` of sorted times, in milliseconds; 0 for none.
pub(super) fn quantile_ms(sorted: &[Duration], q: f64) -> f64 {
    let at = ((sorted.len() as f64 * q) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |took| 1e3 * took.as_secs_f64())
}

/// Most memory this process ever had, where the system tells.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_hand() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert!((quantile_ms(&times, 0.5) - 51.0).abs() < 1e-9);
        assert!((quantile_ms(&times, 0.99) - 100.0).abs() < 1e-9);
        assert!(quantile_ms(&[], 0.5) == 0.0);
    }
}
