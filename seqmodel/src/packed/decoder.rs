//! Decoding with packed weights: one request a thread, or its beams parted among threads that have nothing else to do;
//! keys and values that never move.
//!
//! Keys and values of what was encoded are kept once per request and read by all its beams; those of a beam's own path
//! stay where the steps left them and are read through the ancestor table. Buffers grow to the widest step and stay, also
//! from request to request.

use super::block::{Bias, PackedBlock, PackedMemory, Scratch, norm};
use super::matrix::{Into, Packed, Rows};
use super::parts::{Crew, Muster, on_threads};
use crate::nn::log_softmax_row;
use crate::{Error, Result};
use beam::{BeamKernel, BoxError, CpuBeams, Scores, StepScorer};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most requests whose memory is kept.
const SPARE: usize = 64;

/// The packed weights of a decoder of codes.
pub(crate) struct PackedDecoder {
    pub(crate) dim: usize,
    pub(crate) blocks: Vec<PackedBlock>,
    pub(crate) bias: Option<Bias>,
    /// Inputs after each code, level by level: (codes of all levels, dim).
    pub(crate) codes: Vec<f32>,
    /// First row of each level in `codes`.
    pub(crate) level_starts: Vec<u32>,
    /// One per level, the norm in front folded in.
    pub(crate) heads: Vec<Packed>,
    /// What finished requests left, to be used again.
    pub(crate) spare: Mutex<Vec<Request>>,
    /// Who helps with a request that comes alone.
    pub(crate) crew: Crew,
}

impl PackedDecoder {
    /// A request in the memory of an earlier one, where there is any.
    pub(crate) fn take_request(&self) -> Request {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// What a request starts from: the `first` input (dim,) and what its history was encoded to, (seq, dim), if the
    /// blocks read it; parted among the threads of `muster`.
    pub(crate) fn start(&self, request: &mut Request, first: &[f32], encoded: Option<&[f32]>, muster: &Muster) {
        request.begin(first, self.blocks.len());
        let Some(states) = encoded else {
            request.memory.clear();
            return;
        };
        request.memory.resize_with(self.blocks.len(), PackedMemory::default);
        let each = self.blocks.len().div_ceil(muster.threads()).max(1);
        request.room_for(muster.threads());
        let parts = self.blocks.chunks(each).zip(request.memory.chunks_mut(each)).zip(&mut request.rooms);
        muster.run(parts, |((blocks, memory), room), _| {
            blocks.iter().zip(memory).for_each(|(block, memory)| block.remember(states, memory, room));
        });
    }

    /// Log-probabilities of `level` for beams that continue rows `parents` of the step before, parted among the threads of
    /// `muster`: (rows, codes).
    fn advance(&self, task: Task, level: usize, muster: &Muster) {
        let Task { request, parents, codes, log_probs } = task;
        request.x.clear();
        if level == 0 {
            codes.iter().for_each(|_| request.x.extend_from_slice(&request.first));
        } else {
            let before = level - 1;
            for code in &codes {
                let row = self.level_starts[before] as usize + *code as usize;
                request.x.extend_from_slice(&self.codes[row * self.dim..][..self.dim]);
            }
            let path = |parent: &u32| &request.ancestors[*parent as usize * before..][..before];
            request.longer.clear();
            for parent in &parents {
                request.longer.extend_from_slice(path(parent));
                request.longer.push(*parent);
            }
            std::mem::swap(&mut request.ancestors, &mut request.longer);
        }
        let each = codes.len().div_ceil(muster.threads()).max(1);
        let classes = self.heads[level].outputs();
        request.room_for(muster.threads());
        let Request { memory, past, ancestors, x, rooms, .. } = request;
        let mut earlier = Vec::with_capacity(self.blocks.len());
        let mut new = Vec::with_capacity(self.blocks.len());
        for (block, past) in self.blocks.iter().zip(past) {
            let width = block.key_value_width();
            if past.len() == level {
                past.push(Vec::new());
            }
            let (before, now) = past.split_at_mut(level);
            now[0].resize(codes.len() * width, 0.0);
            earlier.push(&*before);
            new.push(now[0].chunks_mut(each * width));
        }
        let rows = x.chunks_mut(each * self.dim).zip(log_probs.chunks_mut(each * classes));
        let parts = rows.zip(rooms).enumerate().map(|(part, ((x, log_probs), room))| {
            let first = part * each * level;
            let ancestors = &ancestors[first..][..x.len() / self.dim * level];
            let new: Vec<&mut [f32]> = new.iter_mut().map(|new| new.next().unwrap_or_default()).collect();
            (x, log_probs, ancestors, new, room)
        });
        muster.run(parts, |(x, log_probs, ancestors, new, room), _| {
            for (layer, (block, new)) in self.blocks.iter().zip(new).enumerate() {
                block.step(x, new, self.bias.as_ref(), memory.get(layer), earlier[layer], ancestors, room);
            }
            norm(x, self.dim, &mut room.normed);
            let normed = Rows { data: &room.normed, stride: self.dim, count: x.len() / self.dim };
            self.heads[level].product(normed, log_probs, classes, Into::Place);
            log_probs.chunks_exact_mut(classes).for_each(log_softmax_row);
        });
    }
}

/// What one request keeps between steps.
#[derive(Debug, Default)]
pub(crate) struct Request {
    first: Vec<f32>,
    /// Keys and values of its history, one per block; none where the blocks read none.
    memory: Vec<PackedMemory>,
    /// `past[block][step]`: keys and values of the rows of the step.
    past: Vec<Vec<Vec<f32>>>,
    /// (rows, steps so far).
    ancestors: Vec<u32>,
    /// The next ones.
    longer: Vec<u32>,
    pub(crate) x: Vec<f32>,
    /// One a thread.
    pub(crate) rooms: Vec<Scratch>,
    /// Keys and values of an encoder's block.
    pub(crate) encoder: PackedMemory,
}

impl Request {
    fn begin(&mut self, first: &[f32], blocks: usize) {
        self.first.clear();
        self.first.extend_from_slice(first);
        self.past.resize_with(blocks, Vec::new);
        self.ancestors.clear();
    }

