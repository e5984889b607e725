//! Matrix products in 32 bits by tiles (AMX), which multiply bytes thirty-two times as fast as vectors multiply numbers: a
//! number becomes three digits of eight bits, and its product with another the six of nine products of digits that matter.
//!
//! A row is rounded to steps of its greatest size over [`MOST`], a weight to steps of its output's: what 32 bits resolve in
//! the greatest numbers. Sums of digits are exact, whatever comes beside them and in which order; what is left out is at most
//! a step of the row times the greatest weight, an input. Vectors round at each input instead, which is about as much: errors
//! are 0.6 to 1.3 times theirs for numbers from a bell, 1.4 to 2.4 times where sizes in a row range over some thousands. No
//! row's result depends on any other row. The scheme, with more digits, is that of Ootomo, Ozaki and Yokota, "DGEMM on integer
//! matrix multiplication unit" (2024).

use super::aligned::Aligned;
use super::crew::Team;
use super::matrix::{self, PANEL, Rows};
use super::product::Part;
use super::sink::Sink;
use crate::nn::vectorized;
use std::cell::RefCell;

/// Digits of a number, the greatest first.
const DIGITS: usize = 3;

/// Steps of the greatest number: a little below what three digits of -128 to 127 can say, since steps are rounded.
const MOST: f32 = 8_355_584.0;

/// Adding this keeps digits from being negative; then 128 is taken from each.
const SHIFT: f32 = 8_421_504.0;

/// Sizes below this are rounded to the steps of this: their own would be too small for 32 bits.
const TINY: f32 = 1e-30;

/// Most inputs: the sums of more products of digits might not fit.
pub(super) const INPUTS: usize = 32_768;

/// Fewest rows of a part of a product: two tiles.
const ROWS: usize = 32;

/// Inputs of a tile.
const DEPTH: usize = 64;

/// Rows and outputs of a tile.
const SIDE: usize = 16;

/// Weights (outputs, inputs) in digits.
#[derive(Debug, Clone, Default)]
pub(super) struct Digits {
    outputs: usize,
    /// Blocks of inputs, each as deep as a tile.
    blocks: usize,
    /// (outputs / `SIDE`, blocks), zeros behind the last input, for whole panels.
    panels: Aligned<[Tile; DIGITS]>,
    /// What a product of the middle digits stands for in a row whose steps stand for 1, output by output.
    scales: Vec<f32>,
}

/// A digit of a block of inputs for `SIDE` rows, or of its groups of four inputs for `SIDE` outputs.
type Tile = [[u8; DEPTH]; SIDE];

/// Rows in digits.
#[derive(Debug, Default)]
struct Rounded {
    /// (rows / `SIDE`, blocks), zeros behind the last input; what lies behind the last row is computed with and never read
    /// out.
    tiles: Aligned<[Tile; DIGITS]>,
    /// What a step of each row stands for.
    steps: Vec<f32>,
}

thread_local! {
    static ROUNDED: RefCell<Rounded> = RefCell::default();
}

/// What a step of numbers of at most this size stands for, and how many steps 1 is. Not finite where they are not.
#[inline(always)]
fn steps(most: f32) -> (f32, f32) {
    let most = if most < TINY { TINY } else { most };
    (most / MOST, MOST / most)
}

/// As a scale of [`Digits`].
#[inline(always)]
fn scale(step: f32) -> f32 {
    step * 65_536.0
}

/// Which group of four inputs of a block an input belongs to, and its place there: what four vectors of inputs give when
/// their digits are put between each other.
#[inline(always)]
fn place(input: usize) -> (usize, usize) {
    (input % (DEPTH / 4), [0, 2, 1, 3][input % DEPTH / (DEPTH / 4)])
}

impl Digits {
    /// Whether this processor has tiles.
    pub(super) fn fast() -> bool {
        kernel().is_some()
    }

