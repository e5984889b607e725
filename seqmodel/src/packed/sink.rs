//! Where a product goes.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod block;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use block::Square;

use std::marker::PhantomData;

/// How a product goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// Over what is there.
    Place,
    /// Over what is there, negative numbers as 0.
    Relu,
    /// On top of what is there.
    Sum,
}

/// Rows of numbers that wait for a product, possibly inside wider ones. Threads may share them, each with places of its own,
/// which need not lie side by side: a slice could not be parted like that.
pub(crate) struct Sink<'a> {
    first: *mut f32,
    len: usize,
    /// From row to row.
    stride: usize,
    pub(super) into: Into,
    of: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "places of several threads, some of each row")]
mod shared {
    use super::Sink;

    // SAFETY: it is a slice that can be written to, and shares of it write to places of their own.
    unsafe impl Send for Sink<'_> {}
    // SAFETY: as above; to write takes one that is not shared.
    unsafe impl Sync for Sink<'_> {}

    impl<'a> Sink<'a> {
        /// The same places once more.
        ///
        /// # Safety
        /// As long as several are there, no two of them, and nobody else, may touch the same number.
        pub(crate) unsafe fn share(&self) -> Sink<'a> {
            Sink { ..*self }
        }

        /// `width` numbers of a row from a column on.
        #[inline(always)]
        pub(crate) fn places(&mut self, row: usize, column: usize, width: usize) -> &mut [f32] {
            let from = row * self.stride + column;
            assert!(from <= self.len && width <= self.len - from, "a product is larger than its place");
            // SAFETY: they lie inside of what this was made of, which nobody else touches.
            unsafe { std::slice::from_raw_parts_mut(self.first.add(from), width) }
        }

        /// What lies behind some rows and columns.
        pub(crate) fn behind(self, rows: usize, columns: usize) -> Self {
            let from = (rows * self.stride + columns).min(self.len);
            // SAFETY: not behind its end.
            Self { first: unsafe { self.first.add(from) }, len: self.len - from, ..self }
        }
    }
}

impl<'a> Sink<'a> {
    /// Rows that are `stride` apart.
    pub(crate) fn new(out: &'a mut [f32], stride: usize, into: Into) -> Self {
        Self { first: out.as_mut_ptr(), len: out.len(), stride, into, of: PhantomData }
    }
}

/// Two vectors at a time.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{Into, Sink};
    use core::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_max_ps, _mm256_setzero_ps, _mm512_add_ps, _mm512_max_ps,
        _mm512_setzero_ps,
    };

    macro_rules! put {
        ($put:ident, $features:literal, $vector:ty, $width:literal, $add:ident, $greater:ident, $zero:ident) => {
            /// Numbers of `row` from a column on, those that lie before column `end`.
            #[target_feature(enable = $features)]
            #[inline]
            pub(in crate::packed) fn $put(
                out: &mut Sink,
                row: usize,
                column: usize,
                end: usize,
                [low, high]: [$vector; 2],
            ) {
                let (into, width) = (out.into, end.saturating_sub(column).min($width));
                if width == 0 {
                    return;
                }
                let places = out.places(row, column, width);
                match places.first_chunk_mut::<$width>() {
                    Some(places) => {
                        let before: [$vector; 2] = bytemuck::must_cast(*places);
                        *places = bytemuck::must_cast(match into {
                            Into::Place => [low, high],
                            Into::Relu => [$greater(low, $zero()), $greater(high, $zero())],
                            Into::Sum => [$add(before[0], low), $add(before[1], high)],
                        });
                    }
                    None => rest(&bytemuck::must_cast::<_, [f32; $width]>([low, high]), places, into),
                }
            }
        };
    }
    put!(wide, "avx512f", __m512, 32, _mm512_add_ps, _mm512_max_ps, _mm512_setzero_ps);
    put!(narrow, "avx2", __m256, 16, _mm256_add_ps, _mm256_max_ps, _mm256_setzero_ps);

    /// The last numbers, where they fill no line.
    #[inline(never)]
    pub(super) fn rest(line: &[f32], places: &mut [f32], into: Into) {
        for (place, x) in places.iter_mut().zip(line) {
            *place = match into {
                Into::Place => *x,
                Into::Relu => x.max(0.0),
                Into::Sum => *place + x,
            };
        }
    }
}
