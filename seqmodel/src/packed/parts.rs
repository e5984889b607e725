//! Work in parts: many requests on all threads, or one that comes alone on the threads of a crew.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Fewest multiplications and additions of a part: waking a thread takes some fifty millionths of a second.
const LEAST: usize = 8 << 20;

/// Most threads of a crew; parts of a request read the same weights, and the shares get small.
const MOST: usize = 4;

/// Turns that a thread waits for the others before it lets them have its core.
const SPINS: usize = 4096;

/// Each part on a thread of its own; a single one here. For parts that need not wait for each other.
pub(crate) fn on_threads<T: Send>(parts: impl Iterator<Item = T>, run: impl Fn(T) + Sync + Send) {
    let mut parts: Vec<T> = parts.collect();
    if parts.len() > 1 {
        parts.into_par_iter().for_each(run);
    } else if let Some(part) = parts.pop() {
        run(part);
    }
}

/// Threads that wait for a request that comes alone.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    pool: Option<ThreadPool>,
    /// One request at a time has them; others do without.
    taken: Mutex<()>,
    least: usize,
}

impl Crew {
    /// At most so many threads; none where one is enough or the system has no more.
    pub(crate) fn new(threads: usize) -> Self {
        Self::with_least(threads, LEAST)
    }

    /// As [`Crew::new`], for parts of at least `least` multiplications.
    pub(crate) fn with_least(threads: usize, least: usize) -> Self {
        let threads = threads.min(MOST);
        let name = |at| format!("crew-{at}");
        let pool = (threads > 1).then(|| ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build());
        Self { pool: pool.and_then(Result::ok), taken: Mutex::default(), least }
    }

    /// The threads that `work` multiplications in `rows` rows are worth: none of the crew where it is at work already.
    pub(crate) fn muster(&self, rows: usize, work: usize) -> Muster<'_> {
        let worth = |pool: &ThreadPool| pool.current_num_threads().min(rows).min(work / self.least.max(1));
        let pool = self.pool.as_ref().filter(|pool| worth(pool) > 1);
        let taken = pool.and_then(|pool| Some((pool, self.taken.try_lock().ok()?)));
        Muster { threads: taken.as_ref().map_or(1, |(pool, _)| worth(pool)), taken }
    }
}

/// Threads that have been called together.
pub(crate) struct Muster<'a> {
    threads: usize,
    taken: Option<(&'a ThreadPool, MutexGuard<'a, ()>)>,
}

impl Muster<'_> {
    /// This thread alone.
    pub(crate) fn alone() -> Self {
        Self { threads: 1, taken: None }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Each part on a thread of its own, all at the same time, so that they may wait for each other. At most
    /// [`Muster::threads`] parts.
    pub(crate) fn run<T: Send>(&self, parts: impl Iterator<Item = T>, run: impl Fn(T, &Meeting) + Sync) {
        let mut parts: Vec<T> = parts.collect();
        let meeting = Meeting { size: parts.len(), ..Meeting::default() };
        let (Some(taken), 2..) = (&self.taken, parts.len()) else {
            return parts.drain(..).for_each(|part| run(part, &meeting));
        };
        let parts: Vec<_> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
        // Every thread of the pool comes, each once.
        taken.0.broadcast(|context| {
            let part = parts.get(context.index());
            if let Some(part) = part.and_then(|part| part.lock().unwrap_or_else(PoisonError::into_inner).take()) {
                let _leaving = Leaving(&meeting);
                run(part, &meeting);
            }
        });
    }
}

/// Where threads wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Meeting {
    size: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    /// One of them will not come again.
    broken: AtomicBool,
}

impl Meeting {
    /// Goes on when all are here; what they did before is seen by all afterwards.
    pub(crate) fn wait(&self) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.round.load(Ordering::Acquire) == round && !self.broken.load(Ordering::Relaxed) {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// Lets the others go on where a thread panics.
struct Leaving<'a>(&'a Meeting);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_here_before_anyone_goes_on() {
        let crew = Crew::with_least(3, 1);
        let muster = crew.muster(9, 9);
        assert_eq!(muster.threads(), 3);
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        muster.run(0..3, |part, meeting| {
            for round in 1..=2000 {
                counts[part].store(round, Ordering::Relaxed);
                meeting.wait();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round));
                meeting.wait();
            }
        });
        // It has its hands full: the next one does without.
        assert_eq!(crew.muster(9, 9).threads(), 1);
        drop(muster);
        assert_eq!(crew.muster(9, 9).threads(), 3);
    }

    #[test]
    fn small_work_and_single_threads_stay_alone() {
        assert_eq!(Crew::new(1).muster(100, usize::MAX).threads(), 1);
        assert_eq!(Crew::default().muster(100, usize::MAX).threads(), 1);
        let crew = Crew::with_least(4, 100);
        let threads =
            [(100, 199), (100, 200), (100, 399), (3, 4000)].map(|(rows, work)| crew.muster(rows, work).threads());
        assert_eq!(threads, [1, 2, 3, 3]);
    }

    #[test]
    #[should_panic(expected = "one of them")]
    fn nobody_waits_for_one_who_panicked() {
        let crew = Crew::with_least(2, 1);
        crew.muster(9, 9).run(0..2, |part, meeting| {
            assert!(part == 0, "one of them");
            meeting.wait();
        });
    }
}
