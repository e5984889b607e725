//! What a server takes, in one place: command line, checks and `GET /v1/info` read the same numbers.

use clap::Args;
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// Bounds of requests, queue and connections. Whatever is beyond them gets an answer that names the limit.
#[derive(Debug, Clone, Args, Serialize, ToSchema)]
pub struct Limits {
    /// Largest body of a request, bytes
    #[arg(long, default_value_t = 2 << 20, env = "SIDREC_MAX_BODY", value_parser = clap::value_parser!(u64).range(1..=64 << 20))]
    pub max_body: u64,
    /// Most entries in one request
    #[arg(long, default_value_t = 256, env = "SIDREC_MAX_ENTRIES", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_entries: u32,
    /// Most item ids in one history; the model reads the newest of them
    #[arg(long, default_value_t = 10_000, env = "SIDREC_MAX_HISTORY")]
    pub max_history: u32,
    /// Longest list
    #[arg(long, default_value_t = 1000, env = "SIDREC_MAX_K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_k: u32,
    /// Widest beam
    #[arg(long, default_value_t = 1024, env = "SIDREC_MAX_BEAM", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_beam: u32,
    /// Most entries times beams in one request
    #[arg(long, default_value_t = 65_536, env = "SIDREC_MAX_WORK")]
    pub max_work: u32,
    /// Deadline of a request that names none, milliseconds
    #[arg(long, default_value_t = 1000, env = "SIDREC_TIMEOUT_MS")]
    pub timeout_ms: u32,
    /// Longest deadline that a request may name, milliseconds
    #[arg(long, default_value_t = 30_000, env = "SIDREC_MAX_TIMEOUT_MS")]
    pub max_timeout_ms: u32,
    /// Entries that may wait; beyond it the answer is 429
    #[arg(long, default_value_t = 512, env = "SIDREC_QUEUE")]
    pub queue: u32,
    /// Most entries in one batch
    #[arg(long, default_value_t = 16, env = "SIDREC_MAX_BATCH", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub max_batch: u32,
    /// Most padded work in one batch: entries times longest history times widest beam
    #[arg(long, default_value_t = 65_536, env = "SIDREC_MAX_BATCH_WORK")]
    pub max_batch_work: u32,
    /// How long a batch that is not full waits for company, microseconds
    #[arg(long, default_value_t = 0, env = "SIDREC_BATCH_DELAY_US", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub batch_delay_us: u32,
    /// Open connections; more wait in the backlog
    #[arg(long, default_value_t = 1024, env = "SIDREC_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// Largest header of a request, bytes
    #[arg(long, default_value_t = 16 << 10, env = "SIDREC_MAX_HEADER", value_parser = clap::value_parser!(u32).range(8192..=1 << 20))]
    pub max_header: u32,
    /// Time to send a header, milliseconds
    #[arg(long, default_value_t = 5000, env = "SIDREC_HEADER_MS")]
    pub header_ms: u32,
    /// Time to send a body, milliseconds
    #[arg(long, default_value_t = 10_000, env = "SIDREC_BODY_MS")]
    pub body_ms: u32,
    /// Time between two requests on one connection, milliseconds
    #[arg(long, default_value_t = 60_000, env = "SIDREC_IDLE_MS")]
    pub idle_ms: u32,
    /// Time between the signal to stop and closing connections, milliseconds: for balancers that need to notice
    #[arg(long, default_value_t = 0, env = "SIDREC_DRAIN_MS")]
    pub drain_ms: u32,
    /// Time for accepted requests to end after that, milliseconds
    #[arg(long, default_value_t = 30_000, env = "SIDREC_STOP_MS")]
    pub stop_ms: u32,
}

/// Deepest nesting of a JSON body.
pub const JSON_DEPTH: usize = 32;

impl Default for Limits {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            limits: Limits,
        }
        // The defaults have one home, the attributes above; the environment is left out of it here.
        let arguments = <Defaults as clap::CommandFactory>::command().mut_args(|arg| arg.env(None));
        let matches = arguments.no_binary_name(true).try_get_matches_from(Vec::<String>::new());
        let parsed = matches.and_then(|matches| <Defaults as clap::FromArgMatches>::from_arg_matches(&matches));
        parsed.map(|defaults| defaults.limits).expect("every limit has a default")
    }
}

impl Limits {
    /// Time to send a header.
    pub fn header(&self) -> Duration {
        Duration::from_millis(u64::from(self.header_ms))
    }

    /// Time between two requests on one connection.
    pub fn idle(&self) -> Duration {
        Duration::from_millis(u64::from(self.idle_ms))
    }

    /// Time to send a body.
    pub fn body(&self) -> Duration {
        Duration::from_millis(u64::from(self.body_ms))
    }
}
