//! The product in 32 bits, by the widest vectors that the processor has.
//!
//! Sums run over the inputs in order, with fused multiply-adds, so that a row's result depends on no other row.

use super::crew::Team;
use super::matrix::{Line, PANEL, Rows};
use super::sink::{Into, Sink};
use std::hint::black_box;
use std::ops::Range;

/// Parts of a product a thread has, so that others can take some.
const PARTS: usize = 2;

/// Some rows times the transpose of some panels.
pub(super) struct Product<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) part: Part,
    /// Those of the part.
    pub(super) panels: &'a [Line],
    /// All rows, and where all of them go.
    pub(super) rows: Rows<'a>,
    pub(super) out: Sink<'a>,
}

/// Some panels of a matrix, by some rows.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Part {
    /// Runs all parts of a product of `work` multiplications, which write to places of their own: one where nobody helps, a
    /// few a thread otherwise. A thread has rows, of which it may have computed the inputs, where `enough` are left for each;
    /// fewer are worth less than the panels that all would have to read.
    pub(super) fn each(
        team: &Team,
        (panels, rows): (usize, usize),
        enough: usize,
        work: usize,
        run: impl Fn(Self) + Sync,
    ) {
        if !team.parts(work) {
            return run(Self { panels: 0..panels, rows: 0..rows });
        }
        let threads = team.threads();
        let blocks = if rows >= enough * threads { threads } else { 1 };
        let width = match panels.div_ceil(PARTS * threads / blocks) {
            1 if panels < 2 * threads / blocks => 1,
            width => width.next_multiple_of(2),
        };
        let columns = panels.div_ceil(width);
        team.each(blocks * columns, work, |at| {
            let (block, column) = (at / columns, at % columns);
            run(Self {
                panels: column * width..panels.min((column + 1) * width),
                rows: block * rows / blocks..(block + 1) * rows / blocks,
            });
        });
    }
}

/// A panel and its number: (inputs, `PANEL`).
type Panel<'a> = (usize, &'a [Line]);

/// Some of the rows, in which of how many turns.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) number: usize,
    pub(super) of: usize,
}

/// `rows` in the fewest turns of at most `most`, as even as can be: a turn with few rows waits for its own sums.
pub(super) fn turns(rows: &Range<usize>, most: usize) -> impl Iterator<Item = Turn> + use<> {
    let (start, count) = (rows.start, rows.len());
    let of = count.div_ceil(most);
    (0..of).map(move |number| {
        let (first, end) = (number * count / of, (number + 1) * count / of);
        Turn { first: start + first, count: end - first, number, of }
    })
}

/// Asks for what a kernel will read soon; any address will do.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that every x86-64 has, and that reads nothing.
        #[expect(unsafe_code, reason = "a hint to the processor")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The rows of a turn, one name each, against two vectors of a panel from `$start` on. Sums have names because an array of
/// them would live in memory. Each turn fetches its part of the next panel, which is read from far away otherwise.
macro_rules! tile {
    ($product:ident, $simd:ident, $panel:ident, $start:expr, $turn:ident, $($name:ident)+) => {{
        let (panel, weights) = $panel;
        let mut row = $turn.first..;
        $(
            let from = row.next().unwrap_or(0) * $product.rows.stride;
            let zero = $simd.splat_f32s(0.0);
            let mut $name = (&$product.rows.data[from..][..weights.len()], zero, zero);
        )+
        let step = size_of::<Line>().div_ceil($turn.of);
        let mut ahead = $product.ahead(weights).wrapping_add(step * weights.len() * $turn.number);
        for (input, weights) in weights.iter().enumerate() {
            prefetch(ahead);
            prefetch(ahead.wrapping_add(64));
            ahead = ahead.wrapping_add(step);
            let weights = &weights[$start..][..2 * S::F32_LANES];
            let (low, high) = weights.split_at(S::F32_LANES);
            let (low, high) = (S::as_simd_f32s(low).0[0], S::as_simd_f32s(high).0[0]);
            $(
                let x = $simd.splat_f32s($name.0[input]);
                $name.1 = $simd.mul_add_f32s(x, low, $name.1);
                $name.2 = $simd.mul_add_f32s(x, high, $name.2);
            )+
        }
        let mut row = $turn.first..;
        $($product.put($simd, row.next().unwrap_or(0), panel * PANEL + $start, [$name.1, $name.2]);)+
    }};
}

