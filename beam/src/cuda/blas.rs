//! Large products by cuBLASLt instead of `matmul.cu`, where somebody asks for it: it is another's code, which the emulator
//! cannot run, and it is not known yet where it is faster.
//!
//! cuBLASLt counts columns first. What it takes for a matrix is our transpose, so `C = A B^T` becomes `C' = B A'` of what
//! it sees, and a side whose inputs lie next to each other is one that it must turn around.

use super::kernels::Numbers;
use super::libraries::find_cublaslt;
use super::train::{MatmulArgs, ON_TOP};
use crate::{Error, Result};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtHandle_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Desc, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasStatus_t, cudaDataType_t,
};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Fewest multiplications that are worth a call.
const LARGE: u64 = 1 << 24;

/// Bytes that a product may use beside its matrices.
pub(super) const WORKSPACE: usize = 32 << 20;

/// The library, and what it was asked before.
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Shape, Plan>>,
}

/// A matrix as cuBLASLt sees it: columns `ld` numbers apart, taken as it is or turned around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Side {
    rows: u32,
    cols: u32,
    ld: u32,
    turned: bool,
}

/// All that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    numbers: Numbers,
    left: Side,
    right: Side,
    out: Side,
    /// Powers of two that the addresses of both sides and the result are multiples of.
    aligned: [u32; 3],
}

/// What cuBLASLt made of a shape; stays for the life of the process.
#[derive(Clone, Copy)]
struct Plan {
    desc: cublasLtMatmulDesc_t,
    left: cublasLtMatrixLayout_t,
    right: cublasLtMatrixLayout_t,
    out: cublasLtMatrixLayout_t,
    choice: cublasLtMatmulHeuristicResult_t,
}

fn check(code: cublasStatus_t, call: &'static str) -> Result<()> {
    match code {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        code => Err(Error::device(call, format!("{code:?}"))),
    }
}

/// Calls cuBLASLt and turns what it says into a result.
macro_rules! blas {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the library was found; handles were made by it and are never destroyed, pointers live through the call.
        #[expect(unsafe_code, reason = "a call of cuBLASLt")]
        let code = unsafe { sys::$function($($argument),*) };
        check(code, stringify!($function))
    }};
}

/// The two sides of a product in their order there, and the result.
fn sides(args: &MatmulArgs) -> Option<[Side; 3]> {
    let side = |count: u32, row: u32, col: u32| match (row, col) {
        (_, 1) => Some(Side { rows: args.k, cols: count, ld: row, turned: false }),
        (1, _) => Some(Side { rows: count, cols: args.k, ld: col, turned: true }),
        _ => None,
    };
    let fits = |side: &Side| side.ld >= side.rows;
    let (a, b) = (side(args.m, args.a_row, args.a_col)?, side(args.n, args.b_row, args.b_col)?);
    let out = Side { rows: args.n, cols: args.m, ld: args.ldc, turned: false };
    // The left side is asked for with its outputs first, so it is turned where ours has its inputs first.
    let left = Side { turned: !b.turned, ..b };
    [left, a, out].iter().all(fits).then_some([left, a, out])
}

impl Blas {
    /// The library in `folder` or on the loader's path. `workspace` gives [`WORKSPACE`] bytes of the device, once the library
    /// is there.
    ///
    /// # Errors
    /// It is not there, or does not start, or there is no room.
    pub(super) fn open(folder: Option<&Path>, workspace: impl FnOnce() -> Result<u64>) -> Result<Self> {
        find_cublaslt(folder).map_err(|reason| Error::device("cuBLASLt", reason))?;
        let mut handle = std::ptr::null_mut();
        blas!(cublasLtCreate(&raw mut handle))?;
        Ok(Self { handle, workspace: workspace()?, plans: Mutex::default() })
    }

    /// Computes a product on `stream`; `false` where it is better left to the kernel.
    pub(super) fn product(&self, numbers: Numbers, args: &MatmulArgs, stream: *mut c_void) -> Result<bool> {
        let work = u64::from(args.m) * u64::from(args.n) * u64::from(args.k);
        let Some([left, right, out]) = sides(args).filter(|_| work >= LARGE) else { return Ok(false) };
        let aligned = [args.b, args.a, args.c].map(|address| 1u32 << address.trailing_zeros().min(8));
        let shape = Shape { numbers, left, right, out, aligned };
        let Some(plan) = self.plan(shape)? else { return Ok(false) };
        let (one, beta) = (1f32, if args.flags & ON_TOP == 0 { 0f32 } else { 1f32 });
        let number = |number: &f32| (&raw const *number).cast::<c_void>();
        let at = |address: u64| address as *mut c_void;
        let c = at(args.c);
        blas!(cublasLtMatmul(
            self.handle,
            plan.desc,
            number(&one),
            at(args.b).cast_const(),
            plan.left,
            at(args.a).cast_const(),
            plan.right,
            number(&beta),
            c.cast_const(),
            plan.out,
            c,
            plan.out,
            &raw const plan.choice.algo,
            at(self.workspace),
            WORKSPACE,
            stream.cast(),
        ))?;
        Ok(true)
    }

