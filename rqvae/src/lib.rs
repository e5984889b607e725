//! Content embeddings become hierarchical semantic IDs.

mod accelerator;
#[cfg(test)]
mod accelerator_tests;
mod artefact;
mod cluster;
mod content;
mod error;
mod ids;
mod model;
mod quantize;
mod training;

pub use accelerator::{Accelerator, DevicePoints};
pub use artefact::{Artefact, ArtefactWriter, file_digest, write_atomic};
pub use cluster::{HierarchicalKmeans, HierarchicalKmeansConfig, Kmeans, KmeansConfig};
pub use cluster::{Opq, OpqConfig, ResidualKmeans, ResidualKmeansConfig};
pub use content::{ContentEncoder, HashedEncoder, ItemText, LsaConfig, LsaEncoder, TextEncoder};
pub use error::{Error, Result};
pub use ids::{
    Code, CodeMatrix, CollisionPolicy, ItemIdx, LastLevel, MAX_CODES, Reassignment, SemanticId, SidSpec, SidStats,
    SidTable, reassign, resolve, suffix_room,
};
pub use model::{CodebookUpdate, Estimator, RqVae, RqVaeConfig, RqVaeQuantizer};
pub use model::{TowerLayer, TowerPlan, TowerStart, Towers, TowersApart, towers_apart};
pub use quantize::{Behavior, Encoded, FitProgress, Lsh, Method, QuantizerConfig, RandomIds, SidEncoder, Vectors};
pub use quantize::{fit_quantizer, fit_quantizer_with, load_quantizer};
pub use training::{AdamW, AdamWConfig, Checkpoint, CheckpointDir, Decay, Mode, Schedule, SeededRng, StepKeys, mix};
