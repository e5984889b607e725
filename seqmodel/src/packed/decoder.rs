//! Decoding with packed weights: some requests a thread, groups of whose beams go through the products together, or one that
//! comes alone with the help of threads that have nothing else to do; keys and values that never move.
//!
//! Keys and values of what was encoded are kept once per request and read by all its beams; those of a beam's own path
//! stay where the steps left them and are read through the ancestor table. Buffers grow to the widest step and stay, also
//! from request to request; those that only a step needs are lent, so that a thread computes in few of them.

use super::aligned::Aligned;
use super::block::{Bias, PackedBlock, PackedMemory, Scratch, Share, norm};
use super::crew::{Crew, Team, on_threads};
use super::matrix::{JOINED, Packed, ROWS, Rows, groups};
use super::sink::{Into, Sink};
use crate::nn::log_softmax_row;
use crate::{Error, Result};
use beam::{BeamKernel, BoxError, CpuBeams, Scores, StepScorer};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most requests whose memory is kept.
const SPARE: usize = 64;

/// Most groups of rows that a thread takes through each half of a block before the next: the weights it fetches serve all of
/// them, and other threads can still take some.
const TOGETHER: usize = 4;

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
    pub(crate) rooms: Rooms,
    /// Who helps with a request that comes alone.
    pub(crate) crew: Crew,
}

