//! A step written down: what kernels make of the batch, and the kernels that bring gradients back, last first.
//!
//! Nothing runs here and no value is looked at: a tape is launches and addresses. Where a node has a gradient, its place
//! begins as zeros, and every kernel of the way back adds to it.

use super::super::launch::MOST_SHARED;
use crate::data::Negatives;
use crate::nn::{Drop, Keys, NO_ROW};
use crate::{Error, Result};
use beam::cuda::train::{
    ACCUMULATE, ALL_KEYS, BiasArgs, CAUSAL, COPY, CrossEntropyArgs, DROP, DROP_ACCUMULATE, DROP_ADD, DrawnArgs,
    ElementArgs, FILL, FIRST_KEYS, FoldArgs, GatherArgs, MatmulArgs, NORM_ROWS, ON_TOP, RELU_DROP, RELU_DROP_BACK,
    ScatterArgs, TrainAttendArgs, TrainNormArgs, attend_backward, attend_fits, attend_forward, bias_backward,
    bias_forward, cross_entropy, drawn_backward, drawn_scores, element, fold, gather_rows, matmul, norm_backward,
    norm_forward, parts, scatter_rows,
};
use beam::cuda::{Launch, Numbers};

/// Bytes that every piece of memory begins at a multiple of.
const ALIGN: usize = 256;

/// A part of the device's memory that pieces are taken from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    base: u64,
    used: usize,
}

impl Room {
    pub(super) fn at(base: u64) -> Self {
        Self { base, used: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn take(&mut self, bytes: usize) -> u64 {
        let at = self.base + self.used as u64;
        self.used += bytes.next_multiple_of(ALIGN);
        at
    }
}

/// What a tape takes its memory from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rooms {
    /// What the host writes before the tape runs.
    pub(super) data: Room,
    /// Activations.
    pub(super) values: Room,
    /// Their gradients, zeros when the way back begins.
    pub(super) grads: Room,
    /// What a kernel leaves for the next one alone: all use the same.
    pub(super) scratch: Room,
    /// What the host reads afterwards.
    pub(super) results: Room,
}

impl Rooms {
    pub(super) fn of(bases: [u64; 5]) -> Self {
        let [data, values, grads, scratch, results] = bases.map(Room::at);
        Self { data, values, grads, scratch, results }
    }

    pub(super) fn used(&self) -> [usize; 5] {
        [self.data, self.values, self.grads, self.scratch, self.results].map(|room| room.used())
    }
}

/// A matrix (rows, cols) on the device, rows `stride` numbers apart, and its gradient of the same shape; 0 where nobody
/// asks for one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) at: u64,
    pub(super) grad: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl Node {
    fn count(&self) -> u64 {
        (self.rows * self.cols) as u64
    }

    fn is_whole(&self) -> bool {
        self.stride == self.cols
    }

    fn skip(&self, numbers: usize) -> Self {
        let past = |at: u64| if at == 0 { 0 } else { at + 4 * numbers as u64 };
        Self { at: past(self.at), grad: past(self.grad), ..*self }
    }

    /// `rows` rows from `first` on.
    pub(super) fn slice(&self, first: usize, rows: usize) -> Self {
        Self { rows, ..self.skip(first * self.stride) }
    }

    /// Every `every`-th row, from `first` on.
    pub(super) fn each(&self, first: usize, every: usize) -> Self {
        Self { rows: self.rows / every, stride: self.stride * every, ..self.skip(first * self.stride) }
    }
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) dim: usize,
    pub(super) scale: f32,
}

/// The loss of some rows, among the results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// Where the rows' losses are, counted in numbers.
    pub(super) first: usize,
    pub(super) rows: usize,
}

/// The step so far.
pub(super) struct Tape {
    pub(super) numbers: Numbers,
    pub(super) rooms: Rooms,
    /// What goes to the start of `rooms.data`.
    pub(super) data: Vec<u8>,
    pub(super) forward: Vec<Launch>,
    /// The way back of each operation, in the order of the operations.
    backward: Vec<Vec<Launch>>,
    pub(super) terms: Vec<Term>,
    /// Where gradients of parameters begin that were added to.
    pub(super) learned: Vec<u64>,
    /// Where sums of squares begin among the results, counted in numbers.
    pub(super) squares: usize,
}

