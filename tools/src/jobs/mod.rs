//! The jobs behind the subcommands, as library functions.

pub mod baselines;
pub mod behavior;
pub mod build_sids;
pub mod change_sids;
pub mod cold;
pub mod counts;
pub mod demo;
pub mod eval;
pub mod inspect;
pub mod inspect_page;
pub mod pack;
pub mod recommend;
pub mod sources;
pub mod stream;
pub mod train;
