//! Matrix products in bfloat16: weights and rows as the upper half of their bits, sums in 32, by tiles (AMX), which do
//! sixteen times the work of vectors in 32 bits.
//!
//! Where there are no tiles, [`round`] and products in 32 bits give the same up to the rounding of sums, and of numbers below
//! 2^-126, which are 0 for tiles: instructions for vectors of halves took twice as long as those. A row's sums are made in the
//! same way beside any other rows.

use super::aligned::Aligned;
use super::crew::Team;
use super::matrix::{self, PANEL, Rows};
use super::product::Part;
use super::sink::Sink;
use super::transpose::columns;
use crate::nn::vectorized;
use std::cell::RefCell;
use std::ops::Range;

/// Fewest rows of a part of a product: two tiles.
const ROWS: usize = 32;

/// Inputs that one instruction takes together.
const GROUP: usize = 2;

/// Inputs of a tile.
const DEPTH: usize = 32;

/// Rows and outputs of a tile.
const SIDE: usize = 16;

/// Groups of a tile.
const GROUPS: usize = DEPTH / GROUP;

/// Weights (outputs, inputs) in bfloat16.
#[derive(Debug, Clone, Default)]
pub(super) struct Halves {
    outputs: usize,
    /// Blocks of inputs, each as deep as a tile.
    blocks: usize,
    /// (outputs / `PANEL`, blocks, `GROUPS`, `PANEL`, `GROUP`), zeros behind the last input.
    panels: Aligned<Line>,
}

/// Weights of a group of inputs for the outputs of a panel.
type Line = [u16; PANEL * GROUP];

/// A block of inputs of `SIDE` rows.
type Tile = [[u16; DEPTH]; SIDE];

/// Rows in bfloat16.
#[derive(Debug, Default)]
struct Rounded {
    /// How many there are.
    rows: usize,
    /// (rows / `SIDE`, blocks), zeros behind the last input; what lies behind the last row is computed with and never read
    /// out.
    tiles: Aligned<Tile>,
}

thread_local! {
    static ROUNDED: RefCell<Rounded> = RefCell::default();
    /// Rows that become columns.
    static ROW: RefCell<Aligned<[u16; DEPTH]>> = RefCell::default();
}

