//! Matrix products in bytes: weights and rows in 8 bits, sums exact in 32, by the instructions that processors have for it:
//! those for vectors (VNNI) do four times the work of their kin in 32 bits, those for tiles (AMX) eight times that.
//!
//! A row is rounded to steps of its greatest size over 127, a weight to steps of its output's. A row's bytes are shifted by
//! 128, since the instructions want them without a sign; what that adds, 128 times the sum of an output's weights, is taken
//! away before. Where there are no such instructions, [`round`] and products in 32 bits give the same up to rounding.

use super::aligned::Aligned;
use super::crew::Team;
use super::matrix::{PANEL, Rows};
use super::product::Part;
use super::sink::Sink;
use crate::nn::vectorized;
use std::cell::RefCell;

/// Fewest rows of a part of a product: two tiles.
const ROWS: usize = 32;

/// Inputs that one instruction takes together.
const GROUP: usize = 4;

/// Weights (outputs, inputs) in bytes.
#[derive(Debug, Clone)]
pub(super) struct Bytes {
    outputs: usize,
    /// Groups of inputs.
    groups: usize,
    /// (outputs / `PANEL`, groups, `PANEL`, `GROUP`), zeros behind the last output and input.
    panels: Aligned<Line>,
    /// What a weight of 1 stands for, output by output, and what its sums start from: -128 times the sum of its weights.
    scales: Vec<f32>,
    starts: Vec<i32>,
}

/// Weights of a group of inputs for the outputs of a panel.
type Line = [i8; PANEL * GROUP];

/// Rows in bytes.
#[derive(Debug, Default)]
struct Rounded {
    /// (rows, groups, `GROUP`), shifted by 128.
    bytes: Aligned<[u8; GROUP]>,
    /// What a step of each row stands for.
    steps: Vec<f32>,
}

thread_local! {
    static ROUNDED: RefCell<Rounded> = RefCell::default();
}

/// What a step of a row stands for, and how many steps 1 is. Not finite where the row is not.
#[inline(always)]
fn steps(row: &[f32]) -> (f32, f32) {
    // Bits of sizes are in the order of the sizes, with what is not finite behind all others.
    let size = |x: f32| x.to_bits() & !(1 << 31);
    let most = f32::from_bits(row.iter().map(|x| size(*x)).fold(0, u32::max));
    (most / 127.0, if most > 0.0 { 127.0 / most } else { 0.0 })
}

/// Adding this rounds to a whole number, which is then in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Rows as they are after they were bytes: (rows, inputs).
#[inline(always)]
pub(super) fn round(rows: Rows, inputs: usize, rounded: &mut Vec<f32>) {
    rounded.resize(rows.count * inputs, 0.0);
    for (row, rounded) in rounded.chunks_exact_mut(inputs.max(1)).enumerate() {
        let row = &rows.data[row * rows.stride..][..inputs];
        let (step, many) = steps(row);
        rounded.iter_mut().zip(row).for_each(|(r, x)| *r = (x * many + ROUND - ROUND) * step);
    }
}

impl Bytes {
    /// Whether this processor has the instructions.
    pub(super) fn fast() -> bool {
        kernel().is_some()
    }

    /// Of weights in bytes, panel by panel (outputs / `PANEL`, inputs, `PANEL`), and what 1 stands for at each output.
    pub(super) fn new(outputs: usize, inputs: usize, bytes: &[i8], scales: Vec<f32>) -> Self {
        let groups = inputs.div_ceil(GROUP);
        let mut panels = Aligned::default();
        let mut starts = vec![0; scales.len()];
        for (panel, bytes) in bytes.chunks_exact((inputs * PANEL).max(1)).enumerate() {
            for group in bytes.chunks(GROUP * PANEL) {
                let mut line = [0; PANEL * GROUP];
                for (at, byte) in group.iter().enumerate() {
                    line[at % PANEL * GROUP + at / PANEL] = *byte;
                    starts[panel * PANEL + at % PANEL] -= 128 * i32::from(*byte);
                }
                panels.extend_from_slice(&[line]);
            }
        }
        Self { outputs, groups, panels, scales, starts }
    }