impl PackedDecoder {
    /// A request in the memory of an earlier one, where there is any.
    pub(crate) fn take_request(&self) -> Request {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Makes requests ready, each from a start of its own. All of them go through a block before any goes through the next, so
    /// that its weights are fetched once.
    pub(crate) fn start(&self, requests: &mut [Request], starts: &[Start], team: &Team) {
        for (request, start) in requests.iter_mut().zip(starts) {
            request.begin(start.first, self.blocks.len());
            let memories = if start.encoded.is_some() { self.blocks.len() } else { 0 };
            request.memory.resize_with(memories, PackedMemory::default);
        }
        self.rooms.lend(1, |rooms| {
            let room = &mut rooms[0];
            let mut states = std::mem::take(&mut room.x);
            states.clear();
            let encoded = || starts.iter().filter_map(|start| start.encoded);
            encoded().for_each(|encoded| states.extend_from_slice(encoded));
            let seqs: Vec<_> = encoded().map(|encoded| encoded.len() / self.dim).collect();
            for (at, block) in self.blocks.iter().enumerate() {
                let memories = requests.iter_mut().filter_map(|request| request.memory.get_mut(at));
                block.remember(&states, &seqs, memories, room, team);
            }
            room.x = states;
        });
    }

    /// Log-probabilities of `level` for the beams of `tasks`, (rows of all, codes), into `log_probs`. Some of them go through
    /// the products together; where each thread of a team has enough, it takes its own through all products by itself.
    fn advance(&self, tasks: &mut [Task], log_probs: &mut [f32], level: usize, team: &Team) {
        let sizes = sizes(tasks, team.threads());
        let rooms = if team.threads() == 1 { 1 } else { sizes.len().max(1) };
        self.rooms.lend(rooms, |rooms| {
            let mut x = std::mem::take(&mut rooms[0].x);
            x.clear();
            tasks.iter_mut().for_each(|task| self.begin(task, level, &mut x));
            let classes = self.heads[level].outputs();
            let (mut x_left, mut log_probs) = (&mut x[..], log_probs);
            let groups = sizes.iter().zip(self.shares(tasks, level, &sizes)).map(|(rows, shares)| Group {
                x: x_left.split_off_mut(..rows * self.dim).unwrap_or_default(),
                shares,
                log_probs: log_probs.split_off_mut(..rows * classes).unwrap_or_default(),
            });
            let mut groups: Vec<_> = groups.collect();
            if rooms.len() == 1 {
                self.step(&mut groups, level, &mut rooms[0], team);
            } else {
                team.each_of(groups.iter_mut().zip(&mut *rooms), usize::MAX, |(group, room)| {
                    self.step(std::slice::from_mut(group), level, room, &Team::alone());
                });
            }
            drop(groups);
            rooms[0].x = x;
        });
    }

    /// What the requests of groups of so many rows have at a step, block by block.
    fn shares<'a>(&self, tasks: &'a mut [Task], level: usize, sizes: &[usize]) -> Vec<Vec<Vec<Share<'a>>>> {
        let mut shares: Vec<Vec<Vec<Share>>> = Vec::new();
        shares.resize_with(sizes.len(), || self.blocks.iter().map(|_| Vec::new()).collect());
        let mut left = sizes.iter().copied().enumerate();
        let mut group = left.next().unwrap_or_default();
        for task in tasks {
            // Groups that have some of its rows, and how many.
            let (mut rows, mut cuts) = (task.codes.len(), Vec::new());
            while rows > 0 {
                let count = rows.min(group.1);
                cuts.push((group.0, count));
                (rows, group.1) = (rows - count, group.1 - count);
                if group.1 == 0 {
                    group = left.next().unwrap_or((group.0, rows));
                }
            }
            let Request { memory, past, ancestors, .. } = &mut *task.request;
            for (layer, (block, past)) in self.blocks.iter().zip(past).enumerate() {
                let width = block.key_value_width();
                if past.len() == level {
                    past.push(Vec::new());
                }
                let (past, now) = past.split_at_mut(level);
                now[0].resize(task.codes.len() * width, 0.0);
                let (mut new, mut ancestors) = (&mut now[0][..], &ancestors[..]);
                for (group, count) in &cuts {
                    let new = new.split_off_mut(..count * width).unwrap_or_default();
                    let ancestors = ancestors.split_off(..count * level).unwrap_or_default();
                    shares[*group][layer].push(Share { new, past, ancestors, memory: memory.get(layer) });
                }
            }
        }
        shares
    }

    /// A step of all blocks. All groups go through a half of a block before any goes through the next, so that its weights are
    /// fetched once.
    fn step(&self, groups: &mut [Group], level: usize, room: &mut Scratch, team: &Team) {
        for (layer, block) in self.blocks.iter().enumerate() {
            for Group { x, shares, .. } in &mut *groups {
                block.attention(x, &mut shares[layer], self.bias.as_ref(), room, team);
            }
            for Group { x, .. } in &mut *groups {
                block.feed_forward(x, room, team);
            }
        }
        let classes = self.heads[level].outputs();
        for Group { x, log_probs, .. } in groups {
            norm(x, self.dim, &mut room.normed);
            let normed = Rows { data: &room.normed, stride: self.dim, count: x.len() / self.dim };
            self.heads[level].product(normed, &mut Sink::new(log_probs, classes, Into::Place), team);
            // To find an exponent takes as long as some multiplications.
            let work = 16 * log_probs.len();
            team.each_of(log_probs.chunks_exact_mut(classes), work, log_softmax_row);
        }
    }

    /// Takes up the beams of a step; their inputs go behind `x`.
    fn begin(&self, task: &mut Task, level: usize, x: &mut Aligned<f32>) {
        let Task { request, parents, codes } = task;
        let Some(before) = level.checked_sub(1) else {
            return codes.iter().for_each(|_| x.extend_from_slice(&request.first));
        };
        for code in codes {
            let row = self.level_starts[before] as usize + *code as usize;
            x.extend_from_slice(&self.codes[row * self.dim..][..self.dim]);
        }
        request.longer.clear();
        for parent in parents {
            request.longer.extend_from_slice(&request.ancestors[*parent as usize * before..][..before]);
            request.longer.push(*parent);
        }
        std::mem::swap(&mut request.ancestors, &mut request.longer);
    }
}

/// Rooms that nobody is in. Who comes gets those that were left last, which caches still know.
#[derive(Debug, Default)]
pub(crate) struct Rooms(Mutex<Vec<Scratch>>);

impl Rooms {
    /// Runs with so many rooms.
    pub(crate) fn lend<T>(&self, count: usize, run: impl FnOnce(&mut [Scratch]) -> T) -> T {
        let spare = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rooms: Vec<Scratch> = {
            let mut spare = spare();
            let first = spare.len().saturating_sub(count);
            spare.drain(first..).collect()
        };
        rooms.resize_with(count, Scratch::default);
        let done = run(&mut rooms);
        spare().extend(rooms);
        done
    }
}