/// Rounded to nearest even.
#[inline(always)]
pub(super) fn half(number: f32) -> u16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // What is no number stays none, whichever of its bits say so.
    (if number.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// Numbers in bfloat16, zeros behind the last.
#[inline(always)]
fn halve(numbers: &[f32], halves: &mut [u16]) {
    let (halves, behind) = halves.split_at_mut(numbers.len());
    for at in 0..numbers.len() {
        halves[at] = half(numbers[at]);
    }
    behind.fill(0);
}

/// Weights of two inputs.
#[inline(always)]
fn pairs(first: matrix::Line, second: matrix::Line) -> Line {
    let mut pairs = [0; PANEL];
    for at in 0..PANEL {
        pairs[at] = u32::from(half(first[at])) | u32::from(half(second[at])) << 16;
    }
    bytemuck::must_cast::<[u32; PANEL], _>(pairs)
}

/// Those of a column for the outputs of a panel.
#[inline(always)]
fn numbers(columns: Rows, input: usize, outputs: &Range<usize>) -> matrix::Line {
    let mut numbers = [0.0; PANEL];
    if input < columns.count {
        let from = &columns.data[input * columns.stride + outputs.start..];
        // A line of known length is a few vectors, any other a call.
        match from.first_chunk() {
            Some(all) if outputs.len() == PANEL => numbers = *all,
            _ => numbers[..outputs.len()].copy_from_slice(&from[..outputs.len()]),
        }
    }
    numbers
}

/// Rows as they are after they were halves: (rows, inputs).
#[inline(always)]
pub(super) fn round(rows: Rows, inputs: usize, rounded: &mut Vec<f32>) {
    rounded.resize(rows.count * inputs, 0.0);
    for (row, rounded) in rounded.chunks_exact_mut(inputs.max(1)).enumerate() {
        let row = &rows.data[row * rows.stride..][..inputs];
        rounded.iter_mut().zip(row).for_each(|(r, x)| *r = f32::from_bits(u32::from(half(*x)) << 16));
    }
}

impl Halves {
    /// Whether this processor has tiles.
    pub(super) fn fast() -> bool {
        kernel().is_some()
    }

    /// Of weights in 32 bits, (outputs / `PANEL`, inputs).
    pub(super) fn new(outputs: usize, inputs: usize, weights: &[matrix::Line]) -> Self {
        let mut halves = Self::default();
        halves.make_room(outputs, inputs);
        let panels = halves.panels.chunks_exact_mut((halves.blocks * GROUPS).max(1));
        for (lines, weights) in panels.zip(weights.chunks_exact(inputs.max(1))) {
            for (line, group) in lines.iter_mut().zip(weights.chunks(GROUP)) {
                *line = pairs(group[0], group.get(1).copied().unwrap_or_default());
            }
        }
        halves
    }

    /// From `rows`, one an output, in the memory of what was here before.
    pub(super) fn fill_rows(&mut self, rows: Rows, inputs: usize) {
        self.make_room(rows.count, inputs);
        let groups = self.blocks * GROUPS;
        ROW.with_borrow_mut(|row| {
            row.make_room(rows.count * self.blocks);
            let halves = row.chunks_exact_mut(self.blocks.max(1));
            vectorized!({
                for (at, halves) in halves.enumerate() {
                    halve(&rows.data[at * rows.stride..][..inputs], halves.as_flattened_mut());
                }
            });
            // Two halves move as one number.
            let pairs: &[f32] = bytemuck::cast_slice(row);
            let panels: &mut [matrix::Line] = bytemuck::cast_slice_mut(&mut self.panels);
            for (panel, lines) in panels.chunks_exact_mut(groups.max(1)).enumerate() {
                let first = panel * PANEL;
                columns(lines, (rows.count - first).min(PANEL), |output| &pairs[(first + output) * groups..][..groups]);
            }
        });
    }

    /// From `columns`, one an input, in the memory of what was here before.
    pub(super) fn fill_columns(&mut self, outputs: usize, columns: Rows) {
        self.make_room(outputs, columns.count);
        let groups = self.blocks * GROUPS;
        let panels = &mut self.panels;
        vectorized!({
            for (panel, lines) in panels.chunks_exact_mut(groups.max(1)).enumerate() {
                let outputs = panel * PANEL..outputs.min((panel + 1) * PANEL);
                for (group, line) in lines.iter_mut().enumerate() {
                    let first = numbers(columns, GROUP * group, &outputs);
                    *line = pairs(first, numbers(columns, GROUP * group + 1, &outputs));
                }
            }
        });
    }

    /// What lies behind the last output is computed with and never read out: it only has to be there.
    fn make_room(&mut self, outputs: usize, inputs: usize) {
        (self.outputs, self.blocks) = (outputs, inputs.div_ceil(DEPTH));
        self.panels.make_room(outputs.div_ceil(PANEL) * self.blocks * GROUPS);
    }

    /// As [`Packed::product`](super::matrix::Packed::product). Only where [`Halves::fast`].
    pub(super) fn product(&self, rows: Rows, inputs: usize, out: &Sink, team: &Team) {
        let Some(kernel) = kernel() else { return };
        ROUNDED.with_borrow_mut(|rounded| {
            vectorized!(rounded.fill(rows, inputs, self.blocks));
            let rounded = &*rounded;
            let work = rows.count * inputs * self.outputs;
            Part::each(team, (self.outputs.div_ceil(PANEL), rows.count), ROWS, work, |part| {
                // SAFETY: `kernel` has asked the processor whether it has the instructions; parts have places of their own.
                #[expect(unsafe_code, reason = "code for some processors alone, threads write to one matrix")]
                unsafe {
                    kernel(self, &part, rounded, out.share());
                }
            });
        });
    }
}

impl Rounded {
    #[inline(always)]
    fn fill(&mut self, rows: Rows, inputs: usize, blocks: usize) {
        self.rows = rows.count;
        self.tiles.make_room(rows.count.div_ceil(SIDE) * blocks);
        for row in 0..rows.count {
            let numbers = &rows.data[row * rows.stride..][..inputs];
            let tiles = &mut self.tiles[row / SIDE * blocks..][..blocks];
            let (whole, rest) = numbers.as_chunks::<DEPTH>();
            for (numbers, tile) in whole.iter().zip(&mut *tiles) {
                halve(numbers, &mut tile[row % SIDE]);
            }
            if let Some(tile) = tiles.get_mut(whole.len()) {
                halve(rest, &mut tile[row % SIDE]);
            }
        }
    }
}

type Kernel = unsafe fn(&Halves, &Part, &Rounded, Sink);

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn kernel() -> Option<Kernel> {
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn kernel() -> Option<Kernel> {
    (is_x86_feature_detected!("avx512f") && super::tiles::ready()).then_some(x86::tiled as Kernel)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use super::{GROUPS, Halves, Line, PANEL, Part, Rounded, SIDE, Sink, Tile};
    use crate::packed::product::prefetch;
    use crate::packed::sink::{Into, Square};
    use crate::packed::tiles::{DEPTH, Tiles};

    /// Sums of a tile.
    #[repr(C, align(64))]
    struct Sums([[f32; SIDE]; SIDE]);

    /// Where a tile of sums belongs: a row, how many follow, and a column, before column `end`.
    #[derive(Clone, Copy)]
    struct Place {
        row: usize,
        rows: usize,
        column: usize,
        end: usize,
    }

    impl Place {
        /// Of the tiles of two times two that begin here.
        fn tile(self, at: usize) -> Self {
            let (below, right) = (at / 2 * SIDE, at % 2 * SIDE);
            let rows = self.rows.saturating_sub(below).min(SIDE);
            Self { row: self.row + below, rows, column: self.column + right, ..self }
        }

        /// All of it, where sums go over what is there: tiles go there as they are.
        #[inline(always)]
        fn square<'a>(self, out: &'a mut Sink) -> Option<Square<'a, SIDE>> {
            let adds = out.into == Into::Sum;
            out.block(self.row, self.rows, self.column, self.end).square().filter(|_| !adds)
        }

        /// Takes tile `T`. Numbers that must not be negative may still be until [`Place::rectify`] is called.
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn take<const T: usize>(self, tiles: &Tiles, out: &mut Sink) {
            if let Some(mut square) = self.square(out) {
                return square.store::<T>(tiles);
            }
            let mut sums = const { Sums([[0.0; SIDE]; SIDE]) };
            tiles.store::<T, _>(sums.0.as_flattened_mut(), SIDE);
            let mut places = out.block(self.row, self.rows, self.column, self.end);
            for line in &sums.0[..self.rows] {
                places.put(bytemuck::must_cast(*line));
            }
        }

        /// Negative numbers become 0, where that is asked for and has not been done.
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn rectify(self, out: &mut Sink) {
            if out.into == Into::Relu
                && let Some(mut square) = self.square(out)
            {
                square.rectify();
            }
        }
    }

    /// Two tiles of rows by the two of a panel at a time, however few the rows are. A tile of rows belongs to the part that its
    /// first row belongs to.
    #[target_feature(enable = "avx512f")]
    pub(super) fn tiled(this: &Halves, part: &Part, rounded: &Rounded, mut out: Sink) {
        let Some(tiles) = Tiles::take() else { return };
        let blocks = this.blocks;
        let (start, end) = (part.rows.start.div_ceil(SIDE), part.rows.end.div_ceil(SIDE));
        let fetched = (2 * SIDE).div_ceil((end - start).div_ceil(2).max(1));
        let mut before: Option<Place> = None;
        for panel in part.panels.clone() {
            let weights: &[[Line; GROUPS]] = this.panels[panel * blocks * GROUPS..][..blocks * GROUPS].as_chunks().0;
            let mut ahead = weights.as_ptr_range().end.cast::<u8>();
            for tile in (start..end).step_by(2) {
                let rows: &[Tile] = &rounded.tiles[tile * blocks..];
                let two = tile + 1 < end;
                tiles.clear::<0>();
                tiles.clear::<1>();
                tiles.clear::<2>();
                tiles.clear::<3>();
                for (block, weights) in weights.iter().enumerate() {
                    for _ in 0..fetched {
                        prefetch(ahead);
                        ahead = ahead.wrapping_add(DEPTH);
                    }
                    let weights: &[u8] = bytemuck::cast_slice(weights);
                    tiles.load::<6>(weights, 2 * DEPTH);
                    tiles.load::<7>(&weights[DEPTH..], 2 * DEPTH);
                    tiles.load::<4>(bytemuck::cast_slice(&rows[block]), DEPTH);
                    if two {
                        tiles.load::<5>(bytemuck::cast_slice(&rows[blocks + block]), DEPTH);
                    }
                    tiles.multiply_halves::<0, 4, 6>();
                    tiles.multiply_halves::<1, 4, 7>();
                    if two {
                        tiles.multiply_halves::<2, 5, 6>();
                        tiles.multiply_halves::<3, 5, 7>();
                    }
                }
                // While the last products are under way.
                if let Some(place) = before {
                    place.tile(0).rectify(&mut out);
                    place.tile(1).rectify(&mut out);
                    place.tile(2).rectify(&mut out);
                    place.tile(3).rectify(&mut out);
                }
                let count = if two { 2 * SIDE } else { SIDE }.min(rounded.rows - tile * SIDE);
                let place = Place { row: tile * SIDE, rows: count, column: panel * PANEL, end: this.outputs };
                place.tile(0).take::<0>(&tiles, &mut out);
                place.tile(1).take::<1>(&tiles, &mut out);
                if two {
                    place.tile(2).take::<2>(&tiles, &mut out);
                    place.tile(3).take::<3>(&tiles, &mut out);
                }
                before = Some(place);
            }
        }
        if let Some(place) = before {
            place.tile(0).rectify(&mut out);
            place.tile(1).rectify(&mut out);
            place.tile(2).rectify(&mut out);
            place.tile(3).rectify(&mut out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Packed, Precision};
    use super::super::sink::Into;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// All processors agree up to the rounding of sums, and rows and columns make the matrix that its numbers make.
        #[test]
        fn halves_are_halves_everywhere(
            count in 0usize..70, inputs in 1usize..300, outputs in 1usize..100, gap in 0usize..3, cut in 0usize..70, seed: u32,
            way in 0u8..3,
        ) {
            let number = |at: usize| f32::from(((at as u32).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let weight = |o: usize, i: usize| number(7 * o + 1000 * i + 3);
            let stride = inputs + gap;
            let data: Vec<f32> = (0..count * stride).map(|at| number(at + 7)).collect();
            let rows = Rows { data: &data, stride, count };
            let into = [Into::Place, Into::Relu, Into::Sum][usize::from(way)];
            let before: Vec<f32> = (0..count * (outputs + gap)).map(|at| number(at + 99)).collect();
            let numbers = Packed::new(outputs, inputs, weight);
            let mut expected = before.clone();
            let sink = &mut Sink::new(&mut expected, outputs + gap, into);
            numbers.clone().narrowed().product(rows, sink, &Team::alone());
            let run = |kernel: Kernel, packed: &Halves, parts: [std::ops::Range<usize>; 2]| {
                let mut out = before.clone();
                // Over rows that are not even finite.
                let mut rounded = Rounded::default();
                rounded.fill(Rows { data: &[f32::NAN; 320], stride: 0, count: count + 20 }, 320, 10);
                rounded.fill(rows, inputs, packed.blocks);
                // In two parts, since a part's rows are not all.
                for rows in parts {
                    let part = Part { panels: 0..outputs.div_ceil(PANEL), rows };
                    // SAFETY: as `product`.
                    #[expect(unsafe_code, reason = "code for some processors alone")]
                    unsafe {
                        kernel(packed, &part, &rounded, Sink::new(&mut out, outputs + gap, into));
                    }
                }
                out
            };
            let by_rows: Vec<f32> = (0..outputs).flat_map(|o| (0..stride).map(move |i| weight(o, i))).collect();
            let by_columns: Vec<f32> = (0..inputs).flat_map(|i| (0..outputs + gap).map(move |o| weight(o, i))).collect();
            // Over something else, which is not even finite.
            let mut other = Halves::default();
            other.fill_rows(Rows { data: &[f32::NAN; 340], stride: 0, count: outputs + 40 }, inputs + 40);
            let (mut rows_filled, mut columns_filled) = (other.clone(), other);
            rows_filled.fill_rows(Rows { data: &by_rows, stride, count: outputs }, inputs);
            columns_filled.fill_columns(outputs, Rows { data: &by_columns, stride: outputs + gap, count: inputs });
            let packed = Halves::new(outputs, inputs, numbers.panels());
            for filled in [&rows_filled, &columns_filled] {
                // Behind the last output may be anything.
                let of_outputs = |halves: &Halves| -> Vec<u16> {
                    let lines = halves.panels.chunks_exact(halves.blocks * GROUPS).enumerate();
                    let lines = lines.flat_map(|(panel, lines)| lines.iter().map(move |line| (panel * PANEL, line)));
                    lines.flat_map(|(first, line)| &line[..GROUP * (outputs - first).min(PANEL)]).copied().collect()
                };
                prop_assert_eq!(of_outputs(filled), of_outputs(&packed));
            }
            let parts = [0..cut.min(count), cut.min(count)..count];
            if let Some(kernel) = kernel() {
                let out = run(kernel, &packed, parts.clone());
                prop_assert_eq!(&run(kernel, &packed, [0..count, count..count]), &out);
                for (at, (out, expected)) in out.iter().zip(&expected).enumerate() {
                    // A millionth of what a sum may pass through; a number that is not rounded makes some thousandths.
                    prop_assert!((out - expected).abs() <= 1e-6 * (1 + inputs) as f32, "{}: {} {}", at, out, expected);
                    prop_assert!(at % (outputs + gap) < outputs || *out == before[at]);
                }
                prop_assert_eq!(&run(kernel, &rows_filled, parts.clone()), &out);
                prop_assert_eq!(&run(kernel, &columns_filled, parts.clone()), &out);
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_to_even() {
        let wide = |half: u16| f32::from_bits(u32::from(half) << 16);
        for (number, expected) in [
            (1.0, 1.0),
            (-1.5, -1.5),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (1.0 + 1.1 / 256.0, 1.0 + 1.0 / 128.0),
            (0.0, 0.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(wide(half(number)), expected, "{number}");
        }
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7fc0_0000] {
            assert!(wide(half(f32::from_bits(bits))).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let packed = Packed::new(5, 20, |output, input| (output + input) as f32).stored_as(Precision::Bf16);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 17] {
                let mut data = vec![0.5; 60];
                data[20 + place] = bad;
                let mut out = vec![0.0; 15];
                let mut sink = Sink::new(&mut out, 5, Into::Place);
                packed.product(Rows { data: &data, stride: 20, count: 3 }, &mut sink, &Team::alone());
                let finite: Vec<bool> = out.iter().map(|x| x.is_finite()).collect();
                assert_eq!(finite, [[true; 5], [false; 5], [true; 5]].concat(), "{bad} at {place}: {out:?}");
            }
        }
    }
}