    /// Of weights in 32 bits, (outputs / `PANEL`, inputs). Only for up to [`INPUTS`].
    pub(super) fn new(outputs: usize, inputs: usize, weights: &[matrix::Line]) -> Self {
        let mut made = Self::default();
        made.make_room(outputs, inputs);
        let blocks = made.blocks;
        let parts =
            made.panels.chunks_exact_mut((PANEL / SIDE * made.blocks).max(1)).zip(weights.chunks_exact(inputs.max(1)));
        let parts = parts.zip(made.scales.chunks_exact_mut(PANEL));
        vectorized!({
            for ((panel, weights), scales) in parts {
                let mut many = [0f32; PANEL];
                for line in weights {
                    for output in 0..PANEL {
                        many[output] = f32::from_bits(many[output].to_bits().max(line[output].abs().to_bits()));
                    }
                }
                for output in 0..PANEL {
                    let (step, steps) = steps(many[output]);
                    (scales[output], many[output]) = (scale(step), steps);
                }
                for (input, line) in weights.iter().enumerate() {
                    let (group, at) = place(input);
                    let block = input / DEPTH;
                    for output in 0..PANEL {
                        let shifted = line[output].mul_add(many[output], SHIFT).round_ties_even() as u32;
                        for digit in 0..DIGITS {
                            let byte = shifted.to_be_bytes()[1 + digit] ^ 0x80;
                            panel[output / SIDE * blocks + block][digit][group][output % SIDE * 4 + at] = byte;
                        }
                    }
                }
            }
        });
        made
    }

    /// What lies behind the last output is computed with and never read out: it only has to be there.
    fn make_room(&mut self, outputs: usize, inputs: usize) {
        (self.outputs, self.blocks) = (outputs, inputs.div_ceil(DEPTH));
        self.panels.make_room(outputs.div_ceil(PANEL) * PANEL / SIDE * self.blocks);
        self.scales.resize(outputs.next_multiple_of(PANEL), 0.0);
    }

    /// As [`Packed::product`](super::matrix::Packed::product). Only where [`Digits::fast`].
    pub(super) fn product(&self, rows: Rows, inputs: usize, out: &Sink, team: &Team) {
        let Some((_, multiply)) = kernel() else { return };
        Rounded::of(rows, inputs, self.blocks, team, |rounded| {
            let work = rows.count * inputs * self.outputs;
            Part::each(team, (self.outputs.div_ceil(PANEL), rows.count), ROWS, work, |part| {
                // SAFETY: `kernel` has asked the processor whether it has the instructions; parts have places of their own.
                #[expect(unsafe_code, reason = "code for some processors alone, threads write to one matrix")]
                unsafe {
                    multiply(self, &part, rounded, out.share());
                }
            });
        });
    }
}

impl Rounded {
    /// Runs with some rows in digits, made with the help of `team`. Only where [`Digits::fast`].
    fn of(rows: Rows, inputs: usize, blocks: usize, team: &Team, run: impl FnOnce(&Self)) {
        let Some((round, _)) = kernel() else { return };
        ROUNDED.with_borrow_mut(|rounded| {
            rounded.tiles.make_room(rows.count.div_ceil(SIDE) * blocks);
            rounded.steps.resize(rows.count, 0.0);
            // A tile each. To make digits of a number takes as long as some multiplications.
            let parts = rounded.tiles.chunks_mut(blocks.max(1)).zip(rounded.steps.chunks_mut(SIDE)).enumerate();
            team.each_of(parts, 4 * rows.count * inputs, |(tile, (tiles, steps))| {
                let data = &rows.data[tile * SIDE * rows.stride..];
                // SAFETY: `kernel` has asked the processor whether it has the instructions.
                #[expect(unsafe_code, reason = "code for some processors alone")]
                unsafe {
                    round(Rows { data, count: steps.len(), ..rows }, inputs, tiles, steps);
                }
            });
            run(rounded);
        });
    }
}

/// What a processor with tiles does.
type Kernel = (Round, Multiply);

/// The digits and steps of up to `SIDE` rows of so many inputs, into what has room for them.
type Round = unsafe fn(Rows, usize, &mut [[Tile; DIGITS]], &mut [f32]);

