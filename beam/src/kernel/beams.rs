//! Beams in memory, and what does not differ between the kernels of the CPU: start, checks, bookkeeping, items.

use crate::order::CandidateKey;
use crate::{Error, Hypothesis, LiveMask, NodeId, Result, ScoreMode, Trie};
use rqvae::{Code, SemanticId};
use std::collections::HashSet;
use std::ops::Range;

/// No node: the prefix is not in this trie.
pub(super) const NONE: NodeId = NodeId::MAX;

/// Log-probabilities of the codes of one level.
#[derive(Debug, Clone, Default)]
pub struct Scores {
    /// Number of codes of the level.
    pub width: usize,
    /// (rows, width), natural logs, rows as in [`CpuBeams`].
    pub data: Vec<f32>,
}

/// Live beams of all requests, request by request, best first within a request.
#[derive(Debug, Clone)]
pub struct CpuBeams {
    pub(super) level: usize,
    pub(super) score: ScoreMode,
    pub(super) live: Vec<LiveMask>,
    /// Rows of request r are `starts[r]..starts[r + 1]`.
    starts: Vec<usize>,
    pub(super) rows: Vec<Beam>,
    /// (rows, level).
    codes: Vec<Code>,
    /// What the last step left to be overwritten.
    spare: (Vec<Beam>, Vec<Code>),
    /// One per request.
    rooms: Vec<Room>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Beam {
    pub(super) request: usize,
    pub(super) parent: usize,
    /// In the trie of the kernel, or [`NONE`].
    pub(super) node: NodeId,
    /// In what was added to it, or [`NONE`].
    pub(super) twin: NodeId,
    pub(super) log_prob: f32,
}

/// What one request needs during a step; kept for the next one.
#[derive(Debug, Clone, Default)]
pub(super) struct Room {
    pub(super) keys: Vec<CandidateKey>,
    pub(super) children: Vec<Child>,
    /// Children of each beam.
    pub(super) places: Vec<Range<NodeId>>,
    /// The result: the best children, best first.
    pub(super) kept: Vec<(Beam, Code)>,
}

/// A child of a beam.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) code: Code,
    /// Whether a trie built now would have it.
    there: bool,
    /// Whether it leads to an allowed item.
    pub(super) live: bool,
}

impl CpuBeams {
    /// Codes chosen so far; the next scores are of this level.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Number of live beams of all requests. At level 0 there is one per request.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Request of `row`; ascending.
    pub fn request(&self, row: usize) -> usize {
        self.rows[row].request
    }

    /// Rows of `request`.
    pub fn rows_of(&self, request: usize) -> Range<usize> {
        self.starts[request]..self.starts[request + 1]
    }

    /// Path of `row`, one code per level so far: (level,).
    pub fn codes(&self, row: usize) -> &[Code] {
        &self.codes[row * self.level..][..self.level]
    }

    /// The row of the step before that `row` continues; at level 0 the row itself.
    pub fn parent(&self, row: usize) -> usize {
        self.rows[row].parent
    }

    /// Node of `row` in the trie that is searched; [`NodeId::MAX`] when the prefix came after it was built.
    pub fn node(&self, row: usize) -> NodeId {
        self.rows[row].node
    }

    /// Sum of the scores along the path of `row`.
    pub fn log_prob(&self, row: usize) -> f32 {
        self.rows[row].log_prob
    }

    /// One beam per request, at the root.
    pub(super) fn start(trie: &Trie, batch: usize, live: &[LiveMask], score: ScoreMode) -> Result<Self> {
        if live.len() != batch {
            return Err(Error::shape("live masks", format!("one per request, {batch}"), live.len()));
        }
        live.iter().try_for_each(|mask| mask.check(trie))?;
        let root = |(row, mask): (usize, &LiveMask)| {
            let twin = if mask.added().is_some() { Trie::ROOT } else { NONE };
            Beam { request: row, parent: row, node: Trie::ROOT, twin, log_prob: 0.0 }
        };
        Ok(Self {
            level: 0,
            score,
            live: live.to_vec(),
            starts: (0..=batch).collect(),
            rows: live.iter().enumerate().map(root).collect(),
            codes: Vec::new(),
            spare: Default::default(),
            rooms: vec![Room::default(); batch],
        })
    }

    /// Checks the arguments of a step and lends the rooms out.
    pub(super) fn rooms(&mut self, trie: &Trie, scores: &Scores, width: usize) -> Result<Vec<Room>> {
        let level = self.level;
        if level >= trie.levels() {
            return Err(Error::shape("steps of a search", trie.levels(), level + 1));
        }
        let codes_here = trie.spec().codes_at(level) as usize;
        if scores.width != codes_here || scores.data.len() != self.rows() * codes_here {
            let expected = format!("({}, {codes_here})", self.rows());
            let got = format!("{} numbers in rows of {}", scores.data.len(), scores.width);
            return Err(Error::shape("scores", expected, got));
        }
        let most = (0..self.live.len()).map(|request| self.rows_of(request).len()).max().unwrap_or(0);
        if width == 0 || most as u64 * codes_here as u64 > 1 << 32 {
            let expected = "at least 1, and 2^32 over the codes of the next level at most";
            return Err(Error::config("widths", width, expected));
        }
        Ok(std::mem::take(&mut self.rooms))
    }

