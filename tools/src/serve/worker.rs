//! The one thread that owns the device: takes batches from the line and answers them.

use super::engine::{Answer, Ask, EngineError};
use super::metrics::Metrics;
use super::queue::{Failure, Queue, Waiting};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Starts the thread; it ends when `queue` is closed and empty, or the device is lost, which sets `lost`.
pub(super) fn start(
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    lost: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("inference".into()).spawn(move || {
        while let Some(batch) = queue.next_batch() {
            let (began, entries) = (Instant::now(), batch.len());
            batch.iter().for_each(|entry| metrics.queued.observe((began - entry.since).as_secs_f64()));
            metrics.batch.observe(entries as f64);
            if let Err(reason) = answer(batch, &metrics) {
                tracing::error!(reason, "the device is lost");
                lost.store(true, Ordering::SeqCst);
                queue.close();
                return;
            }
            let took = began.elapsed();
            metrics.decode.observe(took.as_secs_f64());
            queue.paced(entries, took);
        }
    })
}

/// Answers a batch, by halves where it is too much at once.
///
/// # Errors
/// The device is lost.
fn answer(batch: Vec<Waiting>, metrics: &Metrics) -> Result<(), String> {
    let Some(first) = batch.first() else { return Ok(()) };
    let version = Arc::clone(&first.version);
    let asks: Vec<&Ask> = batch.iter().map(|entry| &entry.ask).collect();
    let found = catch_unwind(AssertUnwindSafe(|| version.engine.answer(&asks))).unwrap_or_else(|_| {
        metrics.panics.inc();
        Err(EngineError::Failed("the engine panicked".into()))
    });
    match found {
        Ok(answers) if answers.len() == batch.len() => {
            batch.into_iter().zip(answers).for_each(|(entry, answer)| reply(entry, Ok(answer)));
            Ok(())
        }
        Ok(answers) => {
            let reason = format!("the engine gave {} answers to {} questions", answers.len(), batch.len());
            batch.into_iter().for_each(|entry| reply(entry, Err(Failure::Engine(reason.clone()))));
            Ok(())
        }
        Err(EngineError::OutOfMemory) if batch.len() > 1 => {
            let mut left = batch;
            let right = left.split_off(left.len() / 2);
            answer(left, metrics)?;
            answer(right, metrics)
        }
        Err(EngineError::OutOfMemory) => {
            let reason = "the device has no memory for this request";
            batch.into_iter().for_each(|entry| reply(entry, Err(Failure::Engine(reason.into()))));
            Ok(())
        }
        Err(EngineError::Failed(reason)) => {
            tracing::error!(reason, entries = batch.len(), "a batch failed");
            batch.into_iter().for_each(|entry| reply(entry, Err(Failure::Engine(reason.clone()))));
            Ok(())
        }
        Err(EngineError::DeviceLost(reason)) => {
            batch.into_iter().for_each(|entry| reply(entry, Err(Failure::Gone)));
            Err(reason)
        }
    }
}

fn reply(entry: Waiting, result: Result<Answer, Failure>) {
    // Whoever asked may be gone by now.
    let _ = entry.reply.send(result);
}
