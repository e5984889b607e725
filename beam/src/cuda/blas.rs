//! Large products by cuBLASLt instead of `train/matmul.cu` and `product.cu`, where somebody asks for it: it is another's
//! code, which the emulator cannot run, and it is not known yet where it is faster.
//!
//! cuBLASLt counts columns first. What it takes for a matrix is our transpose, so `C = A B^T` becomes `C' = B A'` of what
//! it sees, and a side whose inputs lie next to each other is one that it must turn around.

use super::args::{ADD, FLOATS, HEADS, NORM, ProductArgs, RELU};
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
    /// What is multiplied.
    numbers: Numbers,
    /// What both sides hold in memory, and the result.
    inputs: Numbers,
    outputs: Numbers,
    /// Negative results become 0.
    relu: bool,
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

/// A product that cuBLASLt can be asked for: what it is of, and where its sides and its result lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Product {
    shape: Shape,
    at: [u64; 3],
    on_top: bool,
}

impl Product {
    /// One of `train_matmul`, all parts of its sum at once; `None` where it is small, or lies otherwise.
    pub(super) fn training(numbers: Numbers, args: &MatmulArgs) -> Option<Self> {
        // Numbers in memory have 32 bits either way; bfloat16 is what they become on their way to the tensor cores.
        Self::new(numbers, [Numbers::F32; 2], false, args)
    }

    /// One of `product.cu` with no norm in front and one plain matrix behind; `None` where it is small or another.
    pub(super) fn plain(numbers: Numbers, args: &ProductArgs) -> Option<Self> {
        if args.flags & (NORM | HEADS) > 0 || args.row_ids != 0 || args.split != args.cols {
            return None;
        }
        let left = MatmulArgs { a: args.x, a_row: args.ldx, a_col: 1, m: args.rows, ..MatmulArgs::default() };
        let by = MatmulArgs { b: args.w, b_row: args.ldw, b_col: 1, n: args.cols, k: args.inputs, ..left };
        let flags = if args.flags & ADD > 0 { ON_TOP } else { 0 };
        let into = MatmulArgs { c: args.y0, ldc: args.ld0, flags, ..by };
        let outputs = if args.flags & (ADD | FLOATS) > 0 { Numbers::F32 } else { numbers };
        Self::new(numbers, [numbers, outputs], args.flags & RELU > 0, &into)
    }

    fn new(numbers: Numbers, [inputs, outputs]: [Numbers; 2], relu: bool, args: &MatmulArgs) -> Option<Self> {
        let work = u64::from(args.m) * u64::from(args.n) * u64::from(args.k);
        let [left, right, out] = sides(args).filter(|_| work >= LARGE)?;
        let at = [args.b, args.a, args.c];
        let aligned = at.map(|address| 1u32 << address.trailing_zeros().min(8));
        let shape = Shape { numbers, inputs, outputs, relu, left, right, out, aligned };
        Some(Self { shape, at, on_top: args.flags & ON_TOP > 0 })
    }
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
    pub(super) fn product(&self, product: &Product, stream: *mut c_void) -> Result<bool> {
        let Some(plan) = self.plan(product.shape)? else { return Ok(false) };
        let (one, beta) = (1f32, if product.on_top { 1f32 } else { 0f32 });
        let number = |number: &f32| (&raw const *number).cast::<c_void>();
        let [left, right, c] = product.at.map(|address| address as *mut c_void);
        blas!(cublasLtMatmul(
            self.handle,
            plan.desc,
            number(&one),
            left.cast_const(),
            plan.left,
            right.cast_const(),
            plan.right,
            number(&beta),
            c.cast_const(),
            plan.out,
            c,
            plan.out,
            &raw const plan.choice.algo,
            self.workspace as *mut c_void,
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
        let compute = match (shape.numbers, shape.inputs) {
            (Numbers::Bf16, Numbers::F32) => Compute::CUBLAS_COMPUTE_32F_FAST_16BF,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let mut desc = std::ptr::null_mut();
        blas!(cublasLtMatmulDescCreate(&raw mut desc, compute, cudaDataType_t::CUDA_R_32F))?;
        if shape.relu {
            let relu = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU;
            let (at, bytes) = (&raw const relu, size_of_val(&relu));
            blas!(cublasLtMatmulDescSetAttribute(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, at.cast(), bytes))?;
        }
        for (side, attribute) in
            [(shape.left, Desc::CUBLASLT_MATMUL_DESC_TRANSA), (shape.right, Desc::CUBLASLT_MATMUL_DESC_TRANSB)]
        {
            // CUBLAS_OP_N and CUBLAS_OP_T, which cudarc has with another library.
            let turned = i32::from(side.turned);
            let (at, bytes) = (&raw const turned, size_of_val(&turned));
            blas!(cublasLtMatmulDescSetAttribute(desc, attribute, at.cast(), bytes))?;
        }
        let layout = |side: Side, numbers: Numbers| {
            let kind = match numbers {
                Numbers::F32 => cudaDataType_t::CUDA_R_32F,
                Numbers::Bf16 => cudaDataType_t::CUDA_R_16BF,
            };
            let mut layout = std::ptr::null_mut();
            let (rows, cols) = (u64::from(side.rows), u64::from(side.cols));
            blas!(cublasLtMatrixLayoutCreate(&raw mut layout, kind, rows, cols, i64::from(side.ld))).map(|()| layout)
        };
        let (left, right) = (layout(shape.left, shape.inputs)?, layout(shape.right, shape.inputs)?);
        let out = layout(shape.out, shape.outputs)?;
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
        // A product of the decoder is the same thing, as long as nothing stands around it.
        let plain =
            ProductArgs { x: 64, w: 4096, y0: 32, rows: 2048, inputs: 128, cols: 384, ..ProductArgs::default() };
        let plain = ProductArgs { ldx: 128, ldw: 128, ld0: 400, split: 384, ..plain };
        let product = Product::plain(Numbers::Bf16, &ProductArgs { flags: ADD, ..plain }).unwrap();
        let args = MatmulArgs { a: 64, b: 4096, c: 32, m: 2048, n: 384, k: 128, a_row: 128, ..MatmulArgs::default() };
        let args = MatmulArgs { a_col: 1, b_row: 128, b_col: 1, ldc: 400, flags: ON_TOP, ..args };
        let training = Product::training(Numbers::Bf16, &args).unwrap();
        assert_eq!((product.at, product.on_top), (training.at, training.on_top));
        assert_eq!((product.shape.inputs, product.shape.outputs), (Numbers::Bf16, Numbers::F32));
        assert_eq!(Shape { inputs: Numbers::F32, ..product.shape }, training.shape);
        let relu = Product::plain(Numbers::Bf16, &ProductArgs { flags: RELU, ..plain }).unwrap().shape;
        assert!(relu.relu && relu.outputs == Numbers::Bf16);
        for other in [
            ProductArgs { flags: NORM, ..plain },
            ProductArgs { flags: HEADS, ..plain },
            ProductArgs { split: 128, ..plain },
            ProductArgs { row_ids: 8, ..plain },
            ProductArgs { rows: 16, ..plain },
        ] {
            assert_eq!(Product::plain(Numbers::Bf16, &other), None);
        }
        // Neither side may have gaps in both directions, and rows may not overlap.
        let apart = MatmulArgs { m, n, k, a_row: 6, a_col: 2, b_row: 3, b_col: 1, ldc: 9, ..MatmulArgs::default() };
        assert!(sides(&apart).is_none() && sides(&MatmulArgs { a_row: 2, a_col: 1, ..apart }).is_none());
    }
}
