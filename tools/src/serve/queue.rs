//! The bounded line between connections and the engine.
//!
//! Entries wait in order of arrival. Whoever would be too late anyway is turned away at the door, by the time that an
//! entry has taken lately; whoever gave up while waiting is dropped before it costs anything.

use super::engine::{Answer, Ask};
use super::limits::Limits;
use super::version::Version;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Why an entry was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The deadline passed before its turn.
    Late,
    /// The engine failed on it.
    Engine(String),
    /// The server stops, or its device is lost.
    Gone,
}

/// One entry that waits.
pub(super) struct Waiting {
    /// The version that its items were looked up in.
    pub(super) version: Arc<Version>,
    /// The question.
    pub(super) ask: Ask,
    /// When it came.
    pub(super) since: Instant,
    /// When an answer is of no use any more.
    pub(super) deadline: Instant,
    /// Where the answer goes; closed when nobody waits for it.
    pub(super) reply: oneshot::Sender<Result<Answer, Failure>>,
}

impl Waiting {
    /// Padded work beside an entry of `length` items and `beam` beams: the wider of both.
    fn shape(&self) -> (usize, usize) {
        (self.ask.history.len().clamp(1, self.version.history_cap), self.ask.beam.max(self.ask.k))
    }
}

/// Why entries were not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no room, or the deadline cannot be met; worth another try after that time.
    Full(Duration),
    /// The server stops.
    Closed,
}

#[derive(Default)]
struct Inside {
    line: VecDeque<Waiting>,
    /// Entries that the engine has now.
    running: usize,
    /// Seconds per entry, a running mean; 0 before the first.
    pace: f64,
    closed: bool,
}

/// The line. Cheap to share.
pub(super) struct Queue {
    inside: Mutex<Inside>,
    arrived: Condvar,
    limits: Limits,
}

impl Queue {
    /// An empty line.
    pub(super) fn new(limits: &Limits) -> Self {
        Self { inside: Mutex::default(), arrived: Condvar::new(), limits: limits.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that wait.
    pub(super) fn depth(&self) -> usize {
        self.lock().line.len()
    }

    /// Lets all of `entries` in, or none.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) fn push(&self, entries: Vec<Waiting>) -> Result<(), Refused> {
        let mut inside = self.lock();
        if inside.closed {
            return Err(Refused::Closed);
        }
        let ahead = inside.line.len() + inside.running;
        let wait = Duration::from_secs_f64(inside.pace * (ahead + entries.len()) as f64);
        let patience = entries.iter().map(|entry| entry.deadline.saturating_duration_since(entry.since)).min();
        // An idle engine takes what it can get, so that a pace once misjudged is measured anew.
        let hopeless = ahead > 0 && patience.is_some_and(|patience| wait > patience);
        if inside.line.len() + entries.len() > self.limits.queue as usize || hopeless {
            return Err(Refused::Full(Duration::from_secs_f64(inside.pace * ahead as f64)));
        }
        inside.line.extend(entries);
        drop(inside);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for the next batch: entries of one version in order of arrival, as many as count and padded work allow;
    /// `None` when the line is closed and empty. Entries that are late or that nobody waits for are dropped here.
    pub(super) fn next_batch(&self) -> Option<Vec<Waiting>> {
        let mut inside = self.lock();
        inside.running = 0;
        loop {
            let now = Instant::now();
            let mut line = std::mem::take(&mut inside.line);
            line.retain(|entry| entry.deadline > now && !entry.reply.is_closed());
            inside.line = line;
            let Some(first) = inside.line.front() else {
                if inside.closed {
                    return None;
                }
                inside = self.arrived.wait(inside).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let full = inside.line.len() >= self.limits.max_batch as usize;
            let delay = Duration::from_micros(u64::from(self.limits.batch_delay_us));
            let remaining = delay.saturating_sub(first.since.elapsed());
            if full || inside.closed || remaining.is_zero() {
                break;
            }
            inside = self.arrived.wait_timeout(inside, remaining).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut batch: Vec<Waiting> = Vec::new();
        let (mut longest, mut widest) = (0, 0);
        while let Some(entry) = inside.line.front() {
            let (length, beam) = entry.shape();
            let (length, beam) = (longest.max(length), widest.max(beam));
            let work = (batch.len() + 1) * length * beam;
            let other = batch.first().is_some_and(|first| !Arc::ptr_eq(&first.version, &entry.version));
            let fits = batch.len() < self.limits.max_batch as usize && work <= self.limits.max_batch_work as usize;
            if other || !(batch.is_empty() || fits) {
                break;
            }
            (longest, widest) = (length, beam);
            batch.extend(inside.line.pop_front());
        }
        inside.running = batch.len();
        Some(batch)
    }

    /// Tells how long a batch of `entries` took.
    pub(super) fn paced(&self, entries: usize, took: Duration) {
        let each = took.as_secs_f64() / entries.max(1) as f64;
        let mut inside = self.lock();
        inside.pace = if inside.pace == 0.0 { each } else { 0.9 * inside.pace + 0.1 * each };
    }

    /// Lets nobody in any more; what waits is still answered.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        for entry in self.lock().line.drain(..) {
            let _ = entry.reply.send(Err(Failure::Gone));
        }
    }
}