    /// As [`Packed::product`](super::matrix::Packed::product). Only where [`Bytes::fast`].
    pub(super) fn product(&self, rows: Rows, inputs: usize, out: &Sink, team: &Team) {
        let Some(kernel) = kernel() else { return };
        ROUNDED.with_borrow_mut(|rounded| {
            vectorized!(rounded.fill(rows, inputs, self.groups));
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
    /// For whole tiles of rows from any row on: what lies behind the last one is computed with and never read out.
    fn make_room(&mut self, rows: usize, groups: usize) {
        self.bytes.make_room((rows + 15) * groups);
        self.steps.resize(self.steps.len().max(rows), 0.0);
    }

    #[inline(always)]
    fn fill(&mut self, rows: Rows, inputs: usize, groups: usize) {
        self.make_room(rows.count, groups);
        for row in 0..rows.count {
            let numbers = &rows.data[row * rows.stride..][..inputs];
            let (step, many) = steps(numbers);
            self.steps[row] = step;
            let byte = |x: f32| (x * many + ROUND).to_bits() as u8 ^ 128;
            let bytes = self.bytes[row * groups..][..groups].as_flattened_mut();
            let (bytes, behind) = bytes.split_at_mut(inputs);
            bytes.iter_mut().zip(numbers).for_each(|(place, x)| *place = byte(*x));
            behind.fill(128);
        }
    }
}

type Kernel = unsafe fn(&Bytes, &Part, &Rounded, Sink);

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Option<Kernel> {
    None
}

#[cfg(target_arch = "x86_64")]
fn kernel() -> Option<Kernel> {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
    {
        #[cfg(target_os = "linux")]
        if super::tiles::ready() {
            return Some(x86::tiled);
        }
        return Some(x86::wide);
    }
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni")).then_some(x86::narrow as Kernel)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Bytes, GROUP, PANEL, Part, Rounded, Sink};
    use crate::packed::product::{prefetch, turns};
    use crate::packed::sink::x86 as sink;
    use core::arch::x86_64::{
        __m256, __m256i, __m512, __m512i, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_mul_ps,
        _mm256_set1_epi32, _mm256_set1_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_mul_ps, _mm512_set1_epi32,
        _mm512_set1_ps,
    };

    /// Two vectors of sums of `row`, those of the outputs from `from` on, to their places.
    macro_rules! put {
        ($put:ident, $into:ident, $features:literal, [$sums:ty, $vector:ty, $lanes:literal],
         $convert:ident, $multiply:ident, $splat:ident) => {
            #[target_feature(enable = $features)]
            #[inline]
            fn $put(this: &Bytes, row: usize, from: usize, step: f32, sums: [$sums; 2], out: &mut Sink) {
                const WIDTH: usize = 2 * $lanes;
                let Some(scales) = this.scales.get(from..).and_then(<[f32]>::first_chunk::<WIDTH>) else { return };
                let (scales, step): ([$vector; 2], _) = (bytemuck::must_cast(*scales), $splat(step));
                let low = $multiply($convert(sums[0]), $multiply(scales[0], step));
                let high = $multiply($convert(sums[1]), $multiply(scales[1], step));
                sink::$into(out, row, from, this.outputs, [low, high]);
            }
        };
    }
    put!(put_wide, wide, "avx512f", [__m512i, __m512, 16], _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_set1_ps);
    put!(put_narrow, narrow, "avx2", [__m256i, __m256, 8], _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_set1_ps);

    /// See the macro of the same name for numbers in 32 bits: a name for each row, two vectors of a panel from the
    /// `$start`-th on.
    macro_rules! tile {
        ($self:ident, $rounded:ident, $out:ident, $panel:ident, $start:expr, $turn:ident,
         [$vector:ty, $splat:ident, $dot:ident, $put:ident, $lanes:literal], $($name:ident)+) => {{
            let groups = $self.groups;
            let weights = &$self.panels[$panel * groups..][..groups];
            let mut row = $turn.first..;
            let (starts, _) = $self.starts[$panel * PANEL..][..PANEL].as_chunks::<$lanes>();
            $(
                let bytes = &$rounded.bytes[row.next().unwrap_or(0) * groups..][..groups];
                let low: $vector = bytemuck::must_cast(starts[$start]);
                let high: $vector = bytemuck::must_cast(starts[$start + 1]);
                let mut $name = (bytes, low, high);
            )+
            let step = (PANEL * GROUP).div_ceil($turn.of);
            let mut ahead = weights.as_ptr_range().end.cast::<u8>().wrapping_add(step * groups * $turn.number);
            for (group, weights) in weights.iter().enumerate() {
                prefetch(ahead);
                prefetch(ahead.wrapping_add(64));
                ahead = ahead.wrapping_add(step);
                let (vectors, _) = weights.as_chunks::<{ $lanes * GROUP }>();
                let low: $vector = bytemuck::must_cast(vectors[$start]);
                let high: $vector = bytemuck::must_cast(vectors[$start + 1]);
                $(
                    let x = $splat(i32::from_ne_bytes($name.0[group]));
                    $name.1 = $dot($name.1, x, low);
                    $name.2 = $dot($name.2, x, high);
                )+
            }
            let mut row = $turn.first..;
            $(
                let (at, sums) = (row.next().unwrap_or(0), [$name.1, $name.2]);
                $put($self, at, $panel * PANEL + $start * $lanes, $rounded.steps[at], sums, &mut $out);
            )+
        }};
    }

    macro_rules! wide {
        ($self:ident, $rounded:ident, $out:ident, $panel:ident, $turn:ident, $($name:ident)+) => {
            tile!($self, $rounded, $out, $panel, 0, $turn,
                [__m512i, _mm512_set1_epi32, _mm512_dpbusd_epi32, put_wide, 16], $($name)+)
        };
    }

    macro_rules! narrow {
        ($self:ident, $rounded:ident, $out:ident, $panel:ident, $start:ident, $turn:ident, $($name:ident)+) => {
            tile!($self, $rounded, $out, $panel, $start, $turn,
                [__m256i, _mm256_set1_epi32, _mm256_dpbusd_avx_epi32, put_narrow, 8], $($name)+)
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn wide(this: &Bytes, part: &Part, rounded: &Rounded, mut out: Sink) {
        for panel in part.panels.clone() {
            for turn in turns(&part.rows, 12) {
                match turn.count {
                    12 => wide!(this, rounded, out, panel, turn, a b c d e f g h i j k l),
                    11 => wide!(this, rounded, out, panel, turn, a b c d e f g h i j k),
                    10 => wide!(this, rounded, out, panel, turn, a b c d e f g h i j),
                    9 => wide!(this, rounded, out, panel, turn, a b c d e f g h i),
                    8 => wide!(this, rounded, out, panel, turn, a b c d e f g h),
                    7 => wide!(this, rounded, out, panel, turn, a b c d e f g),
                    6 => wide!(this, rounded, out, panel, turn, a b c d e f),
                    5 => wide!(this, rounded, out, panel, turn, a b c d e),
                    4 => wide!(this, rounded, out, panel, turn, a b c d),
                    3 => wide!(this, rounded, out, panel, turn, a b c),
                    2 => wide!(this, rounded, out, panel, turn, a b),
                    _ => wide!(this, rounded, out, panel, turn, a),
                }
            }
        }
    }

    /// Two tiles of rows by the two of a panel at a time; what is left of the inputs, and fewer rows than a tile has, by
    /// vectors.
    #[cfg(target_os = "linux")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn tiled(this: &Bytes, part: &Part, rounded: &Rounded, mut out: Sink) {
        use crate::packed::tiles::{DEPTH, Lines, SIDE, Tiles};
        use core::arch::x86_64::_mm512_add_epi32;

        let (groups, blocks) = (this.groups, this.groups * GROUP / DEPTH);
        if part.rows.len() < SIDE || blocks == 0 {
            return wide(this, part, rounded, out);
        }
        let Some(tiles) = Tiles::take() else { return wide(this, part, rounded, out) };
        let mut sums = [Lines::<i32>::default(), Lines::default()];
        for panel in part.panels.clone() {
            let weights = &this.panels[panel * groups..][..groups];
            let outputs: &[u8] = bytemuck::cast_slice(weights);
            for first in part.rows.clone().step_by(2 * SIDE) {
                let two = part.rows.end - first > SIDE;
                let bytes = rounded.bytes[first * groups..].as_flattened();
                tiles.clear::<0>();
                tiles.clear::<1>();
                tiles.clear::<2>();
                tiles.clear::<3>();
                for block in 0..blocks {
                    let (inputs, outputs) = (&bytes[block * DEPTH..], &outputs[block * SIDE * PANEL * GROUP..]);
                    tiles.load::<4>(inputs, groups * GROUP);
                    tiles.load::<6>(outputs, PANEL * GROUP);
                    tiles.load::<7>(&outputs[DEPTH..], PANEL * GROUP);
                    tiles.multiply::<0, 4, 6>();
                    tiles.multiply::<1, 4, 7>();
                    if two {
                        tiles.load::<5>(&inputs[SIDE * groups * GROUP..], groups * GROUP);
                        tiles.multiply::<2, 5, 6>();
                        tiles.multiply::<3, 5, 7>();
                    }
                }
                sums[0].fill::<0, 1>(&tiles);
                if two {
                    sums[1].fill::<2, 3>(&tiles);
                }
                let (starts, _) = this.starts[panel * PANEL..][..PANEL].as_chunks::<SIDE>();
                let starts: [__m512i; 2] = [bytemuck::must_cast(starts[0]), bytemuck::must_cast(starts[1])];
                for row in first..part.rows.end.min(first + 2 * SIDE) {
                    let line = sums[(row - first) / SIDE].0[(row - first) % SIDE];
                    let line: [__m512i; 2] = bytemuck::must_cast(line);
                    let mut low = _mm512_add_epi32(starts[0], line[0]);
                    let mut high = _mm512_add_epi32(starts[1], line[1]);
                    for group in blocks * DEPTH / GROUP..groups {
                        let x = _mm512_set1_epi32(i32::from_ne_bytes(rounded.bytes[row * groups + group]));
                        let (vectors, _) = weights[group].as_chunks::<DEPTH>();
                        low = _mm512_dpbusd_epi32(low, x, bytemuck::must_cast(vectors[0]));
                        high = _mm512_dpbusd_epi32(high, x, bytemuck::must_cast(vectors[1]));
                    }
                    put_wide(this, row, panel * PANEL, rounded.steps[row], [low, high], &mut out);
                }
            }
        }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn narrow(this: &Bytes, part: &Part, rounded: &Rounded, mut out: Sink) {
        for panel in part.panels.clone() {
            for turn in turns(&part.rows, 6) {
                for start in [0, 2] {
                    match turn.count {
                        6 => narrow!(this, rounded, out, panel, start, turn, a b c d e f),
                        5 => narrow!(this, rounded, out, panel, start, turn, a b c d e),
                        4 => narrow!(this, rounded, out, panel, start, turn, a b c d),
                        3 => narrow!(this, rounded, out, panel, start, turn, a b c),
                        2 => narrow!(this, rounded, out, panel, start, turn, a b),
                        _ => narrow!(this, rounded, out, panel, start, turn, a),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Packed, Precision};
    use super::super::sink::Into;
    use super::*;
    use proptest::prelude::*;

    /// Random weights (outputs, inputs) in bytes, panel by panel, with their scales.
    fn weights(outputs: usize, inputs: usize, number: impl Fn(usize) -> f32) -> (Vec<i8>, Vec<f32>) {
        let padded = outputs.next_multiple_of(PANEL);
        let byte = |at: usize| {
            let output = at / (inputs * PANEL) * PANEL + at % PANEL;
            if output < outputs { (number(at) * 127.0) as i8 } else { 0 }
        };
        ((0..padded * inputs).map(byte).collect(), (0..padded).map(|at| 0.01 + number(at).abs()).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// All processors agree: those that multiply bytes to the bit, the others up to the rounding of sums.
        #[test]
        fn bytes_are_bytes_everywhere(
            count in 0usize..30, inputs in 1usize..300, outputs in 1usize..100, gap in 0usize..3, cut in 0usize..30, seed: u32,
            way in 0u8..3,
        ) {
            let number = |at: usize| f32::from(((at as u32).wrapping_mul(2_654_435_761) ^ seed) as u16) / 32_768.0 - 1.0;
            let (bytes, scales) = weights(outputs, inputs, number);
            let stride = inputs + gap;
            let data: Vec<f32> = (0..count * stride).map(|at| number(at + 7)).collect();
            let rows = Rows { data: &data, stride, count };
            let into = [Into::Place, Into::Relu, Into::Sum][usize::from(way)];
            let before: Vec<f32> = (0..count * (outputs + gap)).map(|at| number(at + 99)).collect();
            let mut expected = before.clone();
            let wide = Packed::of_bytes(outputs, inputs, bytes.clone(), scales.clone());
            wide.product(rows, &mut Sink::new(&mut expected, outputs + gap, into), &Team::alone());
            let packed = Bytes::new(outputs, inputs, &bytes, scales.clone());
            let run = |kernel: Kernel| {
                let mut out = before.clone();
                let mut rounded = Rounded::default();
                rounded.fill(rows, inputs, packed.groups);
                // In two parts, since a part's rows are not all.
                let parts = [0..cut.min(count), cut.min(count)..count];
                for rows in parts {
                    let part = Part { panels: 0..outputs.div_ceil(PANEL), rows };
                    // SAFETY: `kernels` has only those that this processor has.
                    #[expect(unsafe_code, reason = "code for some processors alone")]
                    unsafe {
                        kernel(&packed, &part, &rounded, Sink::new(&mut out, outputs + gap, into));
                    }
                }
                out
            };
            let all: Vec<Vec<f32>> = kernels().map(run).collect();
            for out in &all {
                prop_assert_eq!(out, &all[0]);
                for (at, (out, expected)) in out.iter().zip(&expected).enumerate() {
                    // A millionth of what a sum may pass through; a wrong byte makes some tenths.
                    let most = inputs as f32 * 128.0;
                    prop_assert!((out - expected).abs() <= 1e-6 * most, "{}: {} {}", at, out, expected);
                    prop_assert!(at % (outputs + gap) < outputs || *out == before[at]);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn kernels() -> impl Iterator<Item = Kernel> {
        let wide = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni");
        let narrow = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni");
        let all = [
            wide.then_some(x86::wide as Kernel),
            narrow.then_some(x86::narrow as Kernel),
            #[cfg(target_os = "linux")]
            (wide && crate::packed::tiles::ready()).then_some(x86::tiled as Kernel),
        ];
        all.into_iter().flatten()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn kernels() -> impl Iterator<Item = Kernel> {
        std::iter::empty()
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let packed = Packed::new(5, 20, |output, input| (output + input) as f32).stored_as(Precision::Int8);
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