impl Tape {
    pub(super) fn new(numbers: Numbers, rooms: Rooms) -> Self {
        let (data, forward, backward) = (Vec::new(), Vec::new(), Vec::new());
        Self { numbers, rooms, data, forward, backward, terms: Vec::new(), learned: Vec::new(), squares: 0 }
    }

    /// The way back as it runs.
    pub(super) fn take_backward(&mut self) -> Vec<Launch> {
        std::mem::take(&mut self.backward).into_iter().rev().flatten().collect()
    }

    /// A matrix that an operation fills.
    pub(super) fn node(&mut self, rows: usize, cols: usize) -> Node {
        let bytes = 4 * rows * cols;
        Node { at: self.rooms.values.take(bytes), grad: self.rooms.grads.take(bytes), rows, cols, stride: cols }
    }

    /// Numbers that the host brings.
    pub(super) fn upload<T: bytemuck::Pod>(&mut self, values: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = self.rooms.data.take(bytes.len());
        self.data.extend_from_slice(bytes);
        self.data.resize(self.rooms.data.used(), 0);
        at
    }

    /// Bytes that this operation's kernels share; the next operation may have the same.
    fn scratch(&mut self, bytes: usize) -> u64 {
        let room = &mut self.rooms.scratch;
        room.used = room.used.max(bytes.next_multiple_of(ALIGN));
        room.base
    }

    /// `c += a b^T`, in parts where that takes.
    fn add_product(&mut self, args: MatmulArgs) -> Vec<Launch> {
        let parts = parts(args.m, args.n, args.k);
        if parts == 1 {
            return vec![matmul(self.numbers, MatmulArgs { flags: ON_TOP, ..args }, 1)];
        }
        let count = args.m * args.n;
        let scratch = self.scratch(4 * count as usize * parts as usize);
        let whole = MatmulArgs { c: scratch, ldc: args.n, part_stride: u64::from(count), ..args };
        let product = matmul(self.numbers, whole, parts);
        let parts = product.grid[2];
        // Only whole matrices are taken in parts.
        debug_assert_eq!(args.ldc, args.n, "weights lie without gaps");
        vec![product, fold(&FoldArgs { input: scratch, out: args.c, stride: u64::from(count), count, parts })]
    }

    /// `x W^T`: (rows, in), (out, in) -> (rows, out).
    pub(super) fn linear(&mut self, x: Node, w: Node) -> Node {
        let y = self.node(x.rows, w.rows);
        self.linear_into(x, w, y);
        y
    }

    /// The same, into rows that may lie apart.
    pub(super) fn linear_into(&mut self, x: Node, w: Node, y: Node) {
        let size = |n: usize| n as u32;
        let (rows, input, output) = (size(x.rows), size(w.cols), size(w.rows));
        let product = MatmulArgs { a: x.at, a_row: size(x.stride), a_col: 1, m: rows, ..MatmulArgs::default() };
        let forward = MatmulArgs { b: w.at, b_row: size(w.stride), b_col: 1, c: y.at, n: output, k: input, ..product };
        self.forward.push(matmul(self.numbers, MatmulArgs { ldc: size(y.stride), ..forward }, 1));
        let mut back = Vec::new();
        if x.grad > 0 {
            let product = MatmulArgs { a: y.grad, a_row: size(y.stride), a_col: 1, m: rows, ..MatmulArgs::default() };
            let by = MatmulArgs { b: w.at, b_row: 1, b_col: size(w.stride), n: input, k: output, ..product };
            let args = MatmulArgs { c: x.grad, ldc: size(x.stride), flags: ON_TOP, ..by };
            if x.is_whole() {
                back.extend(self.add_product(args));
            } else {
                back.push(matmul(self.numbers, args, 1));
            }
        }
        if w.grad > 0 {
            self.learned.push(w.grad);
            let product = MatmulArgs { a: y.grad, a_row: 1, a_col: size(y.stride), m: output, ..MatmulArgs::default() };
            let by = MatmulArgs { b: x.at, b_row: 1, b_col: size(x.stride), n: input, k: rows, ..product };
            back.extend(self.add_product(MatmulArgs { c: w.grad, ldc: size(w.stride), ..by }));
        }
        self.backward.push(back);
    }

