//! The instructions: vectors (AVX-512) make digits of numbers and numbers of sums, tiles multiply.

use super::{DEPTH, DIGITS, Digits, PANEL, Part, Rounded, Rows, SHIFT, SIDE, Sink, Tile, steps};
use crate::packed::tiles::Tiles;
use core::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_fmadd_ps,
    _mm512_mask_blend_epi16, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_ternarylogic_epi32, _mm512_xor_si512,
};

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

/// Sums of the products of the first digits; of the first and the second; of the first and the third and of the second ones:
/// those of two tiles each.
#[repr(C, align(64))]
struct Sums([[[i32; SIDE]; 2 * SIDE]; DIGITS]);

/// Rows that go through the tiles. While sums are made, those made before are put in their places.
struct Run<'a> {
    this: &'a Digits,
    rounded: &'a Rounded,
    out: Sink<'a>,
    tiles: Tiles,
    sums: Sums,
    waiting: Waiting,
}

/// Lines of sums that wait for their places.
#[derive(Clone, Copy, Default)]
struct Waiting {
    /// The first, how many follow, and how many are done.
    line: usize,
    count: usize,
    done: usize,
    /// Where they belong.
    row: usize,
    column: usize,
}

/// Tiles times one in tile 6 or 7, on top of the sums in others.
macro_rules! multiply {
    ($tiles:expr, $of:literal, $($tile:expr => $sum:literal),+) => {
        $($tiles.load::<$of>($tile.as_flattened(), DEPTH); $tiles.multiply_signed::<$sum, 6, 7>();)+
    };
}

