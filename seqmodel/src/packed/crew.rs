//! Work in parts: many requests on all threads, or one that comes alone with the help of a crew.

use rayon::prelude::*;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// Fewest multiplications and additions of a job that is worth telling others: some millionths of a second.
const LEAST: usize = 1 << 16;

/// Most threads of a crew: the parts of a request get small.
const MOST: usize = 4;

/// Turns that a thread looks for what it waits for before it lets others have its core: longer than a request pauses.
const SPINS: usize = 4096;

/// Each part on a thread of its own; a single one here. For parts that are long.
pub(crate) fn on_threads<T: Send>(parts: impl Iterator<Item = T>, run: impl Fn(T) + Sync + Send) {
    let mut parts: Vec<T> = parts.collect();
    if parts.len() > 1 {
        parts.into_par_iter().for_each(run);
    } else if let Some(part) = parts.pop() {
        run(part);
    }
}

/// Threads that help with a request that comes alone.
///
/// Who has work lays it out as a job of many parts, of which each thread has an equal share, the same ones from job to job:
/// what it has written lies near it. Who is done with its own takes those of the others. Nobody waits for a helper that has
/// not begun: one that the system has put aside costs nothing.
#[derive(Default)]
pub(crate) struct Crew {
    office: Arc<Office>,
    helpers: Vec<JoinHandle<()>>,
    /// One request at a time has them; others do without.
    taken: Mutex<()>,
    least: usize,
}

/// Where jobs are given out.
#[derive(Default)]
struct Office {
    desk: Mutex<Desk>,
    /// Rings for those who sleep.
    bell: Condvar,
    /// Jobs so far.
    jobs: AtomicUsize,
    /// Helpers that have the job.
    busy: AtomicUsize,
}

#[derive(Default)]
struct Desk {
    /// As long as parts are left.
    job: Option<&'static Job<'static>>,
    asleep: usize,
    closing: bool,
    /// What a helper panicked with.
    panic: Option<Box<dyn Any + Send>>,
}

/// Takes parts until none is left, those of this thread first.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

impl Crew {
    /// At most so many threads, with the one that asks for help; nobody else where the system has no more.
    pub(crate) fn new(threads: usize) -> Self {
        Self::with_least(threads, LEAST)
    }

    /// As [`Crew::new`], for jobs of at least `least` multiplications.
    pub(crate) fn with_least(threads: usize, least: usize) -> Self {
        let office = Arc::<Office>::default();
        let helper = |at| {
            let office = Arc::clone(&office);
            std::thread::Builder::new().name(format!("crew-{at}")).spawn(move || office.help(at)).ok()
        };
        let helpers = (1..threads.min(MOST)).map_while(helper).collect();
        Self { office, helpers, taken: Mutex::default(), least }
    }

    /// The crew, where it has nothing to do.
    pub(crate) fn call(&self) -> Team<'_> {
        let taken = match self.taken.try_lock() {
            Ok(taken) => Some(taken),
            Err(TryLockError::Poisoned(taken)) => Some(taken.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let taken = taken.filter(|_| !self.helpers.is_empty());
        Team { crew: taken.is_some().then_some(self), _taken: taken }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let mut desk = self.office.desk();
        desk.closing = true;
        // With the desk in hand, so that nobody falls asleep between looking and hearing the bell.
        self.office.jobs.fetch_add(1, Ordering::Release);
        drop(desk);
        self.office.bell.notify_all();
        for helper in self.helpers.drain(..) {
            // It has told what it panicked with, if it did.
            drop(helper.join());
        }
    }
}

impl Office {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a helper does all its life.
    fn help(&self, at: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.jobs.load(Ordering::Acquire) == seen && spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            }
            let mut desk = self.desk();
            while self.jobs.load(Ordering::Acquire) == seen {
                desk.asleep += 1;
                desk = self.bell.wait(desk).unwrap_or_else(PoisonError::into_inner);
                desk.asleep -= 1;
            }
            seen = self.jobs.load(Ordering::Acquire);
            if desk.closing {
                return;
            }
            let Some(job) = desk.job else { continue };
            self.busy.fetch_add(1, Ordering::Relaxed);
            drop(desk);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(at))) {
                self.desk().panic = Some(panic);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Runs `job` here and on helpers that have time.
    fn run(&self, job: &Job<'_>) {
        // SAFETY: nobody has the job when `_done` is gone, which is before this function is left in any way.
        #[expect(unsafe_code, reason = "helpers live longer than what they help with")]
        let shared = unsafe { std::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
        let _done = Done(self);
        let mut desk = self.desk();
        desk.job = Some(shared);
        self.jobs.fetch_add(1, Ordering::Release);
        let asleep = desk.asleep > 0;
        drop(desk);
        if asleep {
            self.bell.notify_all();
        }
        job(0);
    }
}

/// Takes the job back from the desk and waits for those who are at it.
struct Done<'a>(&'a Office);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.desk().job = None;
        let mut spins = 0;
        while self.0.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = self.0.desk().panic.take();
        if let Some(panic) = panic.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}

