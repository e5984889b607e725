//! Matrix products on rayon's threads.
//!
//! They are operations of their own rather than candle's: the same `gemm` kernels, but no second pool of spinning
//! threads that competes for the cores (a step of `rqt` took 2.3 times as long with it).

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

static MULTIPLICATIONS: AtomicU64 = AtomicU64::new(0);

/// Multiplications of all matrix products of this process so far; each comes with an addition.
pub fn multiplications() -> u64 {
    MULTIPLICATIONS.load(Ordering::Relaxed)
}

/// Counts products of `times` times `rows` x `depth` by `depth` x `cols`.
pub(crate) fn count(times: usize, rows: usize, depth: usize, cols: usize) {
    MULTIPLICATIONS.fetch_add((times * rows * depth * cols) as u64, Ordering::Relaxed);
}

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    transposed: bool,
}

/// Products of fewer multiplications stay on the calling thread.
const SMALL: usize = 1 << 19;

impl<'a> Matrix<'a> {
    /// `rows` x `cols` values, row by row.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix holds rows * cols values");
        Self { data, rows, cols, transposed: false }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    /// Distance in memory between neighbours of a row, and of a column.
    fn strides(&self) -> (isize, isize) {
        if self.transposed { (self.rows as isize, 1) } else { (1, self.cols as isize) }
    }

    /// The product, row-major; a large one on all threads.
    #[allow(unsafe_code, reason = "a vector whose values the product has just written")]
    pub(crate) fn times(self, right: Matrix) -> Vec<f32> {
        let count = self.rows * right.cols;
        if self.cols == 0 {
            return vec![0.0; count];
        }
        let work = count * self.cols;
        let threads = if work > SMALL { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
        // Not cleared first: a training step makes gigabytes of results.
        let mut out = Vec::with_capacity(count);
        self.multiply(right, &mut out.spare_capacity_mut()[..count], false, threads);
        // SAFETY: the capacity is at least `count`, and a product over at least one term writes every value.
        unsafe { out.set_len(count) };
        out
    }

    /// The product into `out`, row-major, on the calling thread; added to what `out` holds where `add` says so.
    pub(crate) fn times_into(self, right: Matrix, out: &mut [f32], add: bool) {
        self.multiply(right, as_uninit(out), add, gemm::Parallelism::None);
    }

    /// Reads `out` only to add to it.
    #[allow(unsafe_code, reason = "gemm takes raw pointers")]
    fn multiply(self, right: Matrix, out: &mut [MaybeUninit<f32>], add: bool, threads: gemm::Parallelism) {
        assert_eq!(self.cols, right.rows, "inner sizes agree");
        assert_eq!(out.len(), self.rows * right.cols, "the product has a value for each row and column");
        count(1, self.rows, self.cols, right.cols);
        let ((left_cs, left_rs), (right_cs, right_rs)) = (self.strides(), right.strides());
        // SAFETY: `new` has checked that both inputs hold rows * cols values, strides stay inside them, and `out` holds
        // rows * right.cols values, as checked just above, and is borrowed by nobody else.
        unsafe {
            gemm::gemm(
                self.rows,
                right.cols,
                self.cols,
                out.as_mut_ptr().cast::<f32>(),
                1,
                right.cols as isize,
                add,
                self.data.as_ptr(),
                left_cs,
                left_rs,
                right.data.as_ptr(),
                right_cs,
                right_rs,
                if add { 1.0 } else { 0.0 },
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
    }
}

#[allow(unsafe_code, reason = "forgetting that values are there")]
fn as_uninit(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: same size and alignment, and `multiply` writes only numbers.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) }
}
