//! The beam step on a device: a search writes down its kernels instead of running them, so that the whole request can
//! be fixed as one program and run again for the next one.
//!
//! [`DeviceKernel`] is a [`BeamKernel`], and [`crate::search`] is the loop for it as for the others; what it writes down
//! runs at the end, or whenever [`DeviceBeams::flush`] is told. [`record`] stops before the end and gives the program.
//! Twin: [`crate::CpuKernel`], with scores normalised by [`crate::math::log_softmax`]; equal logits give equal bits.

use super::args::{ExpandArgs, FinishArgs, MAX_LEVELS, SelectArgs};
use super::device::{Device, Launch, Memory, Prepared, Program};
use super::guidance::{GuideRoom, ItemScores};
use super::index::{DeviceIndex, Masks};
use super::kernels::Numbers;
use super::layout::Layout;
use super::plan::Region;
use crate::math::TILE;
use crate::{BeamConfig, BeamKernel, Error, Hypothesis, LiveMask, Result, ScoreMode, StepScorer};
use rqvae::{Code, ItemIdx, SemanticId};
use std::sync::{Arc, Mutex, PoisonError};

/// Keys that a block sorts at once; half of them are the widest beam.
const BUFFER: usize = 4096;

/// Bytes of `Best` in `keys.cuh`.
const BEST: usize = BUFFER * 8 + 16;

/// Widest beam on a device.
pub const MAX_WIDTH: usize = 1024;

/// Most blocks that share the beams of a request.
pub(super) const MAX_PARTS: usize = 16;

/// Beam search on a device.
pub struct DeviceKernel {
    device: Arc<dyn Device>,
    index: Arc<DeviceIndex>,
    numbers: Numbers,
    config: BeamConfig,
    codes: Vec<usize>,
    guide: Option<GuideRoom>,
}

/// Where the logits of a level are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceScores {
    /// (rows, [`DeviceScores::pitch`]) f32.
    pub logits: u64,
    /// From row to row of the logits.
    pub pitch: u32,
    /// (rows, [`DeviceScores::tiles`], 2) f32: maximum and sum of exponentials of every tile of codes.
    pub partials: u64,
    /// Tiles of a row.
    pub tiles: u32,
}

/// What the next step reads as its input: rows of a table, by code.
#[derive(Debug, Clone, Copy)]
pub struct Feed {
    /// (.., pitch) f32.
    pub table: u64,
    /// From row to row.
    pub table_pitch: u32,
    /// The row of code 0.
    pub row: u32,
    /// (batch * width, pitch) f32.
    pub x: u64,
    /// From row to row of x.
    pub pitch: u32,
}

/// Blocks that share the beams of a request, so that each rarely has to cut its buffer.
pub(super) fn parts(beams: usize, codes: usize) -> usize {
    (beams * codes).div_ceil(BUFFER / 2).clamp(1, MAX_PARTS).min(beams.max(1))
}

/// Beams of a search that is written down.
pub struct DeviceBeams {
    device: Arc<dyn Device>,
    pub(super) index: Arc<DeviceIndex>,
    numbers: Numbers,
    batch: usize,
    /// Requests that are there; the others of the batch have no beams.
    live: usize,
    config: BeamConfig,
    pub(super) guide: Option<GuideRoom>,
    pub(super) layout: Layout,
    memory: Memory,
    masks: Masks,
    level: usize,
    state: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    launches: Vec<Launch>,
    feed: Option<Feed>,
}

/// A search that is ready to be run for request after request.
pub struct Recorded {
    pub(super) beams: DeviceBeams,
    prepared: Box<dyn Prepared>,
    nodes: usize,
}

impl DeviceKernel {
    /// Search over `index` as `config` says.
    ///
    /// # Errors
    /// The configuration does not fit the IDs or the device.
    pub fn new(
        device: &Arc<dyn Device>,
        index: &Arc<DeviceIndex>,
        numbers: Numbers,
        config: &BeamConfig,
    ) -> Result<Self> {
        let trie = index.trie();
        config.validate(trie.levels())?;
        if let Some(width) = config.widths.iter().find(|width| **width > MAX_WIDTH) {
            return Err(Error::config("widths", width, format!("{MAX_WIDTH} at most on a device")));
        }
        let codes = (0..trie.levels()).map(|level| trie.spec().codes_at(level) as usize).collect();
        let (device, index) = (Arc::clone(device), Arc::clone(index));
        Ok(Self { device, index, numbers, config: config.clone(), codes, guide: None })
    }