/// What a request starts from.
pub(crate) struct Start<'a> {
    /// Its first input, (dim,).
    pub(crate) first: &'a [f32],
    /// What its history was encoded to, (seq, dim), if the blocks read it.
    pub(crate) encoded: Option<&'a [f32]>,
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
}

impl Request {
    fn begin(&mut self, first: &[f32], blocks: usize) {
        self.first.clear();
        self.first.extend_from_slice(first);
        self.past.resize_with(blocks, Vec::new);
        self.ancestors.clear();
    }
}

/// One decoding run for a batch of requests.
pub struct PackedSession<'a> {
    decoder: &'a PackedDecoder,
    requests: Vec<Request>,
    /// Rows of each request at the last step.
    before: Vec<Range<usize>>,
}

/// Rows that go through the products of a step together.
struct Group<'a> {
    /// (rows, dim).
    x: &'a mut [f32],
    /// Of their requests, block by block.
    shares: Vec<Vec<Share<'a>>>,
    /// (rows, codes).
    log_probs: &'a mut [f32],
}

/// One request's share of a step.
struct Task<'a> {
    request: &'a mut Request,
    parents: Vec<u32>,
    codes: Vec<u32>,
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
        let tasks = self.requests.iter_mut().zip(&ranges).enumerate().map(|(at, (request, range))| {
            let first = if level == 0 { 0 } else { self.before.get(at).map_or(0, |before| before.start) };
            let parents = range.clone().map(|row| (beams.parent(row) - first) as u32).collect();
            let codes = range.clone().map(|row| beams.codes(row).last().map_or(0, |code| u32::from(*code))).collect();
            Task { request, parents, codes }
        });
        let mut tasks: Vec<_> = tasks.collect();
        if tasks.len() == 1 {
            decoder.advance(&mut tasks, &mut data, level, &decoder.crew.call());
        } else {
            let widest = ranges.iter().map(Range::len).max().unwrap_or(0);
            let parts = parts(tasks.len(), widest, rayon::current_num_threads());
            let (mut tasks, mut rest) = (tasks.as_mut_slice(), data.as_mut_slice());
            let parts = parts.map(|part| {
                let rows: usize = ranges[part.clone()].iter().map(Range::len).sum();
                let part = tasks.split_off_mut(..part.len()).unwrap_or_default();
                (part, rest.split_off_mut(..rows * width).unwrap_or_default())
            });
            on_threads(parts, |(tasks, log_probs)| decoder.advance(tasks, log_probs, level, &Team::alone()));
        }
        self.before = ranges;
        Ok(Scores { width, data })
    }
}

/// Rows of the groups of a step: those of a thread, or a part for each of a team.
fn sizes(tasks: &[Task], threads: usize) -> Vec<usize> {
    let all: usize = tasks.iter().map(|task| task.codes.len()).sum();
    match threads {
        1 => groups(all, threads).collect(),
        _ if all >= ROWS * threads => {
            (0..threads).map(|part| (part + 1) * all / threads - part * all / threads).collect()
        }
        _ => vec![all],
    }
}

/// Requests of at most `widest` rows that a thread reads or steps with, as even as can be among `threads`.
pub(crate) fn parts(requests: usize, widest: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    let least = requests.div_ceil(most(widest));
    let of = least.next_multiple_of(threads.max(1)).min(requests);
    (0..of).map(move |part| part * requests / of..(part + 1) * requests / of)
}

/// Requests of so many rows that a thread takes at most.
fn most(rows: usize) -> usize {
    (TOGETHER * JOINED / rows.max(1)).max(1)
}

/// Codes of `level`.
fn expect_level(decoder: &PackedDecoder, level: usize) -> Result<usize> {
    decoder.heads.get(level).map(Packed::outputs).ok_or_else(|| Error::Mismatch {
        what: "search".into(),
        expected: format!("{} levels", decoder.heads.len()),
        found: format!("level {level}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_take_every_request_and_keep_within_bounds() {
        for requests in 0..70 {
            for widest in [0, 1, 10, 30, 50, 96, 97, 1000] {
                for threads in 1..5 {
                    let parts: Vec<_> = parts(requests, widest, threads).collect();
                    assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..requests).collect::<Vec<_>>());
                    assert!(parts.iter().all(|part| part.len() <= most(widest)));
                    assert!(parts.len() >= threads.min(requests));
                }
            }
        }
    }
}
