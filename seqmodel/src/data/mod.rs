//! Histories, their split, and batches of them.

mod batch;
mod history;
mod negatives;
mod padded;
mod preparation;
mod split;

pub use batch::{Batches, Window, windows};
pub use history::{Histories, History, UserHash};
pub use negatives::{ItemFrequency, Negatives};
pub use padded::Padded;
pub use preparation::preparation_seconds;
pub(crate) use preparation::preparing;
pub use split::{Case, LeaveOneOut, Split};