impl Run<'_> {
    /// Two tiles of rows by one of a panel. No product has to wait for the sums of the one before.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn two(&mut self, panel: usize, half: usize, tile: usize) {
        let blocks = self.this.blocks;
        let each = SIDE.div_ceil(blocks.max(1));
        self.clear();
        for block in 0..blocks {
            let w = &self.this.panels[panel * blocks + block];
            let w = [&w[0][half], &w[1][half], &w[2][half]];
            let (x, y) = (&self.rounded.tiles[tile * blocks + block], &self.rounded.tiles[(tile + 1) * blocks + block]);
            self.tiles.load::<7>(w[2].as_flattened(), DEPTH);
            multiply!(self.tiles, 6, x[0] => 4, y[0] => 5);
            self.tiles.load::<7>(w[1].as_flattened(), DEPTH);
            self.tiles.multiply_signed::<3, 6, 7>();
            multiply!(self.tiles, 6, x[0] => 2, x[1] => 4, y[1] => 5);
            self.put(each);
            self.tiles.load::<7>(w[0].as_flattened(), DEPTH);
            self.tiles.multiply_signed::<3, 6, 7>();
            multiply!(self.tiles, 6, x[1] => 2, x[2] => 4, y[2] => 5, y[0] => 1, x[0] => 0);
            self.put(each);
        }
        self.store();
        let (row, column) = (tile * SIDE, panel * PANEL + half * SIDE);
        self.wait(0, (2 * SIDE).min(self.rounded.steps.len() - row), row, column);
    }

    /// One tile of rows by the two of a panel.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn one(&mut self, panel: usize, tile: usize) {
        let blocks = self.this.blocks;
        let each = SIDE.div_ceil(blocks.max(1));
        self.clear();
        for block in 0..blocks {
            let (w, x) = (&self.this.panels[panel * blocks + block], &self.rounded.tiles[tile * blocks + block]);
            self.tiles.load::<6>(x[0].as_flattened(), DEPTH);
            multiply!(self.tiles, 7, w[2][0] => 4, w[2][1] => 5, w[1][1] => 3, w[1][0] => 2);
            self.tiles.load::<6>(x[1].as_flattened(), DEPTH);
            self.tiles.multiply_signed::<4, 6, 7>();
            multiply!(self.tiles, 7, w[1][1] => 5);
            self.put(each);
            multiply!(self.tiles, 7, w[0][1] => 3, w[0][0] => 2);
            self.tiles.load::<6>(x[2].as_flattened(), DEPTH);
            self.tiles.multiply_signed::<4, 6, 7>();
            multiply!(self.tiles, 7, w[0][1] => 5);
            self.tiles.load::<6>(x[0].as_flattened(), DEPTH);
            self.tiles.multiply_signed::<1, 6, 7>();
            multiply!(self.tiles, 7, w[0][0] => 0);
            self.put(each);
        }
        self.store();
        let (row, column) = (tile * SIDE, panel * PANEL);
        let count = SIDE.min(self.rounded.steps.len() - row);
        self.wait(0, count, row, column);
        self.put(count);
        self.wait(SIDE, count, row, column + SIDE);
    }

    #[inline(always)]
    fn clear(&self) {
        self.tiles.clear::<0>();
        self.tiles.clear::<1>();
        self.tiles.clear::<2>();
        self.tiles.clear::<3>();
        self.tiles.clear::<4>();
        self.tiles.clear::<5>();
    }

    /// Those of the sums before that still wait are put in their places, those in the tiles take theirs.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn store(&mut self) {
        self.put(2 * SIDE);
        let [first, second, third] = &mut self.sums.0;
        self.tiles.store::<0, _>(first.as_flattened_mut(), SIDE);
        self.tiles.store::<1, _>(first[SIDE..].as_flattened_mut(), SIDE);
        self.tiles.store::<2, _>(second.as_flattened_mut(), SIDE);
        self.tiles.store::<3, _>(second[SIDE..].as_flattened_mut(), SIDE);
        self.tiles.store::<4, _>(third.as_flattened_mut(), SIDE);
        self.tiles.store::<5, _>(third[SIDE..].as_flattened_mut(), SIDE);
    }

    /// So many lines of sums wait from one on.
    #[inline(always)]
    fn wait(&mut self, line: usize, count: usize, row: usize, column: usize) {
        self.waiting = Waiting { line, count, done: 0, row, column };
    }

    /// The next lines of the sums that wait, to their places.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn put(&mut self, lines: usize) {
        let Waiting { line, count, done, row, column } = self.waiting;
        let count = lines.min(count - done);
        self.waiting.done += count;
        let (line, row) = (line + done, row + done);
        let [first, second, third] = &self.sums.0;
        let (first, second, third) = (&first[line..][..count], &second[line..][..count], &third[line..][..count]);
        let steps = &self.rounded.steps[row..][..count];
        let Some(scales) = self.this.scales[column..].first_chunk::<SIDE>() else { return };
        let scales: __m512 = bytemuck::must_cast(*scales);
        let (highest, middle) = (_mm512_set1_ps(65_536.0), _mm512_set1_ps(256.0));
        let mut places = self.out.block(row, count, column, self.this.outputs);
        for at in 0..count {
            let [a, b, c]: [__m512i; DIGITS] =
                [bytemuck::must_cast(first[at]), bytemuck::must_cast(second[at]), bytemuck::must_cast(third[at])];
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), middle, _mm512_cvtepi32_ps(c));
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), highest, sum);
            places.put(at, _mm512_mul_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(steps[at]))));
        }
    }
}

/// See [`Multiply`](super::Multiply). A tile of rows belongs to the part that its first row belongs to.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn multiply(this: &Digits, part: &Part, rounded: &Rounded, out: Sink) {
    let Some(tiles) = Tiles::take() else { return };
    let (start, end) = (part.rows.start.div_ceil(SIDE), part.rows.end.div_ceil(SIDE));
    let sums = const { Sums([[[0; SIDE]; 2 * SIDE]; DIGITS]) };
    let mut run = Run { this, rounded, out, tiles, sums, waiting: Waiting::default() };
    for panel in part.panels.clone() {
        for tile in (start..end).step_by(2) {
            if tile + 1 < end {
                run.two(panel, 0, tile);
                run.two(panel, 1, tile);
            } else {
                run.one(panel, tile);
            }
        }
    }
    run.put(2 * SIDE);
}
