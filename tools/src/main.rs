//! The `sidrec` binary.

use clap::Parser;
use std::process::ExitCode;
use tools::cli::Cli;

#[global_allocator]
static ALLOCATOR: tools::allocator::Shelves = tools::allocator::Shelves;

fn main() -> ExitCode {
    one_pool();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("SIDREC_LOG").unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new(
                "error,tools=warn,rqvae=warn,seqmodel=warn,tools::serve=info,access=info",
            )
        }))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", tools::error::told(&error));
            ExitCode::from(u8::try_from(tools::error::exit_code(&error)).unwrap_or(1))
        }
    }
}

/// Candle brings a pool of spinning threads beside rayon's; with both on the same cores a training step takes more
/// than twice as long. Its own operations here are small, so it gets one thread unless told otherwise.
#[allow(unsafe_code, reason = "setting an environment variable")]
fn one_pool() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: nothing else runs yet, so no other thread reads the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}
