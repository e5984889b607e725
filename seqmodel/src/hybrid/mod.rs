//! A generative model beside a memory of what follows what and of what is like what, in one list.
//!
//! Papers: Yang et al. 2024 (LIGER), sec. 3: beams of a generative model are united with all new items and ranked anew by
//! a dense score; Ding et al. 2024 (SpecGR), sec. 3: new items are drafted by another scorer, since a generative model
//! never writes their IDs; Cormack et al. 2009, reciprocal rank fusion (there with an offset of 60 and equal weights).
//! Deviations: the dense side is a memory instead of a trained head. What it keeps of training are counts of followers;
//! new items are scored by their content to each item of a history, and by what is known of the warm items that they are
//! like, whose scores they borrow. Nothing of it is trained, so that nothing in it can learn to rely on having been seen.

mod config;
mod memory;
pub mod mixing;
mod model;
mod retriever;

pub use config::HybridConfig;
pub use memory::{Memory, Ranked};
pub use model::Hybrid;
pub use retriever::HybridRetriever;

#[cfg(test)]
mod tests;
