//! Tiles (AMX): one instruction multiplies 16 rows of 64 bytes by 64 bytes of 16 outputs, bytes by bytes or bfloat16 by
//! bfloat16, in the time in which vectors do an eighth of that.
//!
//! The language has no functions for them yet, so that each instruction is written out here.
#![expect(unsafe_code, reason = "instructions for which there are no functions yet")]

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// Rows of a tile, and outputs.
pub(super) const SIDE: usize = 16;

/// Bytes of a row of a tile.
pub(super) const DEPTH: usize = 64;

/// Whether the processor has them and the system lets this process use them.
pub(super) fn ready() -> bool {
    static READY: LazyLock<bool> = LazyLock::new(|| {
        const REQUEST: libc::c_long = 0x1023;
        const TILES: libc::c_long = 18;
        let has = __cpuid_count(7, 0).edx;
        // For halves, tiles themselves, for bytes: all have come together.
        let tiles = [22, 24, 25].iter().all(|bit| has >> bit & 1 == 1);
        // SAFETY: asks for leave for all threads and changes nothing else; a system that does not know the request says no.
        tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) } == 0
    });
    *READY
}

/// What the processor wants to know of its eight tiles.
#[repr(C, align(64))]
struct Shape([u8; 64]);

/// All are of 16 rows of 64 bytes.
static SHAPE: Shape = {
    let mut shape = [0; 64];
    shape[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        shape[16 + 2 * tile] = DEPTH as u8;
        shape[48 + tile] = SIDE as u8;
        tile += 1;
    }
    Shape(shape)
};

/// Sums of 16 rows and 32 outputs, from two tiles.
#[repr(C, align(64))]
pub(super) struct Lines<N>(pub(super) [[N; 2 * SIDE]; SIDE]);

impl<N: Default + Copy> Default for Lines<N> {
    fn default() -> Self {
        Self([[N::default(); 2 * SIDE]; SIDE])
    }
}

impl<N> Lines<N> {
    /// From tiles `T` and `U`.
    #[inline(always)]
    pub(super) fn fill<const T: usize, const U: usize>(&mut self, tiles: &Tiles) {
        let sums = self.0.as_flattened_mut();
        tiles.store::<T, N>(sums, 2 * SIDE);
        tiles.store::<U, N>(&mut sums[SIDE..], 2 * SIDE);
    }
}

/// The tiles of this thread, to be taken once at a time; given back when it goes: a thread that keeps them is slower to put
/// aside.
pub(super) struct Tiles(PhantomData<*const ()>);

#[expect(clippy::unused_self, reason = "who does not hold them may not use them")]
impl Tiles {
    /// None where they are not [`ready`].
    pub(super) fn take() -> Option<Self> {
        let take = || {
            // SAFETY: this process may use them.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, readonly, preserves_flags)) };
            Self(PhantomData)
        };
        ready().then(take)
    }

    /// Tile `T` from 16 rows of 64 bytes that are `stride` apart.
    #[inline(always)]
    pub(super) fn load<const T: usize>(&self, rows: &[u8], stride: usize) {
        assert!(rows.len() >= (SIDE - 1) * stride + DEPTH);
        // SAFETY: the rows are all there.
        unsafe {
            asm!("tileloadd tmm{t}, [{from}+{step}]", t = const T, from = in(reg) rows.as_ptr(), step = in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }

    /// Tile `T` as sums of 16 rows and outputs, to rows that are `stride` sums apart.
    #[inline(always)]
    pub(super) fn store<const T: usize, N>(&self, rows: &mut [N], stride: usize) {
        const { assert!(size_of::<N>() == 4) };
        assert!(rows.len() >= (SIDE - 1) * stride + SIDE);
        // SAFETY: the rows are all there.
        unsafe {
            asm!("tilestored [{to}+{step}], tmm{t}", t = const T, to = in(reg) rows.as_mut_ptr(), step = in(reg) 4 * stride,
                options(nostack, preserves_flags));
        }
    }

    /// Tile `T` as sums of 16 rows and outputs, to rows that are `stride` sums apart and with others between them.
    ///
    /// # Safety
    /// The rows must be there, and nobody else may touch them.
    #[inline(always)]
    pub(super) unsafe fn store_between<const T: usize>(&self, rows: *mut f32, stride: usize) {
        // SAFETY: as is asked for.
        unsafe {
            asm!("tilestored [{to}+{step}], tmm{t}", t = const T, to = in(reg) rows, step = in(reg) 4 * stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    pub(super) fn clear<const T: usize>(&self) {
        // SAFETY: who has the tiles may write to them.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) };
    }

    /// On top of tile `C`: `A`, rows of bytes without a sign, times `B`, whose row has four inputs of each output, with a sign.
    #[inline(always)]
    pub(super) fn multiply<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbusd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    /// As [`Tiles::multiply`], where all bytes have a sign.
    #[inline(always)]
    pub(super) fn multiply_signed<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    /// On top of tile `C`: `A`, rows of bfloat16, times `B`, whose row has two inputs of each output.
    #[inline(always)]
    pub(super) fn multiply_halves<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
