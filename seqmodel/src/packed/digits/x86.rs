//! The instructions: vectors (AVX-512) make digits of numbers and numbers of sums, tiles multiply.

use super::{DEPTH, DIGITS, Digits, PANEL, Part, Rounded, Rows, SHIFT, SIDE, Sink, Tile, steps};
use crate::packed::sink::Square;
use crate::packed::tiles::Tiles;
use core::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_fmadd_ps,
    _mm512_mask_blend_epi16, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_ternarylogic_epi32, _mm512_xor_si512,
};
use std::ops::Range;

/// Bits of sizes are in the order of the sizes, with what is not finite behind all others.
#[target_feature(enable = "avx512f")]
#[inline]
fn greater(most: __m512i, numbers: __m512) -> __m512i {
    _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(numbers), _mm512_set1_epi32(i32::MAX)))
}

/// The digits of the steps of four vectors of inputs, `many` of which are 1; see [`place`](super::place) for their order.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn split(numbers: [__m512; 4], many: __m512) -> [__m512i; DIGITS] {
    const ODD: u32 = 0xaaaa_aaaa;
    let (shift, sign) = (_mm512_set1_ps(SHIFT), _mm512_set1_epi32(0x8080_8080_u32.cast_signed()));
    let even = _mm512_set1_epi32(0x00ff_00ff);
    let mut steps = [_mm512_setzero_si512(); 4];
    for at in 0..4 {
        steps[at] = _mm512_cvtps_epi32(_mm512_fmadd_ps(numbers[at], many, shift));
    }
    let [a, b, c, d] = steps;
    // The two lower bytes of two steps beside each other, and the upper ones.
    let low = _mm512_mask_blend_epi16(ODD, a, _mm512_slli_epi32::<16>(b));
    let low_too = _mm512_mask_blend_epi16(ODD, c, _mm512_slli_epi32::<16>(d));
    let high = _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(a), b);
    let high_too = _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(c), d);
    // Even bytes of the first, odd ones of the second.
    let first = _mm512_ternarylogic_epi32::<0xca>(even, high, _mm512_slli_epi16::<8>(high_too));
    let second = _mm512_ternarylogic_epi32::<0xca>(even, _mm512_srli_epi16::<8>(low), low_too);
    let third = _mm512_ternarylogic_epi32::<0xca>(even, low, _mm512_slli_epi16::<8>(low_too));
    [_mm512_xor_si512(first, sign), _mm512_xor_si512(second, sign), _mm512_xor_si512(third, sign)]
}

/// See [`Round`](super::Round).
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn round(rows: Rows, inputs: usize, tiles: &mut [[Tile; DIGITS]], steps_of: &mut [f32]) {
    for (row, step_of) in steps_of.iter_mut().enumerate() {
        let (whole, rest) = rows.data[row * rows.stride..][..inputs].as_chunks::<DEPTH>();
        let mut last = [0.0; DEPTH];
        last[..rest.len()].copy_from_slice(rest);
        let mut most = [_mm512_setzero_si512(); 4];
        for block in whole.iter().chain([&last]) {
            let block: [__m512; 4] = bytemuck::must_cast(*block);
            for at in 0..4 {
                most[at] = greater(most[at], block[at]);
            }
        }
        let most = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
        let (step, many) = steps(f32::from_bits(_mm512_reduce_max_epu32(most)));
        *step_of = step;
        let many = _mm512_set1_ps(many);
        for (block, tiles) in whole.iter().chain([&last]).zip(&mut *tiles) {
            let digits = split(bytemuck::must_cast(*block), many);
            for digit in 0..DIGITS {
                tiles[digit][row] = bytemuck::must_cast(digits[digit]);
            }
        }
    }
}

/// Products of digits that matter.
const PRODUCTS: usize = 6;

/// A line of sums of products: of the first digits; of the first and the second; of the first and the third and of the second
/// ones.
type Line = [[i32; SIDE]; DIGITS];

/// Those of a tile of rows and one of outputs.
#[repr(C, align(64))]
struct Sums([Line; SIDE]);

/// A line in numbers, for outputs of some scales and a row of some step.
#[target_feature(enable = "avx512f")]
#[inline]
fn numbers([a, b, c]: &Line, scales: __m512, step: f32) -> __m512 {
    let [a, b, c]: [__m512i; DIGITS] = [bytemuck::must_cast(*a), bytemuck::must_cast(*b), bytemuck::must_cast(*c)];
    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(c));
    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(65_536.0), sum);
    _mm512_mul_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(step)))
}

/// Rows that go through the tiles. While sums are made, those made before are put in their places.
struct Run<'a> {
    this: &'a Digits,
    rounded: &'a Rounded,
    out: Sink<'a>,
    sums: Sums,
    /// The row and the column that the sums belong to, until they are there.
    waiting: Option<(usize, usize)>,
}

