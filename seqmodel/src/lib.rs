//! Models that read a user history and score what comes next.
//!
//! Rooms, in the order data flows: [`data`] (histories, split, batches), [`nn`] (layers), [`rqt`], [`tiger`],
//! [`dense`] and [`mf`] (models), [`loss`], [`train`] (one loop for all), [`generative`] and [`retrieve`] (history in, items out),
//! [`mod@evaluate`] and [`Metrics`].

pub mod baseline;
pub mod cuda;
pub mod data;
pub mod dense;
mod error;
pub mod evaluate;
pub mod generative;
mod history_cache;
pub mod hybrid;
mod items;
pub mod loss;
pub mod memory;
mod metrics;
pub mod mf;
pub mod nn;
mod objectives;
mod packed;
pub mod retrieve;
pub mod rqt;
pub mod runfile;
pub mod tiger;
pub mod train;

pub use data::{Case, Histories, History, LeaveOneOut, Split, UserHash};
pub use error::{Error, Result};
pub use evaluate::{EvalConfig, Evaluation, evaluate};
pub use generative::{Generative, Generator, Guidance, Search};
pub use history_cache::HistoryCache;
pub use items::ItemFeatures;
pub use metrics::{Metrics, Ranks};
pub use objectives::{LearnsWindows, SampleObjective, WindowObjective};
pub use packed::{PackedSession, Precision};
pub use retrieve::{Query, Retriever, Scored};

#[cfg(test)]
mod training_tests;