/// A thread, and the crew that helps it, if any does.
pub(crate) struct Team<'a> {
    crew: Option<&'a Crew>,
    _taken: Option<MutexGuard<'a, ()>>,
}

impl Team<'_> {
    /// This thread alone.
    pub(crate) fn alone() -> Self {
        Self { crew: None, _taken: None }
    }

    pub(crate) fn threads(&self) -> usize {
        self.crew.map_or(1, |crew| 1 + crew.helpers.len())
    }

    /// Whether `work` multiplications are worth their parting.
    pub(crate) fn parts(&self, work: usize) -> bool {
        self.crew.is_some_and(|crew| work >= crew.least)
    }

    /// Runs each of `count` parts, of `work` multiplications in all, once, whoever comes to it first.
    pub(crate) fn each(&self, count: usize, work: usize, run: impl Fn(usize) + Sync) {
        let Some(crew) = self.crew.filter(|_| count > 1 && self.parts(work)) else {
            return (0..count).for_each(run);
        };
        let threads = self.threads();
        let start = |thread: usize| thread * count / threads;
        let next: [AtomicUsize; MOST] = std::array::from_fn(|thread| AtomicUsize::new(start(thread)));
        crew.office.run(&|thread| {
            for owner in (thread..threads).chain(0..thread) {
                let take = || Some(next[owner].fetch_add(1, Ordering::Relaxed)).filter(|part| *part < start(owner + 1));
                while let Some(part) = take() {
                    run(part);
                }
            }
        });
    }

    /// As [`Team::each`], with what a part has for itself.
    pub(crate) fn each_of<T: Send>(&self, parts: impl Iterator<Item = T>, work: usize, run: impl Fn(T) + Sync) {
        if !self.parts(work) {
            return parts.for_each(run);
        }
        let parts: Vec<_> = parts.map(|part| Mutex::new(Some(part))).collect();
        let take = |at: usize| parts[at].lock().unwrap_or_else(PoisonError::into_inner).take();
        self.each(parts.len(), work, |at| {
            if let Some(part) = take(at) {
                run(part);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn every_part_is_run_once_whoever_helps() {
        let crew = Crew::with_least(3, 1);
        let team = crew.call();
        assert_eq!(team.threads(), 3);
        let mut counts = vec![0usize; 57];
        for round in 0..2000 {
            team.each_of(counts.iter_mut(), 1, |count| *count += 1);
            assert!(counts.iter().all(|count| *count == round + 1));
            if round % 500 == 0 {
                // Long enough to fall asleep.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // It has its hands full: the next one does without.
        assert_eq!(crew.call().threads(), 1);
        drop(team);
        assert_eq!(crew.call().threads(), 3);
    }

    #[test]
    fn crews_go_home() {
        for round in 0..300 {
            let crew = Crew::with_least(3, 1);
            if round % 2 == 0 {
                crew.call().each(3, 1, |_| {});
            }
            if round % 50 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    #[test]
    fn slow_parts_are_shared() {
        let crew = Crew::with_least(3, 1);
        let who = Mutex::new(HashSet::new());
        crew.call().each(30, 1, |_| {
            std::thread::sleep(Duration::from_millis(5));
            who.lock().unwrap().insert(std::thread::current().id());
        });
        assert!(who.into_inner().unwrap().len() > 1);
    }

    #[test]
    fn small_work_and_single_threads_stay_alone() {
        assert_eq!(Crew::new(1).call().threads(), 1);
        assert_eq!(Crew::default().call().threads(), 1);
        let crew = Crew::with_least(4, 100);
        let team = crew.call();
        let here = std::thread::current().id();
        team.each(1000, 99, |_| assert_eq!(std::thread::current().id(), here));
        team.each_of(0..1000, 99, |_| assert_eq!(std::thread::current().id(), here));
        assert!(team.parts(100) && !team.parts(99));
    }

    #[test]
    fn who_panics_is_heard_and_the_others_go_on() {
        let crew = Crew::with_least(3, 1);
        let here = std::thread::current().id();
        for at_home in [true, false] {
            let job = AssertUnwindSafe(|| {
                crew.call().each(60, 1, |_| {
                    std::thread::sleep(Duration::from_millis(1));
                    assert!((std::thread::current().id() == here) != at_home, "one of them");
                });
            });
            assert!(catch_unwind(job).is_err());
        }
        let sum = AtomicUsize::new(0);
        crew.call().each(100, 1, |part| {
            sum.fetch_add(part, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}
