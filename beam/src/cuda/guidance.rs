//! Guidance of a search on a device: room for the best below every node, and the kernels that find it.

use super::args::GuideArgs;
use super::device::Launch;
use super::search::{DeviceBeams, Recorded};
use crate::{Error, Result, Trie};

/// Scores of all items, which guide a search: see [`crate::Guided`].
#[derive(Debug, Clone, Copy)]
pub struct ItemScores {
    /// (batch, pitch) f32.
    pub scores: u64,
    /// From request to request.
    pub pitch: u32,
    /// Items of a request.
    pub items: u32,
}

/// What guidance takes: its weight, and room for nodes level by level, the leaves last.
#[derive(Debug, Clone)]
pub(super) struct GuideRoom {
    pub(super) weight: f32,
    pub(super) nodes: Vec<usize>,
}

impl GuideRoom {
    /// With room for a catalogue that has grown by an eighth.
    pub(super) fn new(trie: &Trie, weight: f32) -> Self {
        let room = |level| (trie.nodes(level) + trie.nodes(level) / 8).next_multiple_of(256);
        Self { weight, nodes: (0..=trie.levels()).map(room).collect() }
    }

    /// Where the nodes of `level` begin.
    pub(super) fn at(&self, level: usize) -> usize {
        self.nodes[..level].iter().sum()
    }

    pub(super) fn holds(&self, trie: &Trie) -> bool {
        self.nodes.iter().enumerate().all(|(level, room)| trie.nodes(level) <= *room)
    }
}

/// Numbers that guidance of one request takes over `trie`.
pub fn guide_room(trie: &Trie) -> usize {
    GuideRoom::new(trie, 0.0).nodes.iter().sum()
}

impl Recorded {
    /// Whether the program has room for `trie`; without guidance it has for any.
    pub fn holds(&self, trie: &Trie) -> bool {
        self.beams.guide.as_ref().is_none_or(|guide| guide.holds(trie))
    }
}

impl DeviceBeams {
    /// What guides this search, made of the scores of all items; before the first step.
    ///
    /// # Errors
    /// The kernel is not guided, or there are fewer scores than items.
    pub fn guide(&self, scores: &ItemScores) -> Result<()> {
        let Some(guide) = &self.guide else { return Err(Error::config("guide", "none", "a kernel that is guided")) };
        let trie = self.index.trie();
        if (scores.items as usize) < trie.bound() {
            return Err(Error::shape("item scores", format!("{} or more", trie.bound()), scores.items));
        }
        let (levels, batch) = (trie.levels(), self.batch() as u32);
        let args = GuideArgs {
            index: self.index.header(),
            masks: self.at(self.layout.masks),
            pool: self.at(self.layout.pool),
            counts: self.at(self.layout.levels[0].counts),
            scores: scores.scores,
            log_sums: self.at(self.layout.log_sums),
            best: self.at(self.layout.best),
            stride: guide.nodes.iter().sum::<usize>() as u64,
            items: scores.items,
            lds: scores.pitch,
            ..GuideArgs::default()
        };
        self.push(Launch::new("guide_sums", [batch, 1, 1], 256, 32 * 4, &args));
        // The root is the same for all and counts as 0.
        for level in (1..=levels).rev() {
            let (at, below) = (guide.at(level) as u32, guide.at(level + 1) as u32);
            let args = GuideArgs { level: level as u32, at, below, ..args };
            let kernel = if level == levels { "guide_leaves" } else { "guide_level" };
            self.push(Launch::new(kernel, [guide.nodes[level].div_ceil(256) as u32, batch, 1], 256, 0, &args));
        }
        Ok(())
    }
}
