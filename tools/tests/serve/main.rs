//! The server from outside: limits, overload, slow and vanishing clients, swaps, faults. Times are generous, so that a
//! busy machine does not fail them; what an idle one reaches is in the guide.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

mod client;
mod conformance;
mod faults;
mod fresh;
mod long;
mod malformed;
mod overload;
mod process;
mod server;
mod slow;
mod swaps;