    /// Guided with `weight` by scores of all items, which [`record`] is told the place of.
    ///
    /// # Errors
    /// The weight is no share.
    pub fn guided(mut self, weight: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&weight) {
            return Err(Error::config("guide", weight, "0 to 1"));
        }
        self.guide = Some(GuideRoom::new(&self.index.trie(), weight));
        Ok(self)
    }

    /// Beams for `batch` requests, of which the first `live.len()` are there.
    ///
    /// # Errors
    /// More masks than requests, masks that a device cannot have, or no room.
    pub fn start_padded(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<DeviceBeams> {
        let guide = self.guide.as_ref().map_or(0, |guide| guide.nodes.iter().sum());
        let layout = Layout::new(batch, &self.codes, &self.config, guide);
        let memory = Memory::new(&self.device, layout.plan.bytes())?;
        let mut beams = DeviceBeams {
            device: Arc::clone(&self.device),
            index: Arc::clone(&self.index),
            numbers: self.numbers,
            batch,
            live: 0,
            config: BeamConfig { score, ..self.config.clone() },
            guide: self.guide.clone(),
            layout,
            memory,
            masks: self.index.masks(&[])?,
            level: 0,
            state: Mutex::default(),
        };
        beams.ask(live)?;
        Ok(beams)
    }
}

impl DeviceBeams {
    /// Codes chosen so far.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Requests there is room for.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Beams a request at this level: row `request * beams + rank`, whether it is there or not.
    pub fn beams(&self) -> usize {
        if self.level == 0 { 1 } else { self.config.widths[self.level - 1] }
    }

    /// (rows, 8) words: for each earlier step the row that a beam continues.
    pub fn ancestors(&self) -> u64 {
        self.at(self.layout.levels[self.level].ancestors)
    }

