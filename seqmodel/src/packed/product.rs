//! The product in 32 bits, by the widest vectors that the processor has.
//!
//! Sums run over the inputs in order, with fused multiply-adds, so that a row's result depends on no other row.

use super::matrix::{Into, Line, PANEL, Rows};

/// Rows times the transpose of panels.
pub(super) struct Product<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Number of the first of `panels`.
    pub(super) first: usize,
    pub(super) panels: &'a [Line],
    pub(super) rows: Rows<'a>,
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) into: Into,
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

/// `count` rows in the fewest turns of at most `most`, as even as can be: a turn with few rows waits for its own sums.
pub(super) fn turns(count: usize, most: usize) -> impl Iterator<Item = Turn> {
    let of = count.div_ceil(most);
    (0..of).map(move |number| {
        let (first, end) = (number * count / of, (number + 1) * count / of);
        Turn { first, count: end - first, number, of }
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
        let mut ahead = weights.as_ptr_range().end.cast::<u8>().wrapping_add(step * weights.len() * $turn.number);
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

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        let panels = self.panels.chunks_exact(self.inputs);
        for panel in (self.first..).zip(panels) {
            // Loops, since closures that are called again and again stay code for every processor.
            match S::F32_LANES {
                16 => {
                    for turn in turns(self.rows.count, 12) {
                        self.wide(simd, panel, turn);
                    }
                }
                8 => {
                    for turn in turns(self.rows.count, 6) {
                        self.narrow(simd, panel, turn);
                    }
                }
                lanes => {
                    for start in (0..PANEL).step_by(lanes) {
                        for row in 0..self.rows.count {
                            self.plain::<S, 1, 1>(simd, panel, row, start);
                        }
                    }
                }
            }
        }
    }
}

impl Product<'_> {
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
        let (on_top, clip) = (self.into == Into::Sum, self.into == Into::Relu);
        let out = &mut self.out[row * self.stride + from..][..width];
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