    /// Rows of `table` summed in groups of `group` ids, `NO_ROW` adding nothing: -> (ids / group, cols). Without a gradient
    /// where the table has none.
    pub(super) fn rows(&mut self, table: Node, ids: &[u32], group: usize) -> Node {
        let (rows, cols) = (ids.len() / group, table.cols);
        let y = if table.grad > 0 {
            self.node(rows, cols)
        } else {
            Node { at: self.rooms.values.take(4 * rows * cols), grad: 0, rows, cols, stride: cols }
        };
        self.rows_into(table, ids, group, y);
        y
    }

    /// The same of ids whose places are known.
    pub(super) fn known_rows(&mut self, table: Node, ids: &[u32], group: usize, places: &Places) -> Node {
        let y = self.node(ids.len() / group, table.cols);
        let back = self.gather(table, ids, group, y, Some(places));
        self.backward.push(back);
        y
    }

    /// The same, into rows that may lie apart.
    pub(super) fn rows_into(&mut self, table: Node, ids: &[u32], group: usize, y: Node) {
        let back = self.gather(table, ids, group, y, None);
        self.backward.push(back);
    }

    /// Reads rows; returns the way back.
    fn gather(&mut self, table: Node, ids: &[u32], group: usize, y: Node, places: Option<&Places>) -> Vec<Launch> {
        let at = self.upload(ids);
        let (dim, ldt) = (table.cols as u32, table.stride as u32);
        let args =
            GatherArgs { table: table.at, ids: at, out: y.at, rows: y.rows as u32, dim, ldt, ..GatherArgs::default() };
        self.forward.push(gather_rows(&GatherArgs { group: group as u32, ldo: y.stride as u32, ..args }));
        if table.grad == 0 {
            return Vec::new();
        }
        self.learned.push(table.grad);
        let made;
        let places = if let Some(places) = places {
            places
        } else {
            made = Places::of(ids, group);
            &made
        };
        let grad =
            ScatterArgs { table: table.grad, dim, ldt, grad: y.grad, ldg: y.stride as u32, ..ScatterArgs::default() };
        if places.longest() <= LONG {
            return self.scatter(grad, places).into_iter().collect();
        }
        // A row that most outputs have read would keep one block busy alone: its places are summed piece by piece first.
        let (pieces, of_rows) = places.pieces(LONG);
        let partial = self.scratch(4 * pieces.rows.len() * table.cols);
        let count = (pieces.rows.len() * table.cols) as u64;
        let clear = element(&ElementArgs { y: partial, what: FILL, count, ..ElementArgs::default() });
        let first = self.scatter(ScatterArgs { table: partial, ldt: dim, ..grad }, &pieces);
        let second = self.scatter(ScatterArgs { grad: partial, ldg: dim, ..grad }, &of_rows);
        std::iter::once(clear).chain(first).chain(second).collect()
    }

    fn scatter(&mut self, args: ScatterArgs, places: &Places) -> Option<Launch> {
        if places.rows.is_empty() {
            return None;
        }
        let rows = self.upload(&places.rows);
        let (starts, outputs) = (self.upload(&places.starts), self.upload(&places.outputs));
        let args = ScatterArgs { rows, starts, places: outputs, ..args };
        Some(scatter_rows(&args, places.rows.len() as u32))
    }

    fn element(y: u64, x: u64, what: u32, count: u64) -> ElementArgs {
        ElementArgs { y, x, what, count, scale: 1.0, ..ElementArgs::default() }
    }

