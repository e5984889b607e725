//! Models that score every item at once.

mod sasrec;

pub use sasrec::{SasRec, SasRecConfig, SasRecLoss, SasRecRetriever};
