//! Models that score every item at once.

mod index;
mod ivf;
mod sasrec;
mod two_tower;

pub use index::DenseIndex;
pub use ivf::IvfIndex;
pub use sasrec::{SasRec, SasRecConfig, SasRecLoss, SasRecRetriever};
pub use two_tower::{TwoTower, TwoTowerConfig, TwoTowerRetriever};