    /// `scale x`.
    pub(super) fn scale(&mut self, x: Node, scale: f32) -> Node {
        debug_assert!(x.is_whole());
        let y = self.node(x.rows, x.cols);
        let count = x.count();
        self.forward.push(element(&ElementArgs { scale, ..Self::element(y.at, x.at, COPY, count) }));
        self.backward.push(vec![element(&ElementArgs { scale, ..Self::element(x.grad, y.grad, ACCUMULATE, count) })]);
        y
    }

    /// `x += y`, in the place of `x`, which nobody else has read.
    pub(super) fn add(&mut self, x: Node, y: Node) {
        debug_assert!(x.is_whole() && y.is_whole() && x.count() == y.count());
        self.forward.push(element(&Self::element(x.at, y.at, ACCUMULATE, x.count())));
        self.backward.push(vec![element(&Self::element(y.grad, x.grad, ACCUMULATE, x.count()))]);
    }

    /// What dropout leaves of `x`.
    pub(super) fn dropout(&mut self, x: Node, drop: Drop) -> Node {
        if !drop.active() {
            return x;
        }
        debug_assert!(x.is_whole());
        let (y, drop) = (self.node(x.rows, x.cols), drop.on_device());
        self.forward.push(element(&ElementArgs { drop, ..Self::element(y.at, x.at, DROP, x.count()) }));
        let back = Self::element(x.grad, y.grad, DROP_ACCUMULATE, x.count());
        self.backward.push(vec![element(&ElementArgs { drop, ..back })]);
        y
    }

    /// `residual + dropout(x)`. Its gradient lies where the residual's does, so `residual` must have been read for the last
    /// time.
    pub(super) fn dropout_add(&mut self, residual: Node, x: Node, drop: Drop) -> Node {
        debug_assert!(residual.is_whole() && x.is_whole());
        let count = x.count();
        let y = Node { at: self.rooms.values.take(4 * count as usize), ..residual };
        let drop = drop.on_device();
        let forward = ElementArgs { by: residual.at, drop, ..Self::element(y.at, x.at, DROP_ADD, count) };
        self.forward.push(element(&forward));
        let back = Self::element(x.grad, y.grad, DROP_ACCUMULATE, count);
        self.backward.push(vec![element(&ElementArgs { drop, ..back })]);
        y
    }

    /// `dropout(max(x, 0))`, in the place of `x`.
    pub(super) fn relu_dropout(&mut self, x: Node, drop: Drop) -> Node {
        let count = x.count();
        let y = Node { grad: self.rooms.grads.take(4 * count as usize), ..x };
        let drop = drop.on_device();
        self.forward.push(element(&ElementArgs { drop, ..Self::element(y.at, x.at, RELU_DROP, count) }));
        let back = ElementArgs { by: y.at, drop, ..Self::element(x.grad, y.grad, RELU_DROP_BACK, count) };
        self.backward.push(vec![element(&back)]);
        y
    }

    /// `x / rms(x) * w`: (rows, dim), (1, dim) -> (rows, dim).
    pub(super) fn norm(&mut self, x: Node, w: Node) -> Result<Node> {
        debug_assert!(x.is_whole());
        if 8 * 4 * x.cols > MOST_SHARED as usize {
            return Err(too_large("width of a norm", x.cols, "7000"));
        }
        let y = self.node(x.rows, x.cols);
        let blocks = (x.rows as u32).div_ceil(NORM_ROWS);
        let partial = self.scratch(4 * blocks as usize * x.cols);
        let (rows, dim) = (x.rows as u32, x.cols as u32);
        let args = TrainNormArgs { x: x.at, w: w.at, y: y.at, dy: y.grad, dx: x.grad, partial, rows, dim };
        self.learned.push(w.grad);
        self.forward.push(norm_forward(&args));
        let sum = FoldArgs { input: partial, out: w.grad, stride: u64::from(dim), count: dim, parts: blocks };
        self.backward.push(vec![norm_backward(&args), fold(&sum)]);
        Ok(y)
    }