/// A part of a product, whose rows are in digits.
type Multiply = unsafe fn(&Digits, &Part, &Rounded, Sink);

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn kernel() -> Option<Kernel> {
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn kernel() -> Option<Kernel> {
    let ready = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && super::tiles::ready();
    ready.then_some((x86::round as Round, x86::multiply as Multiply))
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86;

#[cfg(test)]
mod tests {
    use super::super::matrix::{Packed, Precision};
    use super::super::sink::Into;
    use super::*;
    use proptest::prelude::*;

    /// Numbers of -1 to 1 from their places, some of them halved once or twice.
    fn number(at: usize, seed: u32) -> f32 {
        let bits = (at as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(9).wrapping_mul(2_654_435_761);
        (bits as f32 / 2_147_483_648.0 - 1.0) * 0.5f32.powi((bits % 7 * (bits >> 3) % 3) as i32)
    }

    fn product(weights: &Packed, rows: Rows, before: &[f32], stride: usize, into: Into) -> Vec<f32> {
        let mut out = before.to_vec();
        weights.product(rows, &mut Sink::new(&mut out, stride, into), &Team::alone());
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// As exact as 32 bits are, for all sizes, ways out and parts; a row's result is that of the row alone.
        #[test]
        fn digits_are_numbers(
            count in 1usize..90, inputs in 0usize..300, outputs in 1usize..100, gap in 0usize..3, cut in 0usize..90, seed: u32,
            way in 0u8..3,
        ) {
            let Some((_, multiply)) = kernel() else { return Ok(()) };
            let weight = |o: usize, i: usize| number(7 * o + 1000 * i + 3, seed);
            let stride = inputs + gap;
            let data: Vec<f32> = (0..count * stride).map(|at| number(at + 7, !seed)).collect();
            let rows = Rows { data: &data, stride, count };
            let into = [Into::Place, Into::Relu, Into::Sum][usize::from(way)];
            let before: Vec<f32> = (0..count * (outputs + gap)).map(|at| number(at + 99, seed)).collect();
            let weights = Packed::new(outputs, inputs, weight).stored_as(Precision::F32);
            let out = product(&weights, rows, &before, outputs + gap, into);
            for (at, out) in out.iter().enumerate() {
                let (row, output) = (at / (outputs + gap), at % (outputs + gap));
                if output >= outputs {
                    prop_assert_eq!(*out, before[at]);
                    continue;
                }
                let factors = (0..inputs).map(|i| (f64::from(data[row * stride + i]), f64::from(weight(output, i))));
                let sum: f64 = factors.clone().map(|(x, w)| x * w).sum();
                let want = match into {
                    Into::Place => sum,
                    Into::Relu => sum.max(0.0),
                    Into::Sum => sum + f64::from(before[at]),
                };
                // Half a step of each factor and what is left out, an input; a step is the greatest over 2^23.
                let most = factors.fold((0f64, 0f64), |most, (x, w)| (most.0.max(x.abs()), most.1.max(w.abs())));
                let bound = (most.0 * most.1 * inputs as f64 + want.abs() + sum.abs()) * 0.5f64.powi(22);
                prop_assert!((f64::from(*out) - want).abs() <= bound, "{}: {} {} {}", at, out, want, bound);
            }
            // In two parts, over rows that are not even finite.
            let digits = Digits::new(outputs, inputs, Packed::new(outputs, inputs, weight).panels());
            let mut parted = before.clone();
            Rounded::of(Rows { data: &[f32::NAN; 300], stride: 0, count: count + 20 }, inputs, digits.blocks, &Team::alone(), |_| {});
            Rounded::of(rows, inputs, digits.blocks, &Team::alone(), |rounded| {
                for rows in [0..cut.min(count), cut.min(count)..count] {
                    let part = Part { panels: 0..outputs.div_ceil(PANEL), rows };
                    // SAFETY: the processor has tiles.
                    #[expect(unsafe_code, reason = "code for some processors alone")]
                    unsafe {
                        multiply(&digits, &part, rounded, Sink::new(&mut parted, outputs + gap, into));
                    }
                }
            });
            prop_assert_eq!(&parted, &out);
            let one = cut % count;
            let alone = product(
                &weights,
                Rows { data: &data[one * stride..], stride, count: 1 },
                &before[one * (outputs + gap)..][..outputs + gap],
                outputs + gap,
                into,
            );
            prop_assert_eq!(&alone, &out[one * (outputs + gap)..][..outputs + gap]);
        }

        /// Weights are made by another code than rows, of the same digits.
        #[test]
        fn rows_and_weights_have_the_same_digits(inputs in 1usize..300, seed: u32) {
            if !Digits::fast() {
                return Ok(());
            }
            let numbers: Vec<f32> = (0..PANEL * inputs).map(|at| number(at, seed)).collect();
            let weights = Packed::new(PANEL, inputs, |output, input| numbers[output * inputs + input]);
            let weights = Digits::new(PANEL, inputs, weights.panels());
            let mut same = true;
            Rounded::of(Rows { data: &numbers, stride: inputs, count: PANEL }, inputs, weights.blocks, &Team::alone(), |rows| {
                for (output, input) in (0..PANEL).flat_map(|output| (0..inputs).map(move |input| (output, input))) {
                    let (block, (group, at)) = (input / DEPTH, place(input));
                    for digit in 0..DIGITS {
                        let row = rows.tiles[output / SIDE * weights.blocks + block][digit][output % SIDE][4 * group + at];
                        let weight = weights.panels[output / SIDE * weights.blocks + block][digit][group][output % SIDE * 4 + at];
                        same &= row == weight;
                    }
                    same &= weights.scales[output] == scale(rows.steps[output]);
                }
            });
            prop_assert!(same);
        }
    }

    /// Errors of many sums of numbers from a bell, the greatest ones of digits and of vectors.
    #[test]
    fn digits_are_as_exact_as_vectors() {
        let bell = |at: usize| (0..6).map(|i| number(6 * at + i, 5)).sum::<f32>();
        for inputs in [64, 128, 384, 1024] {
            let weight = |o: usize, i: usize| bell(o * inputs + i);
            let data: Vec<f32> = (0..40 * inputs).map(|at| bell(at + 1_000_000)).collect();
            let rows = Rows { data: &data, stride: inputs, count: 40 };
            let error = |weights: &Packed| {
                let out = product(weights, rows, &[0.0; 40 * 64], 64, Into::Place);
                let errors = out.iter().enumerate().map(|(at, out)| {
                    let factors = (0..inputs).map(|i| (data[at / 64 * inputs + i], weight(at % 64, i)));
                    (f64::from(*out) - factors.map(|(x, w)| f64::from(x) * f64::from(w)).sum::<f64>()).abs()
                });
                errors.fold(0.0, f64::max)
            };
            let vectors = Packed::new(64, inputs, weight);
            let (digits, vectors) = (error(&vectors.clone().stored_as(Precision::F32)), error(&vectors));
            assert!(digits <= 1.5 * vectors, "{inputs} inputs: {digits:.1e}, vectors {vectors:.1e}");
        }
    }

    /// Where all digits are as large as can be, for as many inputs as there may be.
    #[test]
    fn no_sum_is_too_large() {
        for inputs in [INPUTS, INPUTS + 1] {
            // The sums of vectors, which more inputs are left to, round at each of them.
            let tolerance = if inputs > INPUTS { 1e-3 } else { 1e-6 };
            for (x, w) in [(1.0, 1.0), (1.0, -1.0), (0.503_921_6, 0.503_921_6), (f32::MAX / 40_000.0, 1.0)] {
                // One that is larger makes the digits of the others all -128 or so.
                let of = |number: f32| {
                    move |input: usize| if input == 0 { number.signum() * number.abs().max(1.0) } else { number }
                };
                let weights = Packed::new(3, inputs, |_, input| of(w)(input)).stored_as(Precision::F32);
                let data: Vec<f32> = (0..inputs).map(of(x)).collect();
                let out = product(&weights, Rows { data: &data, stride: inputs, count: 1 }, &[0.0; 3], 3, Into::Place);
                let want: f64 = (0..inputs).map(|i| f64::from(of(x)(i)) * f64::from(of(w)(i))).sum();
                assert!(
                    out.iter().all(|out| (f64::from(*out) / want - 1.0).abs() < tolerance),
                    "{inputs}, {x} {w}: {out:?} {want}"
                );
            }
        }
    }

    #[test]
    fn what_is_small_or_nothing_stays_so() {
        let weights = Packed::new(5, 70, |output, input| (output + input) as f32 - 30.0).stored_as(Precision::F32);
        for size in [0.0, 1e-45, 1e-38, 1e-33, 1e-29, 1e-20] {
            let data: Vec<f32> = (0..70).map(|i| size * number(i, 1)).collect();
            let out = product(&weights, Rows { data: &data, stride: 70, count: 1 }, &[0.0; 5], 5, Into::Place);
            for (output, out) in out.iter().enumerate() {
                let want: f64 = (0..70).map(|i| f64::from(data[i]) * f64::from(output as f32 + i as f32 - 30.0)).sum();
                assert!(
                    (f64::from(*out) - want).abs() <= 1e-6 * f64::from(size.max(TINY)) * 2000.0,
                    "{size}: {out} {want}"
                );
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let packed = Packed::new(5, 70, |output, input| (output + input) as f32).stored_as(Precision::F32);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 17, 69] {
                let mut data = vec![0.5; 210];
                data[70 + place] = bad;
                let out = product(&packed, Rows { data: &data, stride: 70, count: 3 }, &[0.0; 15], 5, Into::Place);
                let finite: Vec<bool> = out.iter().map(|x| x.is_finite()).collect();
                assert_eq!(finite, [[true; 5], [false; 5], [true; 5]].concat(), "{bad} at {place}: {out:?}");
            }
        }
    }
}