    /// Appends a kernel.
    pub fn push(&self, launch: Launch) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).launches.push(launch);
    }

    /// What the next step is to read; once, before the step.
    pub fn feed(&self, feed: Feed) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).feed = Some(feed);
    }

    /// Where logits of this level, of `codes` codes, go.
    pub fn scores(&self, codes: usize) -> DeviceScores {
        DeviceScores {
            logits: self.at(self.layout.logits),
            pitch: codes.next_multiple_of(8) as u32,
            partials: self.at(self.layout.partials),
            tiles: codes.div_ceil(TILE) as u32,
        }
    }

    /// Runs what is written down so far and forgets it.
    ///
    /// # Errors
    /// The device fails.
    pub fn flush(&self) -> Result<()> {
        let launches = std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).launches);
        if launches.is_empty() {
            return Ok(());
        }
        self.device.prepare(&Program { numbers: self.numbers, launches })?.run()
    }

    /// Beams that are there and their codes: (requests, beams, codes so far). Waits for the device.
    ///
    /// # Errors
    /// The device fails.
    pub fn paths(&self) -> Result<Vec<Vec<Vec<Code>>>> {
        self.flush()?;
        let level = self.layout.levels[self.level];
        let counts: Vec<u32> = self.read(level.counts)?;
        let path: Vec<u16> = self.read(level.path)?;
        let row = |row: usize| path[row * MAX_LEVELS..][..self.level].to_vec();
        let request = |b: usize| (0..counts[b] as usize).map(|rank| row(b * self.beams() + rank)).collect();
        Ok((0..self.live).map(request).collect())
    }

    /// Fills everything that kernels are to write with garbage, so that what they do not write is noticed.
    ///
    /// # Errors
    /// The device fails.
    pub fn poison(&self) -> Result<()> {
        let from = self.layout.levels[1].nodes.offset;
        let garbage = vec![0xff; self.layout.plan.bytes() - from];
        self.device.write(self.memory.address() + from as u64, &garbage)
    }

    /// Puts the masks of the next requests in place, as many as are there.
    fn ask(&mut self, live: &[LiveMask]) -> Result<()> {
        if self.guide.as_ref().is_some_and(|guide| !guide.holds(&self.index.trie())) {
            return Err(Error::shape("nodes of a guided search", "room for a catalogue of its size", "a larger one"));
        }
        if live.len() > self.batch {
            return Err(Error::shape("live masks", format!("one per request, {}", self.batch), live.len()));
        }
        let masks = self.index.masks(live)?;
        if masks.pool.len() * 4 > self.layout.pool.bytes {
            let expected = format!("{} nodes and items listed", self.layout.pool.bytes / 4);
            return Err(Error::shape("live masks on a device", expected, masks.pool.len()));
        }
        self.write(self.layout.masks, &masks.headers)?;
        self.write(self.layout.pool, &masks.pool)?;
        let counts: Vec<u32> = (0..self.batch).map(|request| u32::from(request < live.len())).collect();
        self.write(self.layout.levels[0].counts, &counts)?;
        (self.masks, self.live) = (masks, live.len());
        Ok(())
    }

    pub(super) fn at(&self, region: Region) -> u64 {
        self.memory.address() + region.offset as u64
    }

    fn write<T: bytemuck::Pod>(&self, region: Region, values: &[T]) -> Result<()> {
        if values.is_empty() { Ok(()) } else { self.device.write(self.at(region), bytemuck::cast_slice(values)) }
    }

    fn read<T: bytemuck::Pod>(&self, region: Region) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); region.bytes / size_of::<T>()];
        self.device.read(self.at(region), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn step(&mut self, scores: &DeviceScores, width: usize, codes: usize) {
        let (level, beams) = (self.level, self.beams());
        let (old, new) = (self.layout.levels[level], self.layout.levels[level + 1]);
        let parts = parts(beams, codes);
        let expand = ExpandArgs {
            index: self.index.header(),
            masks: self.at(self.layout.masks),
            pool: self.at(self.layout.pool),
            logits: scores.logits,
            partials: scores.partials,
            nodes: self.at(old.nodes),
            scores: self.at(old.scores),
            counts: self.at(old.counts),
            keys: self.at(self.layout.keys),
            key_counts: self.at(self.layout.key_counts),
            level: level as u32,
            beams: beams as u32,
            width: width as u32,
            codes: codes as u32,
            ldl: scores.pitch,
            tiles: scores.tiles,
            valid_only: u32::from(self.config.score == ScoreMode::ValidOnly),
            best: if self.guide.is_some() { self.at(self.layout.best) } else { 0 },
            stride: self.guide.as_ref().map_or(0, |guide| guide.nodes.iter().sum::<usize>() as u64),
            at: self.guide.as_ref().map_or(0, |guide| guide.at(level) as u32),
            below: self.guide.as_ref().map_or(0, |guide| guide.at(level + 1) as u32),
            weight: self.guide.as_ref().map_or(0.0, |guide| guide.weight),
        };
        self.push(Launch::new("expand", [parts as u32, self.batch as u32, 1], 256, BEST, &expand));
        let feed = self.state.lock().unwrap_or_else(PoisonError::into_inner).feed.take();
        let select = SelectArgs {
            index: self.index.header(),
            keys: expand.keys,
            key_counts: expand.key_counts,
            nodes: expand.nodes,
            ancestors: self.at(old.ancestors),
            path: self.at(old.path),
            new_nodes: self.at(new.nodes),
            new_scores: self.at(new.scores),
            new_ancestors: self.at(new.ancestors),
            new_path: self.at(new.path),
            new_counts: self.at(new.counts),
            table: feed.map_or(0, |feed| feed.table),
            x: feed.map_or(0, |feed| feed.x),
            level: level as u32,
            beams: beams as u32,
            width: width as u32,
            parts: parts as u32,
            codes: codes as u32,
            table_row: feed.map_or(0, |feed| feed.row),
            ldt: feed.map_or(0, |feed| feed.table_pitch),
            ldx: feed.map_or(0, |feed| feed.pitch),
        };
        self.push(Launch::new("select_best", [self.batch as u32, 1, 1], 256, BEST, &select));
        self.level += 1;
    }

    fn write_finish(&self) {
        let last = self.layout.levels[self.level];
        let finish = FinishArgs {
            index: self.index.header(),
            masks: self.at(self.layout.masks),
            pool: self.at(self.layout.pool),
            nodes: self.at(last.nodes),
            scores: self.at(last.scores),
            counts: self.at(last.counts),
            path: self.at(last.path),
            found: self.at(self.layout.found),
            items: self.at(self.layout.items),
            item_scores: self.at(self.layout.item_scores),
            codes: self.at(self.layout.item_codes),
            beams: self.beams() as u32,
            k: self.config.top_k as u32,
        };
        self.push(Launch::new("finish", [self.batch as u32, 1, 1], 32, 0, &finish));
    }

    /// Waits for the lists of the requests that are there.
    fn lists(&self) -> Result<Vec<Vec<Hypothesis>>> {
        let range = self.layout.result();
        let mut result = vec![0u64; range.len().div_ceil(8)];
        let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut result)[..range.len()];
        self.device.read(self.memory.address() + range.start as u64, bytes)?;
        let part = |region: Region| &bytes[region.offset - range.start..][..region.bytes];
        let found: &[u32] = bytemuck::cast_slice(part(self.layout.found));
        let items: &[u32] = bytemuck::cast_slice(part(self.layout.items));
        let scores: &[f32] = bytemuck::cast_slice(part(self.layout.item_scores));
        let codes: &[u16] = bytemuck::cast_slice(part(self.layout.item_codes));
        let (k, levels) = (self.config.top_k, self.config.widths.len());
        let hypothesis = |at: usize| {
            let sid = SemanticId::new(&codes[at * MAX_LEVELS..][..levels])?;
            Ok(Hypothesis { sid, item: ItemIdx(items[at]), log_prob: scores[at] })
        };
        let list = |b: usize| (b * k..b * k + (found[b] as usize).min(k)).map(hypothesis).collect();
        (0..self.live).map(list).collect()
    }
}