    /// A bias of `buckets` rows, `heads` wide, read by pairs of query and key: -> (heads, pairs).
    pub(super) fn bias(&mut self, table: Node, ids: &[u32]) -> Node {
        let y = self.node(table.cols, ids.len());
        let (count, heads) = (ids.len() as u32, table.cols as u32);
        let args = BiasArgs { table: table.at, ids: self.upload(ids), bias: y.at, count, heads };
        self.learned.push(table.grad);
        self.forward.push(bias_forward(&args));
        let back = BiasArgs { table: table.grad, bias: y.grad, ..args };
        self.backward.push(vec![bias_backward(&back, table.rows as u32)]);
        y
    }

    /// Attention of `batch` sequences: (batch * queries, inner), (batch * keys, 2 inner) -> (batch * queries, inner).
    ///
    /// # Errors
    /// There are more keys than a block of threads can hold.
    #[expect(clippy::too_many_arguments, reason = "what an attention is made of")]
    pub(super) fn attention(
        &mut self,
        q: Node,
        kv: Node,
        bias: Option<Node>,
        mask: &Keys,
        batch: usize,
        heads: Heads,
        drop: Drop,
    ) -> Result<Node> {
        debug_assert!(q.is_whole() && kv.is_whole());
        let (queries, keys) = (q.rows / batch, kv.rows / batch);
        if !attend_fits(keys as u32, heads.dim as u32) {
            return Err(too_large("positions of a history", keys, "fewer, by history_cap"));
        }
        let y = self.node(q.rows, q.cols);
        let scores = batch * heads.count * queries * keys;
        let scratch = self.scratch(2 * 4 * scores);
        let (mask, lengths) = match mask {
            Keys::Causal => (CAUSAL, 0),
            Keys::First(lengths) => (FIRST_KEYS, self.upload(lengths)),
            Keys::All => (ALL_KEYS, 0),
        };
        let args = TrainAttendArgs {
            q: q.at,
            kv: kv.at,
            bias: bias.map_or(0, |bias| bias.at),
            lengths,
            out: y.at,
            grad: y.grad,
            dq: q.grad,
            dkv: kv.grad,
            kept: scratch,
            ds: scratch + 4 * scores as u64,
            drop: drop.on_device(),
            queries: queries as u32,
            keys: keys as u32,
            heads: heads.count as u32,
            head_dim: heads.dim as u32,
            scale: heads.scale,
            mask,
        };
        self.forward.push(attend_forward(&args, batch as u32));
        let mut back = vec![attend_backward(&args, batch as u32)];
        if let Some(bias) = bias {
            let count = (heads.count * queries * keys) as u32;
            let parts = batch as u32;
            back.push(fold(&FoldArgs { input: args.ds, out: bias.grad, stride: u64::from(count), count, parts }));
        }
        self.backward.push(back);
        Ok(y)
    }

    /// Logits `x W^T` whose loss comes next, in whose place their gradient then is.
    pub(super) fn logits(&mut self, x: Node, w: Node) -> Node {
        let at = self.rooms.values.take(4 * x.rows * w.rows);
        let y = Node { at, grad: at, rows: x.rows, cols: w.rows, stride: w.rows };
        self.linear_into(x, w, y);
        y
    }

    /// A term of the loss: `weight` times the mean cross-entropy of `logits` of [`Tape::logits`].
    pub(super) fn cross_entropy(
        &mut self,
        logits: Node,
        targets: &[u32],
        ruled_out: Option<&[f32]>,
        smoothing: f32,
        weight: f32,
    ) {
        let losses = self.results(logits.rows);
        let args = CrossEntropyArgs {
            logits: logits.at,
            ruled_out: ruled_out.map_or(0, |mask| self.upload(mask)),
            targets: self.upload(targets),
            losses: losses.0,
            rows: logits.rows as u32,
            classes: logits.cols as u32,
            ld: logits.stride as u32,
            smoothing,
            weight,
            pad: 0,
        };
        self.forward.push(cross_entropy(&args));
        self.terms.push(Term { first: losses.1, rows: logits.rows });
    }

