//! The version that is served, and how the next one takes its place.
//!
//! A next version is loaded, verified and warmed up beside the one that serves, then swapped in as a whole; requests
//! keep the version that they began with. One change is under way at a time. What was added or removed through the
//! server is applied again to whatever is loaded later.

use super::metrics::Metrics;
use super::version::{Source, Version, available_bytes};
use crate::error::bad_data;
use crate::jobs::change_sids::Changed;
use crate::table::{ItemKeys, Items};
use anyhow::Result;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

enum Change {
    Add(Box<Items>),
    Remove(ItemKeys),
}

/// Behind the door that one change passes at a time.
struct Workshop {
    source: Option<Source>,
    changes: Vec<Change>,
}

/// Why a change did not happen; the version that serves goes on serving.
#[derive(Debug)]
pub enum NotSwapped {
    /// Another change is under way.
    Busy,
    /// What would come next is damaged, missing or does not fit.
    Refused(anyhow::Error),
}

/// Changes applied again after a reload; beyond that, build a catalogue with `sidrec sids add`.
const MOST_CHANGES: usize = 10_000;

/// The version that is served.
pub struct Versions {
    current: RwLock<Arc<Version>>,
    workshop: Mutex<Workshop>,
    metrics: Arc<Metrics>,
}

impl Versions {
    /// Serves `first`; reloads read `source`.
    pub fn new(first: Version, source: Option<Source>, metrics: Arc<Metrics>) -> Self {
        metrics.serving(&first.index_version);
        let workshop = Mutex::new(Workshop { source, changes: Vec::new() });
        Self { current: RwLock::new(Arc::new(first)), workshop, metrics }
    }

    /// The version of now.
    pub fn current(&self) -> Arc<Version> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What [`Source::fingerprint`] says, `None` where nothing can be reloaded or read.
    pub fn fingerprint(&self) -> Option<Vec<(PathBuf, Option<std::time::SystemTime>, u64)>> {
        let source = self.workshop.lock().unwrap_or_else(PoisonError::into_inner).source.clone();
        source?.fingerprint().ok()
    }

    /// Loads what the source names now, or another run or catalogue, which become the source.
    ///
    /// # Errors
    /// See [`NotSwapped`].
    pub fn reload(&self, run: Option<PathBuf>, catalogue: Option<PathBuf>) -> Result<Arc<Version>, NotSwapped> {
        self.change(|_, workshop| {
            let Some(source) = &workshop.source else { return Err(bad_data("there is nothing to load from")) };
            let source = Source {
                run: run.unwrap_or_else(|| source.run.clone()),
                catalogue: catalogue.unwrap_or_else(|| source.catalogue.clone()),
                asking: source.asking,
            };
            source.check_room(available_bytes())?;
            let mut next = Version::load(&source)?;
            for change in &workshop.changes {
                let changed = match change {
                    Change::Add(items) => next.with_items(items),
                    // An item that the new catalogue no longer has need not be removed from it.
                    Change::Remove(ids) => {
                        let known = |id: &&str| next.catalogue.keys.find(id).is_some();
                        let ids: Vec<_> = ids.iter().filter(known).map(str::to_string).collect();
                        if ids.is_empty() {
                            continue;
                        }
                        next.without_items(&ItemKeys::new(ids)?)
                    }
                };
                next = changed?.0;
            }
            workshop.source = Some(source);
            Ok((next, ()))
        })
        .map(|(version, ())| version)
    }

    /// Adds items at once.
    ///
    /// # Errors
    /// See [`NotSwapped`].
    pub fn add(&self, items: Items) -> Result<(Arc<Version>, Changed), NotSwapped> {
        self.change(|now, workshop| {
            check_room(workshop)?;
            let next = now.with_items(&items)?;
            workshop.changes.push(Change::Add(Box::new(items)));
            Ok(next)
        })
    }

    /// Removes items at once.
    ///
    /// # Errors
    /// See [`NotSwapped`].
    pub fn remove(&self, ids: ItemKeys) -> Result<(Arc<Version>, Changed), NotSwapped> {
        self.change(|now, workshop| {
            check_room(workshop)?;
            let next = now.without_items(&ids)?;
            workshop.changes.push(Change::Remove(ids));
            Ok(next)
        })
    }

    fn change<T>(
        &self,
        make: impl FnOnce(&Version, &mut Workshop) -> Result<(Version, T)>,
    ) -> Result<(Arc<Version>, T), NotSwapped> {
        let mut workshop = match self.workshop.try_lock() {
            Ok(workshop) => workshop,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(NotSwapped::Busy),
        };
        match make(&self.current(), &mut workshop) {
            Ok((next, result)) => {
                let next = Arc::new(next);
                self.metrics.serving(&next.index_version);
                self.metrics.reloaded("ok");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
                tracing::info!(model = next.model_version, index = next.index_version, "serving");
                Ok((next, result))
            }
            Err(error) => {
                self.metrics.reloaded("refused");
                tracing::warn!("not swapped: {error:#}");
                Err(NotSwapped::Refused(error))
            }
        }
    }
}

fn check_room(workshop: &Workshop) -> Result<()> {
    if workshop.changes.len() >= MOST_CHANGES {
        return Err(bad_data(format!(
            "{MOST_CHANGES} changes since the start; build a catalogue with `sidrec sids add` and reload it"
        )));
    }
    Ok(())
}