    /// Makes what the rooms kept the new beams.
    pub(super) fn take(&mut self, rooms: Vec<Room>) {
        let (mut rows, mut codes) = std::mem::take(&mut self.spare);
        rows.clear();
        codes.clear();
        for (request, room) in rooms.iter().enumerate() {
            for (beam, code) in &room.kept {
                rows.push(*beam);
                codes.extend_from_slice(self.codes(beam.parent));
                codes.push(*code);
            }
            self.starts[request + 1] = rows.len();
        }
        self.spare = (std::mem::replace(&mut self.rows, rows), std::mem::replace(&mut self.codes, codes));
        self.level += 1;
        self.rooms = rooms;
    }

    /// Best first, from the keys of candidates `rank among the request's beams * width + code`.
    pub(super) fn keep(&self, trie: &Trie, request: usize, width: usize, room: &mut Room) {
        let (level, rows) = (self.level, self.rows_of(request));
        let added = self.live[request].added();
        room.keys.sort_unstable_by(|a, b| b.cmp(a));
        room.kept.clear();
        room.kept.extend(room.keys.iter().map(|key| {
            let (rank, code) = (key.index() as usize / width, (key.index() as usize % width) as Code);
            let parent = rows.start + rank;
            let from = &self.rows[parent];
            let child = |trie: &Trie, node| if node == NONE { None } else { trie.child(level, node, code) };
            let node = child(trie, from.node).unwrap_or(NONE);
            let twin = added.and_then(|(trie, _)| child(trie, from.twin)).unwrap_or(NONE);
            (Beam { request, parent, node, twin, log_prob: key.score() }, code)
        }));
    }

    /// Children of `beam` in both tries, codes ascending.
    pub(super) fn children(&self, trie: &Trie, beam: &Beam, children: &mut Vec<Child>) {
        children.clear();
        let live = &self.live[beam.request];
        if beam.node != NONE {
            let (codes, nodes) = trie.children(self.level, beam.node);
            let siblings = live.base().siblings(self.level + 1, &nodes);
            let there = live.base().there(self.level + 1, &nodes);
            children.extend(codes.iter().zip(nodes).map(|(code, node)| Child {
                code,
                there: there.leads_on(node),
                live: siblings.leads_on(node),
            }));
        }
        let Some((added, part)) = live.added().filter(|_| beam.twin != NONE) else {
            return;
        };
        let (codes, nodes) = added.children(self.level, beam.twin);
        let siblings = part.siblings(self.level + 1, &nodes);
        for (code, twin) in codes.iter().zip(nodes) {
            let live = siblings.leads_on(twin);
            match children.binary_search_by_key(&code, |child| child.code) {
                Ok(at) => {
                    let child = &mut children[at];
                    (child.there, child.live) = (true, child.live || live);
                }
                Err(at) => children.insert(at, Child { code, there: true, live }),
            }
        }
    }

    /// At most `top_k` items of each request.
    pub(super) fn finish(&self, trie: &Trie, top_k: usize) -> Result<Vec<Vec<Hypothesis>>> {
        if !self.rows.is_empty() && self.level != trie.levels() {
            return Err(Error::shape("steps of a search", trie.levels(), self.level));
        }
        let list = |(request, live): (usize, &LiveMask)| {
            let mut list = Vec::with_capacity(top_k.min(self.rows_of(request).len()));
            // Where items have one ID each, no item comes twice.
            let mut seen = (trie.has_aliases() || live.added().is_some()).then(HashSet::new);
            for row in self.rows_of(request) {
                let sid = SemanticId::new(self.codes(row))?;
                let beam = &self.rows[row];
                // A twin has all items of the ID.
                let (items, part) = match live.added().filter(|_| beam.twin != NONE) {
                    Some((added, part)) => (added.items(beam.twin), part),
                    None => (trie.items(beam.node), live.base()),
                };
                for item in items.iter().copied().filter(|item| part.allows(*item)) {
                    if list.len() == top_k {
                        return Ok(list);
                    }
                    if seen.as_mut().is_none_or(|seen| seen.insert(item)) {
                        list.push(Hypothesis { sid, item, log_prob: beam.log_prob });
                    }
                }
            }
            Ok(list)
        };
        self.live.iter().enumerate().map(list).collect()
    }
}

/// Codes among `children` that a trie built now would have.
pub(super) fn there(children: &[Child]) -> impl Iterator<Item = Code> + Clone {
    children.iter().filter(|child| child.there).map(|child| child.code)
}
