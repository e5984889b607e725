//! How long it takes to make batches, beside the steps that use them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Seconds that this process has spent so far on making batches of training data: shuffles, padding, tokens, targets, masks
/// and draws; not on the frequencies that two towers keep of their targets, which change the model. Histories that are read
/// to answer count where they go the same way.
pub fn preparation_seconds() -> f64 {
    NANOSECONDS.load(Ordering::Relaxed) as f64 * 1e-9
}

/// What `make` gives; its time counts as preparation. Not to be nested.
pub(crate) fn preparing<T>(make: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let made = make();
    NANOSECONDS.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    made
}
