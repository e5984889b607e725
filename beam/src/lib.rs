//! The set of valid semantic IDs as a trie, and search over it.
//!
//! [`Trie`] holds every ID of a catalogue in level arrays, [`LiveMask`] says which items may be returned, a
//! [`StepScorer`] is the model as search sees it, and [`search`] walks children of live nodes only: an ID outside the
//! catalogue cannot be produced. [`oracle`] scores every item without pruning and is what the search is tested against.

mod error;
mod kernel;
pub mod oracle;
mod order;
mod scorer;
mod search;
mod trie;

pub use error::{BoxError, Error, Result};
pub use kernel::{BeamKernel, CpuBeams, CpuKernel, Scores};
pub use scorer::StepScorer;
pub use search::{BeamConfig, Hypothesis, ScoreMode, search};
pub use trie::{LiveMask, NodeId, Trie};
