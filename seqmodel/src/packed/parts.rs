//! Work in parts: one request on several threads, where nobody else needs them.

use rayon::prelude::*;

/// Fewest rows that pay for waking a thread.
const ROWS: usize = 4;

/// Threads for each of `requests` with so many rows.
pub(crate) fn threads(requests: usize, rows: usize) -> usize {
    (rayon::current_num_threads() / requests.max(1)).min(rows / ROWS).max(1)
}

/// Each part on a thread of its own; a single one here.
pub(crate) fn on_threads<T: Send>(parts: impl Iterator<Item = T>, run: impl Fn(T) + Sync + Send) {
    let mut parts: Vec<T> = parts.collect();
    if parts.len() > 1 {
        parts.into_par_iter().for_each(run);
    } else if let Some(part) = parts.pop() {
        run(part);
    }
}
