//! Semantic IDs: what they are, tables of them, collisions and statistics.

mod collision;
mod reassign;
mod sid;
mod stats;
mod table;

pub use collision::{CollisionPolicy, resolve, suffix_room};
pub use reassign::{LastLevel, Reassignment, reassign};
pub use sid::{Code, ItemIdx, MAX_CODES, SemanticId, SidSpec};
pub use stats::SidStats;
pub use table::{CodeMatrix, SidTable};