/// A block of inputs by one of weights; what `$put` says is done after each product of digits. Tiles are loaded well before
/// they are multiplied: a core that also works for somebody else does little out of order.
macro_rules! multiply {
    ($tiles:ident, $x:expr, $w:expr, $put:ident) => {
        $tiles.load::<6>($w[0].as_flattened(), DEPTH);
        $tiles.load::<3>($x[0].as_flattened(), DEPTH);
        $tiles.load::<4>($x[1].as_flattened(), DEPTH);
        $tiles.load::<5>($x[2].as_flattened(), DEPTH);
        $tiles.multiply_signed::<0, 3, 6>();
        $put!(0);
        $tiles.multiply_signed::<1, 4, 6>();
        $put!(1);
        $tiles.multiply_signed::<2, 5, 6>();
        $put!(2);
        $tiles.load::<7>($w[1].as_flattened(), DEPTH);
        $tiles.load::<6>($w[2].as_flattened(), DEPTH);
        $tiles.multiply_signed::<1, 3, 7>();
        $put!(3);
        $tiles.multiply_signed::<2, 4, 7>();
        $put!(4);
        $tiles.multiply_signed::<2, 3, 6>();
        $put!(5);
    };
}

impl Run<'_> {
    /// A tile of rows by one of outputs. Lines of the sums before are put in their places between products, `LINES` for each of
    /// the first blocks of inputs.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn tile<const LINES: usize>(&mut self, tiles: &Tiles, outputs: usize, tile: usize) {
        let blocks = self.this.blocks;
        let (weights, rows) = (&self.this.panels[outputs * blocks..][..blocks], &self.rounded.tiles[tile * blocks..]);
        let mut both = rows.iter().zip(weights);
        tiles.clear::<0>();
        tiles.clear::<1>();
        tiles.clear::<2>();
        if blocks > 0
            && let Some((lines, steps, scales, mut places)) = self.square()
        {
            for (first, (x, w)) in (0..SIDE).step_by(LINES).zip(&mut both) {
                macro_rules! put {
                    ($product:literal) => {
                        for at in const { $product * LINES / PRODUCTS..($product + 1) * LINES / PRODUCTS } {
                            places.put(first + at, numbers(&lines[first + at], scales, steps[first + at]));
                        }
                    };
                }
                multiply!(tiles, x, w, put);
            }
            self.waiting = None;
        } else {
            self.finish();
        }
        for (x, w) in both {
            macro_rules! nothing {
                ($product:literal) => {};
            }
            multiply!(tiles, x, w, nothing);
        }
        let sums = self.sums.0.as_flattened_mut().as_flattened_mut();
        tiles.store::<0, _>(sums, DIGITS * SIDE);
        tiles.store::<1, _>(&mut sums[SIDE..], DIGITS * SIDE);
        tiles.store::<2, _>(&mut sums[2 * SIDE..], DIGITS * SIDE);
        self.waiting = Some((tile * SIDE, outputs * SIDE));
    }

    /// All lines that wait, if a whole tile does: with their steps and scales, and their places.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn square(&mut self) -> Option<(&[Line; SIDE], &[f32; SIDE], __m512, Square<'_, SIDE>)> {
        let (row, column) = self.waiting?;
        let (steps, scales) =
            (self.rounded.steps[row..].first_chunk()?, self.this.scales[column..].first_chunk::<SIDE>()?);
        let places = self.out.block(row, SIDE, column, self.this.outputs).square()?;
        Some((&self.sums.0, steps, bytemuck::must_cast(*scales), places))
    }

    /// Puts what waits in its place.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn finish(&mut self) {
        let Some((row, column)) = self.waiting.take() else { return };
        let steps = &self.rounded.steps[row..];
        let Some(scales) = self.this.scales[column..].first_chunk::<SIDE>() else { return };
        let mut places = self.out.block(row, steps.len().min(SIDE), column, self.this.outputs);
        for (line, step) in self.sums.0.iter().zip(steps) {
            places.put(numbers(line, bytemuck::must_cast(*scales), *step));
        }
    }

    /// All tiles of a part.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn tiles<const LINES: usize>(&mut self, tiles: &Tiles, panels: Range<usize>, rows: Range<usize>) {
        let this = self.this;
        let outputs = |panels: usize| (panels * PANEL / SIDE).min(this.outputs.div_ceil(SIDE));
        // Those of a panel meet a tile of rows one after the other, while it is near.
        for panel in panels {
            for tile in rows.clone() {
                for outputs in outputs(panel)..outputs(panel + 1) {
                    self.tile::<LINES>(tiles, outputs, tile);
                }
            }
        }
        self.finish();
    }
}

/// See [`Multiply`](super::Multiply). A tile of rows belongs to the part that its first row belongs to.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn multiply(this: &Digits, part: &Part, rounded: &Rounded, out: Sink) {
    let Some(tiles) = Tiles::take() else { return };
    let (panels, rows) = (part.panels.clone(), part.rows.start.div_ceil(SIDE)..part.rows.end.div_ceil(SIDE));
    let sums = const { Sums([[[0; SIDE]; DIGITS]; SIDE]) };
    let mut run = Run { this, rounded, out, sums, waiting: None };
    match this.blocks {
        0 | 1 => run.tiles::<SIDE>(&tiles, panels, rows),
        2..=5 => run.tiles::<8>(&tiles, panels, rows),
        6..=15 => run.tiles::<4>(&tiles, panels, rows),
        _ => run.tiles::<1>(&tiles, panels, rows),
    }
}
