//! Work in parts: one request on several threads, where nobody else needs them.

use rayon::prelude::*;

/// Fewest rows that pay for waking a thread.
const ROWS: usize = 4;

/// Threads for each of `requests` with so many rows.
///
/// A caller outside the pool would sleep and be woken for every part of a layer, which costs more than it gains wherever
/// cores are busy: its requests stay whole. Inside, a part that nobody takes is done by the caller.
pub(crate) fn threads(requests: usize, rows: usize) -> usize {
    let threads = if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 };
    (threads / requests.max(1)).min(rows / ROWS).max(1)
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
