//! Batches made ahead: while the model takes a step on one, the next ones are made on a thread of their own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

/// Batches that wait for their step at most.
const AHEAD: usize = 2;

static MADE: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

/// Seconds that this process has spent so far on making batches of training data (shuffles, padding, tokens, targets,
/// masks), and seconds of them that a step had to wait for.
pub fn preparation_seconds() -> (f64, f64) {
    let seconds = |total: &AtomicU64| total.load(Ordering::Relaxed) as f64 * 1e-9;
    (seconds(&MADE), seconds(&WAITED))
}

/// What `make` gives; its time goes into `total`.
fn timed<T>(total: &AtomicU64, make: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let made = make();
    total.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    made
}

/// What was made, in its order.
pub(crate) struct Ahead<T>(Receiver<T>);

impl<T> Iterator for Ahead<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        timed(&WAITED, || self.0.recv().ok())
    }
}

/// What `work` makes of the items of `make`, of which up to two are made before they are asked for. What is made and not
/// asked for is dropped.
pub(crate) fn ahead<T: Send, R>(make: impl Iterator<Item = T> + Send, work: impl FnOnce(Ahead<T>) -> R) -> R {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            let mut make = make;
            while let Some(made) = timed(&MADE, || make.next()) {
                // Nobody asks any more.
                if sender.send(made).is_err() {
                    break;
                }
            }
        });
        work(Ahead(receiver))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    #[test]
    fn all_comes_in_order_and_little_is_made_in_vain() {
        let made = AtomicUsize::new(0);
        let count = || {
            (0..1000).inspect(|_| {
                made.fetch_add(1, Ordering::SeqCst);
            })
        };
        assert_eq!(ahead(count(), Iterator::collect::<Vec<_>>), (0..1000).collect::<Vec<_>>());
        assert_eq!(made.swap(0, Ordering::SeqCst), 1000);
        // Ten asked for, two that wait, one that finds no place.
        assert_eq!(ahead(count(), |items| items.take(10).sum::<i32>()), 45);
        assert!((10..=13).contains(&made.load(Ordering::SeqCst)), "{made:?}");
        assert_eq!(ahead(count(), |_| 7), 7);
    }

    /// The next one is there when a slow step ends: both sides taking 10 ms, ten of each take little more than one side. In
    /// one of five rounds at least: a machine that stalls is no failure.
    #[test]
    fn making_and_working_overlap() {
        let pause = || std::thread::sleep(Duration::from_millis(10));
        let round = |_| {
            let began = Instant::now();
            ahead((0..10).inspect(|_| pause()), |items| items.for_each(|_| pause()));
            let (together, began) = (began.elapsed(), Instant::now());
            (0..20).for_each(|_| pause());
            together.as_secs_f64() < 0.8 * began.elapsed().as_secs_f64()
        };
        assert!((0..5).any(round));
    }
}