    /// How to compute products of a shape; `None` where cuBLASLt has no way.
    fn plan(&self, shape: Shape) -> Result<Option<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok((plan.choice.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(*plan));
        }
        let kind = cudaDataType_t::CUDA_R_32F;
        // Numbers in memory have 32 bits either way; bfloat16 is what they become on their way to the tensor cores.
        let compute = match shape.numbers {
            Numbers::F32 => Compute::CUBLAS_COMPUTE_32F,
            Numbers::Bf16 => Compute::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        let mut desc = std::ptr::null_mut();
        blas!(cublasLtMatmulDescCreate(&raw mut desc, compute, kind))?;
        for (side, attribute) in
            [(shape.left, Desc::CUBLASLT_MATMUL_DESC_TRANSA), (shape.right, Desc::CUBLASLT_MATMUL_DESC_TRANSB)]
        {
            // CUBLAS_OP_N and CUBLAS_OP_T, which cudarc has with another library.
            let turned = i32::from(side.turned);
            let (at, bytes) = (&raw const turned, size_of_val(&turned));
            blas!(cublasLtMatmulDescSetAttribute(desc, attribute, at.cast(), bytes))?;
        }
        let layout = |side: Side| {
            let mut layout = std::ptr::null_mut();
            let (rows, cols) = (u64::from(side.rows), u64::from(side.cols));
            blas!(cublasLtMatrixLayoutCreate(&raw mut layout, kind, rows, cols, i64::from(side.ld))).map(|()| layout)
        };
        let (left, right, out) = (layout(shape.left)?, layout(shape.right)?, layout(shape.out)?);
        let mut preference = std::ptr::null_mut();
        blas!(cublasLtMatmulPreferenceCreate(&raw mut preference))?;
        let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE;
        blas!(cublasLtMatmulPreferenceSetAttribute(preference, most, (&raw const bytes).cast(), size_of_val(&bytes)))?;
        let [of_left, of_right, of_out] = shape.aligned;
        for (attribute, aligned) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_left),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_right),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out),
        ] {
            let (at, bytes) = (&raw const aligned, size_of_val(&aligned));
            blas!(cublasLtMatmulPreferenceSetAttribute(preference, attribute, at.cast(), bytes))?;
        }
        let mut choice = cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = 0;
        let asked = blas!(cublasLtMatmulAlgoGetHeuristic(
            self.handle,
            desc,
            left,
            right,
            out,
            out,
            preference,
            1,
            &raw mut choice,
            &raw mut found,
        ));
        blas!(cublasLtMatmulPreferenceDestroy(preference))?;
        if asked.is_err() || found == 0 {
            choice.state = cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED;
        }
        let plan = Plan { desc, left, right, out, choice };
        plans.insert(shape, plan);
        Ok((plan.choice.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `op(left) op(right)` as cuBLASLt has it, of numbers in memory.
    fn as_seen(sides: [Side; 3], left: &[f32], right: &[f32], out: &mut [f32]) {
        let [l, r, o] = sides;
        let at = |side: Side, row: u32, col: u32| {
            let (row, col) = if side.turned { (col, row) } else { (row, col) };
            assert!(row < side.rows && col < side.cols);
            (row + col * side.ld) as usize
        };
        let inputs = if l.turned { l.rows } else { l.cols };
        for row in 0..o.rows {
            for col in 0..o.cols {
                let sum = (0..inputs).map(|k| left[at(l, row, k)] * right[at(r, k, col)]).sum();
                out[at(o, row, col)] = sum;
            }
        }
    }

    #[test]
    fn what_it_sees_is_our_product() {
        let (m, n, k) = (5, 7, 3);
        let number = |seed: u32| move |at: u32| ((at * 31 + seed) % 17) as f32 - 8.0;
        for (a_row, a_col) in [(4, 1), (1, 6)] {
            for (b_row, b_col) in [(3, 1), (1, 8)] {
                let shape = MatmulArgs { m, n, k, a_row, a_col, b_row, b_col, ldc: 9, ..MatmulArgs::default() };
                let (a, b): (Vec<f32>, Vec<f32>) = ((0..40).map(number(1)).collect(), (0..40).map(number(5)).collect());
                let mut out = vec![0.0; 45];
                as_seen(sides(&shape).unwrap(), &b, &a, &mut out);
                for i in 0..m {
                    for j in 0..n {
                        let term = |x: u32| a[(i * a_row + x * a_col) as usize] * b[(j * b_row + x * b_col) as usize];
                        assert_eq!(out[(i * 9 + j) as usize], (0..k).map(term).sum::<f32>(), "{shape:?} {i} {j}");
                    }
                }
            }
        }
        // Neither side may have gaps in both directions, and rows may not overlap.
        let apart = MatmulArgs { m, n, k, a_row: 6, a_col: 2, b_row: 3, b_col: 1, ldc: 9, ..MatmulArgs::default() };
        assert!(sides(&apart).is_none() && sides(&MatmulArgs { a_row: 2, a_col: 1, ..apart }).is_none());
    }
}
