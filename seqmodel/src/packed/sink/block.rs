//! Places side by side in some rows, for who fills them row by row: they are looked for once.

use super::{Into, Sink, x86::rest};
use crate::packed::tiles::{SIDE, Tiles};
use core::arch::x86_64::{__m512, _mm512_add_ps, _mm512_max_ps, _mm512_setzero_ps};
use std::marker::PhantomData;

/// Numbers that a vector fills.
const WIDTH: usize = 16;

/// Up to `WIDTH` numbers of some rows.
pub(in crate::packed) struct Block<'a> {
    /// Those of the next row.
    next: *mut f32,
    stride: usize,
    /// That are left.
    rows: usize,
    width: usize,
    into: Into,
    of: PhantomData<&'a mut [f32]>,
}

impl Sink<'_> {
    /// Those of `rows` rows from a row and a column on that lie before column `end`.
    #[inline(always)]
    pub(in crate::packed) fn block(&mut self, row: usize, rows: usize, column: usize, end: usize) -> Block<'_> {
        let (from, width) = (row * self.stride + column, end.saturating_sub(column).min(WIDTH));
        let last = if rows == 0 || width == 0 { 0 } else { (rows - 1) * self.stride + width };
        assert!(last == 0 || (from <= self.len && last <= self.len - from), "a product is larger than its place");
        // SAFETY: not behind the end of what the sink was made of.
        #[expect(unsafe_code, reason = "places of several threads, some of each row")]
        let next = unsafe { self.first.add(from.min(self.len)) };
        Block { next, stride: self.stride, rows, width, into: self.into, of: PhantomData }
    }
}

impl<'a> Block<'a> {
    /// The numbers of the next row, as many as there are places.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in crate::packed) fn put(&mut self, numbers: __m512) {
        if self.rows == 0 {
            return;
        }
        // SAFETY: who made the block has seen that they are there; nobody else touches them.
        #[expect(unsafe_code, reason = "places of several threads, some of each row")]
        let places = unsafe { std::slice::from_raw_parts_mut(self.next, self.width) };
        (self.next, self.rows) = (self.next.wrapping_add(self.stride), self.rows - 1);
        match places.first_chunk_mut() {
            Some(places) => place(numbers, places, self.into),
            None => rest(&bytemuck::must_cast::<_, [f32; WIDTH]>(numbers), places, self.into),
        }
    }

    /// Its rows, where it has `ROWS` left with `WIDTH` places each.
    #[inline(always)]
    pub(in crate::packed) fn square<const ROWS: usize>(self) -> Option<Square<'a, ROWS>> {
        (self.rows == ROWS && self.width == WIDTH).then_some(Square(self))
    }
}

/// A block of so many rows of `WIDTH` numbers.
pub(in crate::packed) struct Square<'a, const ROWS: usize>(Block<'a>);

impl<const ROWS: usize> Square<'_, ROWS> {
    /// The numbers of a row.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in crate::packed) fn put(&mut self, row: usize, numbers: __m512) {
        assert!(row < ROWS, "a block has no such row");
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "places of several threads, some of each row")]
        let places = unsafe { &mut *self.0.next.add(row * self.0.stride).cast::<[f32; WIDTH]>() };
        place(numbers, places, self.0.into);
    }
}

impl Square<'_, SIDE> {
    /// All numbers from tile `T`, over what is there whatever the way.
    #[inline(always)]
    pub(in crate::packed) fn store<const T: usize>(&mut self, tiles: &Tiles) {
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "places of several threads, some of each row")]
        unsafe {
            tiles.store_between::<T>(self.0.next, self.0.stride);
        }
    }

    /// Negative numbers become 0.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(in crate::packed) fn rectify(&mut self) {
        for row in 0..SIDE {
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "places of several threads, some of each row")]
            let places = unsafe { &mut *self.0.next.add(row * self.0.stride).cast::<[f32; WIDTH]>() };
            place(bytemuck::must_cast(*places), places, Into::Relu);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn place(numbers: __m512, places: &mut [f32; WIDTH], into: Into) {
    *places = bytemuck::must_cast(match into {
        Into::Place => numbers,
        Into::Relu => _mm512_max_ps(numbers, _mm512_setzero_ps()),
        Into::Sum => _mm512_add_ps(bytemuck::must_cast(*places), numbers),
    });
}
