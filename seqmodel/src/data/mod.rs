//! Histories, their split, and batches of them.

mod ahead;
mod batch;
mod history;
mod negatives;
mod padded;
mod split;

pub(crate) use ahead::ahead;
pub use ahead::preparation_seconds;
pub(crate) use batch::pick;
pub use batch::{Batches, Window, windows};
pub use history::{Histories, History, UserHash};
pub use negatives::{ItemFrequency, Negatives};
pub use padded::Padded;
pub use split::{Case, LeaveOneOut, Split};