/// One input of `pair`.
macro_rules! pair_input {
    ($simd:ident, $left:expr, $right:expr, $input:expr, $($name:ident)+) => {{
        let (w1, w2) = $left.split_at(S::F32_LANES);
        let (w3, w4) = $right.split_at(S::F32_LANES);
        let (w1, w2) = (S::as_simd_f32s(w1).0[0], S::as_simd_f32s(w2).0[0]);
        let (w3, w4) = (S::as_simd_f32s(w3).0[0], S::as_simd_f32s(w4).0[0]);
        $(
            let x = $simd.splat_f32s($name.0[$input]);
            $name.1 = $simd.mul_add_f32s(x, w1, $name.1);
            $name.2 = $simd.mul_add_f32s(x, w2, $name.2);
            $name.3 = $simd.mul_add_f32s(x, w3, $name.3);
            $name.4 = $simd.mul_add_f32s(x, w4, $name.4);
        )+
    }};
}

/// As `tile`, against all four vectors of two panels, two inputs at a time.
macro_rules! pair {
    ($product:ident, $simd:ident, $panels:ident, $turn:ident, $($name:ident)+) => {{
        let (panel, weights) = $panels;
        let (left, right) = weights.split_at(weights.len() / 2);
        let mut row = $turn.first..;
        $(
            // Unless it is hidden how rows follow each other, each is found from the one before, input by input.
            let from = black_box(row.next().unwrap_or(0) * $product.rows.stride);
            let zero = $simd.splat_f32s(0.0);
            let mut $name = (&$product.rows.data[from..][..left.len()], zero, zero, zero, zero);
        )+
        let step = (4 * size_of::<Line>()).div_ceil($turn.of);
        let mut ahead = $product.ahead(weights).wrapping_add(step * left.len() / 2 * $turn.number);
        let mut input = 0;
        while input + 1 < left.len() {
            prefetch(ahead);
            prefetch(ahead.wrapping_add(64));
            ahead = ahead.wrapping_add(step);
            pair_input!($simd, left[input], right[input], input, $($name)+);
            pair_input!($simd, left[input + 1], right[input + 1], input + 1, $($name)+);
            input += 2;
        }
        if input < left.len() {
            pair_input!($simd, left[input], right[input], input, $($name)+);
        }
        let mut row = $turn.first..;
        $(
            let at = row.next().unwrap_or(0);
            $product.put($simd, at, panel * PANEL, [$name.1, $name.2]);
            $product.put($simd, at, (panel + 1) * PANEL, [$name.3, $name.4]);
        )+
    }};
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let (mut panels, mut first) = (self.panels, self.part.panels.start);
        // Up to twelve rows are one turn of `wide`, which reads a panel once.
        if S::F32_LANES == 16 && self.part.rows.len() > 12 {
            let pairs = panels.chunks_exact(2 * self.inputs);
            panels = pairs.remainder();
            for pair in (first..).step_by(2).zip(pairs) {
                for turn in turns(&self.part.rows, 6) {
                    self.pair(simd, pair, turn);
                }
            }
            first += (self.panels.len() - panels.len()) / self.inputs;
        }
        for panel in (first..).zip(panels.chunks_exact(self.inputs)) {
            // Loops, since closures that are called again and again stay code for every processor.
            match S::F32_LANES {
                16 => {
                    for turn in turns(&self.part.rows, 12) {
                        self.wide(simd, panel, turn);
                    }
                }
                8 => {
                    for turn in turns(&self.part.rows, 6) {
                        self.narrow(simd, panel, turn);
                    }
                }
                lanes => {
                    for start in (0..PANEL).step_by(lanes) {
                        for row in self.part.rows.clone() {
                            self.plain::<S, 1, 1>(simd, panel, row, start);
                        }
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// What follows `panels`; themselves where somebody else may have that.
    #[inline(always)]
    fn ahead(&self, panels: &[Line]) -> *const u8 {
        let here = panels.as_ptr_range();
        let last = here.end == self.panels.as_ptr_range().end;
        if last { here.start.cast() } else { here.end.cast() }
    }

    /// Four vectors a row are read for six rows of sums, which takes fewer reads for each than two for twelve.
    #[inline(always)]
    fn pair<S: pulp::Simd>(&mut self, simd: S, panels: Panel, turn: Turn) {
        match turn.count {
            6 => pair!(self, simd, panels, turn, a b c d e f),
            5 => pair!(self, simd, panels, turn, a b c d e),
            4 => pair!(self, simd, panels, turn, a b c d),
            3 => pair!(self, simd, panels, turn, a b c),
            2 => pair!(self, simd, panels, turn, a b),
            _ => pair!(self, simd, panels, turn, a),
        }
    }

    /// Two vectors a row fill a panel, and 32 registers hold twelve rows of sums.
    #[inline(always)]
    fn wide<S: pulp::Simd>(&mut self, simd: S, panel: Panel, turn: Turn) {
        match turn.count {
            12 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j k l),
            11 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j k),
            10 => tile!(self, simd, panel, 0, turn, a b c d e f g h i j),
            9 => tile!(self, simd, panel, 0, turn, a b c d e f g h i),
            8 => tile!(self, simd, panel, 0, turn, a b c d e f g h),
            7 => tile!(self, simd, panel, 0, turn, a b c d e f g),
            6 => tile!(self, simd, panel, 0, turn, a b c d e f),
            5 => tile!(self, simd, panel, 0, turn, a b c d e),
            4 => tile!(self, simd, panel, 0, turn, a b c d),
            3 => tile!(self, simd, panel, 0, turn, a b c),
            2 => tile!(self, simd, panel, 0, turn, a b),
            _ => tile!(self, simd, panel, 0, turn, a),
        }
    }

    /// Sixteen registers hold two vectors of six rows; a few rows take whole panels of four vectors, since sums that are
    /// too few wait for each other.
    #[inline(always)]
    fn narrow<S: pulp::Simd>(&mut self, simd: S, panel: Panel, turn: Turn) {
        match turn.count {
            1 => return self.plain::<S, 1, 4>(simd, panel, turn.first, 0),
            2 => return self.plain::<S, 2, 4>(simd, panel, turn.first, 0),
            3 => return self.plain::<S, 3, 4>(simd, panel, turn.first, 0),
            _ => {}
        }
        for start in [0, PANEL / 2] {
            match turn.count {
                6 => tile!(self, simd, panel, start, turn, a b c d e f),
                5 => tile!(self, simd, panel, start, turn, a b c d e),
                _ => tile!(self, simd, panel, start, turn, a b c d),
            }
        }
    }

    /// `R` rows from `row` on against `V` vectors of the panel from `start` on, for few sums.
    #[inline(always)]
    fn plain<S: pulp::Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        (panel, weights): Panel,
        row: usize,
        start: usize,
    ) {
        let row_of = |r: usize| &self.rows.data[(row + r) * self.rows.stride..][..weights.len()];
        let rows: [&[f32]; R] = std::array::from_fn(row_of);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for (input, weights) in weights.iter().enumerate() {
            let weights = S::as_simd_f32s(&weights[start..]).0;
            let weights: [S::f32s; V] = std::array::from_fn(|v| weights[v]);
            for r in 0..R {
                let x = simd.splat_f32s(rows[r][input]);
                for v in 0..V {
                    sums[r][v] = simd.mul_add_f32s(x, weights[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            self.put(simd, row + r, panel * PANEL + start, sums[r]);
        }
    }

    /// Sums of `row`, those of the outputs from `from` on, to their place.
    #[inline(always)]
    fn put<S: pulp::Simd, const V: usize>(&mut self, simd: S, row: usize, from: usize, sums: [S::f32s; V]) {
        let width = (V * S::F32_LANES).min(self.outputs.saturating_sub(from));
        if width == 0 {
            return;
        }
        let (on_top, clip) = (self.out.into == Into::Sum, self.out.into == Into::Relu);
        let out = self.out.places(row, from, width);
        if width == V * S::F32_LANES {
            for (out, sum) in S::as_mut_simd_f32s(out).0.iter_mut().zip(sums) {
                let sum = if on_top { simd.add_f32s(*out, sum) } else { sum };
                *out = if clip { simd.max_f32s(sum, simd.splat_f32s(0.0)) } else { sum };
            }
            return;
        }
        let mut line = [0f32; PANEL];
        S::as_mut_simd_f32s(&mut line).0.iter_mut().zip(sums).for_each(|(line, sum)| *line = sum);
        for (out, sum) in out.iter_mut().zip(line) {
            let sum = if on_top { *out + sum } else { sum };
            *out = if clip { sum.max(0.0) } else { sum };
        }
    }
}