    /// A room for each of so many threads.
    pub(crate) fn room_for(&mut self, threads: usize) {
        if self.rooms.len() < threads {
            self.rooms.resize_with(threads, Scratch::default);
        }
    }
}

/// One decoding run for a batch of requests.
pub struct PackedSession<'a> {
    decoder: &'a PackedDecoder,
    requests: Vec<Request>,
    /// Rows of each request at the last step.
    before: Vec<Range<usize>>,
}

/// One request's share of a step.
struct Task<'a> {
    request: &'a mut Request,
    parents: Vec<u32>,
    codes: Vec<u32>,
    log_probs: &'a mut [f32],
}

impl<'a> PackedSession<'a> {
    pub(crate) fn new(decoder: &'a PackedDecoder, requests: Vec<Request>) -> Self {
        Self { decoder, requests, before: Vec::new() }
    }
}

impl Drop for PackedSession<'_> {
    fn drop(&mut self) {
        // As many as a batch has; what a wider one leaves is given back.
        let mut spare = self.decoder.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SPARE.saturating_sub(spare.len());
        spare.extend(self.requests.drain(..).take(room));
    }
}

impl<K: BeamKernel<Scores = Scores, Beams = CpuBeams>> StepScorer<K> for PackedSession<'_> {
    fn score(&mut self, level: usize, beams: &CpuBeams) -> std::result::Result<Scores, BoxError> {
        let decoder = self.decoder;
        let width = expect_level(decoder, level)?;
        let mut data = vec![0.0; beams.rows() * width];
        let ranges: Vec<_> = (0..self.requests.len()).map(|request| beams.rows_of(request)).collect();
        let mut rest = data.as_mut_slice();
        let mut tasks = Vec::with_capacity(ranges.len());
        for (at, (request, range)) in self.requests.iter_mut().zip(&ranges).enumerate() {
            let (log_probs, after) = rest.split_at_mut(range.len() * width);
            rest = after;
            let first = if level == 0 { 0 } else { self.before.get(at).map_or(0, |before| before.start) };
            let parents = range.clone().map(|row| (beams.parent(row) - first) as u32).collect();
            let codes = range.clone().map(|row| beams.codes(row).last().map_or(0, |code| u32::from(*code))).collect();
            tasks.push(Task { request, parents, codes, log_probs });
        }
        if tasks.len() == 1 {
            let rows = beams.rows();
            let row: usize = decoder.blocks.iter().map(PackedBlock::work).sum();
            let muster = decoder.crew.muster(rows, rows * row);
            tasks.into_iter().for_each(|task| decoder.advance(task, level, &muster));
        } else {
            on_threads(tasks.into_iter(), |task| decoder.advance(task, level, &Muster::alone()));
        }
        self.before = ranges;
        Ok(Scores { width, data })
    }
}

/// Codes of `level`.
fn expect_level(decoder: &PackedDecoder, level: usize) -> Result<usize> {
    decoder.heads.get(level).map(Packed::outputs).ok_or_else(|| Error::Mismatch {
        what: "search".into(),
        expected: format!("{} levels", decoder.heads.len()),
        found: format!("level {level}"),
    })
}
