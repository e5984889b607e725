//! Content embeddings become hierarchical semantic IDs.

mod artefact;
mod content;
mod error;
mod ids;
mod quantize;
mod training;

pub use artefact::{Artefact, ArtefactWriter, file_digest, write_atomic};
pub use content::{BertEncoder, ContentEncoder, HashedEncoder, ItemText, LsaConfig, LsaEncoder};
pub use error::{Error, Result};
pub use ids::{Code, CodeMatrix, CollisionPolicy, ItemIdx, MAX_CODES, SemanticId, SidSpec, SidStats, SidTable, resolve};
pub use quantize::Vectors;
pub use training::{AdamW, AdamWConfig, Checkpoint, CheckpointDir, Decay, Mode, Schedule, SeededRng, StepKeys, mix};
