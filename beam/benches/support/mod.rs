//! Arguments, made-up catalogues and statistics of the benches.

#![allow(dead_code, reason = "each bench takes what it needs")]

use rqvae::{Code, SidSpec, SidTable};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) json: bool,
    pub(crate) rounds: usize,
    pub(crate) items: Option<usize>,
    pub(crate) levels: Option<usize>,
    pub(crate) codebook_size: Option<u32>,
    pub(crate) beam: Option<usize>,
    pub(crate) batch: Option<usize>,
}

impl Args {
    /// `--name value` pairs and `--json`; whatever else cargo passes is ignored.
    pub(crate) fn parse() -> Self {
        let words: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| word == name)?;
            words.get(at + 1)?.parse::<usize>().ok()
        };
        Self {
            json: words.iter().any(|word| word == "--json"),
            rounds: value("--rounds").unwrap_or(60).max(1),
            items: value("--items"),
            levels: value("--levels"),
            codebook_size: value("--codebook-size").map(|size| size as u32),
            beam: value("--beam"),
            batch: value("--batch"),
        }
    }
}

/// SplitMix64.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Codes uniform, or skewed: `floor(size * u * u)`.
pub(crate) fn table(items: usize, levels: usize, size: u32, skewed: bool, seed: u64) -> SidTable {
    let spec = SidSpec { codebook_sizes: vec![size; levels], suffix_size: None };
    let mut state = seed;
    let code = || {
        let u = (random(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
        (f64::from(size) * if skewed { u * u } else { u }) as Code
    };
    SidTable::new(spec, std::iter::repeat_with(code).take(items * levels).collect()).expect("codes fit")
}

pub(crate) fn quantile(times: &[Duration], share: f64) -> Option<f64> {
    let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let last = ms.len().checked_sub(1)?;
    ms.get((last as f64 * share).round() as usize).copied()
}

pub(crate) fn median(times: &[Duration]) -> Option<f64> {
    quantile(times, 0.5)
}

/// Most memory this process ever held; 0 where the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