    /// A term of the loss: `weight` times the mean over targets of minus their log-probability among themselves and what
    /// was drawn, as [`crate::loss::sampled_softmax`] with the corrected form. `table`: the targets' rows, then those of
    /// what was drawn.
    pub(super) fn sampled_softmax(
        &mut self,
        states: Node,
        table: Node,
        targets: &[u32],
        drawn: &Negatives,
        weight: f32,
    ) {
        let (rows, draws) = (states.rows, drawn.items.len());
        let stride = 1 + draws;
        let at = self.rooms.values.take(4 * rows * stride);
        let scores = Node { at, grad: at, rows, cols: stride, stride };
        self.linear_into(states, table.slice(rows, draws), Node { cols: draws, ..scores.skip(1) });
        let column: Vec<f32> = drawn.expected.iter().map(|expected| -expected.ln()).collect();
        let args = DrawnArgs {
            x: states.at,
            y: table.at,
            scores: at,
            items: self.upload(&drawn.items),
            targets: self.upload(targets),
            column: self.upload(&column),
            offset: self.upload(&drawn.offsets(targets)),
            dx: states.grad,
            dy: table.grad,
            dim: states.cols as u32,
            draws: draws as u32,
            ld: stride as u32,
            pad: 0,
        };
        self.forward.push(drawn_scores(&args, rows as u32));
        self.backward.push(vec![drawn_backward(&args, rows as u32)]);
        self.cross_entropy(scores, &vec![0; rows], None, 0.0, weight);
    }

    /// Room for numbers that the host reads: where, and after how many others.
    pub(super) fn results(&mut self, count: usize) -> (u64, usize) {
        let first = self.rooms.results.used() / 4;
        (self.rooms.results.take(4 * count), first)
    }
}

fn too_large(what: &'static str, got: usize, expected: &str) -> Error {
    Error::InvalidConfig { field: what, got: format!("{got} on a device"), expected: expected.to_string() }
}

/// Outputs that one block sums by itself.
const LONG: usize = 512;

/// Which outputs each row of a table went into.
pub(super) struct Places {
    /// Ascending.
    rows: Vec<u32>,
    /// Of `outputs`, one more than rows.
    starts: Vec<u32>,
    outputs: Vec<u32>,
}

impl Places {
    pub(super) fn of(ids: &[u32], group: usize) -> Self {
        let known = ids.iter().enumerate().filter(|(_, id)| **id != NO_ROW);
        let mut pairs: Vec<(u32, u32)> = known.map(|(at, id)| (*id, (at / group) as u32)).collect();
        pairs.sort_unstable();
        let (mut rows, mut starts) = (Vec::new(), Vec::new());
        for (at, (id, _)) in pairs.iter().enumerate() {
            if rows.last() != Some(id) {
                rows.push(*id);
                starts.push(at as u32);
            }
        }
        starts.push(pairs.len() as u32);
        Self { rows, starts, outputs: pairs.into_iter().map(|(_, output)| output).collect() }
    }

    fn longest(&self) -> usize {
        self.starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    /// The same outputs in pieces of at most `most`, each a row of its own, and the pieces of every row.
    fn pieces(&self, most: usize) -> (Self, Self) {
        let mut pieces = Self { rows: Vec::new(), starts: vec![0], outputs: self.outputs.clone() };
        let mut of_rows = Self { rows: self.rows.clone(), starts: vec![0], outputs: Vec::new() };
        for pair in self.starts.windows(2) {
            for from in (pair[0]..pair[1]).step_by(most) {
                let piece = pieces.rows.len() as u32;
                pieces.rows.push(piece);
                pieces.starts.push((from + most as u32).min(pair[1]));
                of_rows.outputs.push(piece);
            }
            of_rows.starts.push(of_rows.outputs.len() as u32);
        }
        (pieces, of_rows)
    }
}