impl BeamKernel for DeviceKernel {
    type Scores = DeviceScores;
    type Beams = DeviceBeams;

    fn levels(&self) -> usize {
        self.codes.len()
    }

    fn start(&self, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<DeviceBeams> {
        if live.len() != batch {
            return Err(Error::shape("live masks", format!("one per request, {batch}"), live.len()));
        }
        self.start_padded(batch, live, score)
    }

    fn is_exhausted(&self, beams: &DeviceBeams) -> bool {
        beams.batch == 0
    }

    fn step(&self, beams: &mut DeviceBeams, scores: &DeviceScores, width: usize) -> Result<()> {
        if beams.level >= self.levels() {
            return Err(Error::shape("steps of a search", self.levels(), beams.level + 1));
        }
        let (codes, planned) = (self.codes[beams.level], self.config.widths[beams.level]);
        if *scores != beams.scores(codes) {
            return Err(Error::shape("scores", format!("{:?}", beams.scores(codes)), format!("{scores:?}")));
        }
        if width != planned {
            return Err(Error::config("widths", width, format!("{planned}, as planned")));
        }
        beams.step(scores, width, codes);
        Ok(())
    }

    fn finish(&self, beams: DeviceBeams, top_k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        if beams.batch == 0 {
            return Ok(Vec::new());
        }
        if beams.level != self.levels() || top_k != self.config.top_k {
            return Err(Error::shape("steps of a search", self.levels(), beams.level));
        }
        beams.write_finish();
        beams.flush()?;
        beams.lists()
    }
}

/// Writes a whole search for `batch` requests down, `prologue` in front, and fixes it. `guidance`, for a guided kernel, is
/// what the prologue leaves.
///
/// # Errors
/// As [`crate::search`].
pub fn record(
    kernel: &DeviceKernel,
    scorer: &mut impl StepScorer<DeviceKernel>,
    prologue: Vec<Launch>,
    batch: usize,
    score: ScoreMode,
    guidance: Option<&ItemScores>,
) -> Result<Recorded> {
    let mut beams = kernel.start_padded(batch, &[], score)?;
    prologue.into_iter().for_each(|launch| beams.push(launch));
    if let Some(scores) = guidance {
        beams.guide(scores)?;
    }
    for (level, width) in kernel.config.widths.iter().enumerate() {
        let scores = scorer.score(level, &beams).map_err(|source| Error::Scorer { level, source })?;
        kernel.step(&mut beams, &scores, *width)?;
    }
    beams.write_finish();
    let launches = std::mem::take(&mut beams.state.lock().unwrap_or_else(PoisonError::into_inner).launches);
    let nodes = launches.len();
    let prepared = kernel.device.prepare(&Program { numbers: kernel.numbers, launches })?;
    Ok(Recorded { beams, prepared, nodes })
}

impl Recorded {
    /// Kernels of the program.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Bytes of device memory for the search.
    pub fn bytes(&self) -> usize {
        self.beams.memory.bytes()
    }

    /// The search for requests with these masks; what else the program reads was put in place before.
    ///
    /// # Errors
    /// More masks than requests, masks that a device cannot have, or the device fails.
    pub fn run(&mut self, live: &[LiveMask]) -> Result<Vec<Vec<Hypothesis>>> {
        self.beams.ask(live)?;
        self.prepared.run()?;
        self.beams.lists()
    }
}
