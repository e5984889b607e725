//! `sidrec gpu-selftest`.

use super::json_line;
use crate::gpu::{compile_only, self_test};
use anyhow::Result;
use clap::Args;
use std::time::Duration;

#[derive(Args)]
pub(super) struct SelfTestArgs {
    /// Only compile every kernel, for all kinds of devices; needs NVRTC and no GPU
    #[arg(long)]
    compile_only: bool,
    /// Only the JSON line
    #[arg(long)]
    json: bool,
    /// Seconds after which no further bench begins
    #[arg(long, default_value_t = 420, env = "SIDREC_TIME_LIMIT")]
    time_limit: u64,
}

/// Tests and prints what came of it.
pub(super) fn gpu_selftest(args: &SelfTestArgs) -> Result<()> {
    let test = if args.compile_only { compile_only()? } else { self_test(Duration::from_secs(args.time_limit))? };
    if !args.json {
        eprintln!("{}, {}: {} kernels compiled, {} cases", test.device, test.arch, test.kernels_compiled, test.cases);
        for bench in &test.benches {
            eprintln!("  {} {}: p50 {:.3} ms", bench["name"], bench["params"], bench["p50_ms"].as_f64().unwrap_or(0.0));
        }
        test.spills.iter().chain(&test.failures).for_each(|line| eprintln!("  {line}"));
        test.left_out.iter().for_each(|name| eprintln!("  no time for {name}"));
    }
    json_line(&test)?;
    let wrong = test.spills.len() + test.failures.len();
    anyhow::ensure!(wrong == 0, "{wrong} kernels or cases are not as they should be");
    Ok(())
}
