//! Decoding with packed weights: one request a thread, keys and values that never move.
//!
//! Keys and values of what was encoded are kept once per request and read by all its beams; those of a beam's own path
//! stay where the steps left them and are read through the ancestor table. Buffers grow to the widest step and stay.

use super::block::{Bias, PackedBlock, PackedMemory, Scratch, norm};
use super::matrix::{Into, Packed, Rows};
use crate::nn::log_softmax_row;
use crate::{Error, Result};
use beam::{BeamKernel, BoxError, CpuBeams, Scores, StepScorer};
use rayon::prelude::*;
use std::ops::Range;

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
}

impl PackedDecoder {
    /// What a request starts from: the `first` input (dim,) and what its history was encoded to, (seq, dim), if the
    /// blocks read it.
    pub(crate) fn request(&self, first: &[f32], encoded: Option<&[f32]>, mut scratch: Scratch) -> Request {
        let memory = |block: &PackedBlock| encoded.map(|x| block.memory(x, x.len() / self.dim, &mut scratch));
        let memory = self.blocks.iter().map(memory).collect();
        let past = vec![Vec::new(); self.blocks.len()];
        Request { first: first.to_vec(), memory, past, scratch, ..Request::default() }
    }

    /// Log-probabilities of `level` for beams that continue rows `parents` of the step before: (rows, codes).
    fn advance(&self, request: &mut Request, level: usize, parents: &[u32], codes: &[u32], log_probs: &mut [f32]) {
        request.x.clear();
        if level == 0 {
            codes.iter().for_each(|_| request.x.extend_from_slice(&request.first));
        } else {
            let before = level - 1;
            for code in codes {
                let row = self.level_starts[before] as usize + *code as usize;
                request.x.extend_from_slice(&self.codes[row * self.dim..][..self.dim]);
            }
            let path = |parent: &u32| &request.ancestors[*parent as usize * before..][..before];
            let longer = parents.iter().flat_map(|parent| path(parent).iter().chain([parent]).copied());
            request.ancestors = longer.collect();
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let (x, past, memory) = (&mut request.x, &request.past[layer][..], request.memory[layer].as_ref());
            let bias = self.bias.as_ref();
            let new = block.step(x, bias, memory, past, &request.ancestors, &mut request.scratch);
            request.past[layer].push(new);
        }
        norm(&request.x, self.dim, &mut request.normed);
        let normed = Rows { data: &request.normed, stride: self.dim, count: codes.len() };
        let width = self.heads[level].outputs();
        self.heads[level].product(normed, log_probs, width, Into::Place);
        log_probs.chunks_exact_mut(width).for_each(log_softmax_row);
    }
}

/// What one request keeps between steps.
#[derive(Debug, Default)]
pub(crate) struct Request {
    first: Vec<f32>,
    /// One per block.
    memory: Vec<Option<PackedMemory>>,
    /// `past[block][step]`: keys and values of the rows of the step.
    past: Vec<Vec<Vec<f32>>>,
    /// (rows, steps so far).
    ancestors: Vec<u32>,
    x: Vec<f32>,
    normed: Vec<f32>,
    scratch: Scratch,
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
        let run = |task: Task| decoder.advance(task.request, level, &task.parents, &task.codes, task.log_probs);
        // Waking another thread pays for a batch only.
        if tasks.len() == 1 {
            tasks.into_iter().for_each(run);
        } else {
            tasks.into_par_iter().for_each(run);
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
