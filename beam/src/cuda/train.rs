//! Kernels of training: what they are given, byte for byte as `kernels/train/*.cu` declare it, and the blocks that their
//! sizes ask for.
//!
//! Activations, gradients and weights are f32; products are taken in the program's [`Numbers`], with f32 sums. All sums run
//! in a fixed order: the same inputs give the same bits.

use super::device::Launch;
use super::kernels::Numbers;
use bytemuck::{Pod, Zeroable};

/// Most shared memory that a block can have on the devices that this is for.
const MOST_SHARED: usize = 232_448 - 1024;

/// Inputs and outputs that a block of a product takes at once.
const TILE: u32 = 64;

/// What survives dropout, as a function of key and position.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DropArgs {
    /// Of the step and the place in the model.
    pub key: u64,
    /// Draws of 32 bits below it survive.
    pub threshold: u32,
    /// One over the share kept, 1 where nothing is dropped.
    pub kept: f32,
}

impl DropArgs {
    /// Keeps everything.
    pub const NONE: Self = Self { key: 0, threshold: u32::MAX, kept: 1.0 };
}

impl Default for DropArgs {
    fn default() -> Self {
        Self::NONE
    }
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
        #[repr(C)]
        #[allow(missing_docs, reason = "described at the head of the kernel's file")]
        pub struct $name { $(pub $field: $type),* }
    )*};
}

arguments! {
    /// Of `matmul.cu`.
    MatmulArgs {
        a: u64, b: u64, c: u64, part_stride: u64,
        m: u32, n: u32, k: u32, a_row: u32, a_col: u32, b_row: u32, b_col: u32, ldc: u32, k_part: u32, flags: u32,
    }
    /// Of `gather_rows`.
    GatherArgs { table: u64, ids: u64, out: u64, rows: u32, group: u32, dim: u32, ldt: u32, ldo: u32, pad: u32 }
    /// Of `scatter_rows`.
    ScatterArgs {
        table: u64, rows: u64, starts: u64, places: u64, grad: u64, dim: u32, ldt: u32, ldg: u32, pad: u32,
    }
    /// Of `fold`.
    FoldArgs { input: u64, out: u64, stride: u64, count: u32, parts: u32 }
    /// Of `bias_forward` and `bias_backward`.
    BiasArgs { table: u64, ids: u64, bias: u64, count: u32, heads: u32 }
    /// Of `element`.
    ElementArgs { y: u64, x: u64, by: u64, drop: DropArgs, count: u64, scale: f32, what: u32 }
    /// Of `norm_forward` and `norm_backward`.
    TrainNormArgs { x: u64, w: u64, y: u64, dy: u64, dx: u64, partial: u64, rows: u32, dim: u32 }
    /// Of `attend_forward` and `attend_backward`.
    TrainAttendArgs {
        q: u64, kv: u64, bias: u64, lengths: u64, out: u64, grad: u64, dq: u64, dkv: u64, kept: u64, ds: u64,
        drop: DropArgs, queries: u32, keys: u32, heads: u32, head_dim: u32, scale: f32, mask: u32,
    }
    /// Of `cross_entropy`.
    CrossEntropyArgs {
        logits: u64, ruled_out: u64, targets: u64, losses: u64,
        rows: u32, classes: u32, ld: u32, smoothing: f32, weight: f32, pad: u32,
    }
    /// Of `drawn_scores` and `drawn_backward`.
    DrawnArgs {
        x: u64, y: u64, scores: u64, items: u64, targets: u64, column: u64, offset: u64, dx: u64, dy: u64,
        dim: u32, draws: u32, ld: u32, pad: u32,
    }
    /// Of `tower_bias`.
    TowerBiasArgs { y: u64, bias: u64, rows: u32, cols: u32, ld: u32, relu: u32 }
    /// Of `tower_bias_back`.
    TowerBiasBackArgs { g: u64, y: u64, partial: u64, rows: u32, cols: u32, ld: u32, pad: u32 }
    /// Of `tower_error`.
    TowerErrorArgs { y: u64, x: u64, scale: u64, partial: u64, count: u64 }
    /// Of `nearest_code`.
    NearestArgs { scores: u64, norms: u64, codes: u64, rows: u32, count: u32 }
    /// Of `subtract_codeword` and `unit_rows`.
    CodewordArgs { x: u64, codewords: u64, codes: u64, rows: u32, dim: u32 }
    /// Of `sum_of_squares`.
    SquaresArgs { x: u64, partial: u64, count: u64 }
    /// Of `adamw`.
    AdamWArgs {
        w: u64, g: u64, m: u64, v: u64, average: u64, count: u64,
        beta1: f32, beta2: f32, epsilon: f32, decay: f32, rate: f32, root: f32, scale: f32, average_step: f32,
    }
}

/// [`MatmulArgs::flags`]: on top of what is there.
pub const ON_TOP: u32 = 1;

/// [`ElementArgs::what`]: zeros.
pub const FILL: u32 = 0;
/// `y += scale x`.
pub const ACCUMULATE: u32 = 1;
/// `y = scale x`.
pub const COPY: u32 = 2;
/// `y = max(x, 0)`, dropped.
pub const RELU_DROP: u32 = 3;
/// `y += x` where `by` is above 0, times what is kept.
pub const RELU_DROP_BACK: u32 = 4;
/// `y =` dropped `x`.
pub const DROP: u32 = 5;
/// `y = by +` dropped `x`.
pub const DROP_ADD: u32 = 6;
/// `y +=` dropped `x`.
pub const DROP_ACCUMULATE: u32 = 7;

/// [`TrainAttendArgs::mask`]: all keys.
pub const ALL_KEYS: u32 = 0;
/// A query's own position and those before it.
pub const CAUSAL: u32 = 1;
/// As many of the first keys as `lengths` says.
pub const FIRST_KEYS: u32 = 2;

/// Blocks that [`sum_of_squares`] and [`tower_error`] take for so many numbers: as many partial sums come out.
pub fn squares(count: u64) -> u32 {
    count.div_ceil(4096).clamp(1, 256) as u32
}

/// Rows that a block of [`norm_backward`] takes: a partial sum each.
pub const NORM_ROWS: u32 = 64;

/// Rows that a block of [`tower_bias_back`] takes: a partial sum each.
pub const BACK_ROWS: u32 = 64;

/// Parts that a product of `m` by `n` over `k` inputs is taken in, so that a large device has enough blocks.
pub fn parts(m: u32, n: u32, k: u32) -> u32 {
    let blocks = m.div_ceil(TILE) * n.div_ceil(TILE);
    // Each part has at least eight chunks to sum.
    (256 / blocks.max(1)).clamp(1, (k / (8 * TILE)).max(1)).min(64)
}

/// `parts` of [`parts`]; with more than one, `c` holds them one after the other.
pub fn matmul(numbers: Numbers, args: MatmulArgs, parts: u32) -> Launch {
    let args = MatmulArgs { k_part: args.k.div_ceil(parts).next_multiple_of(TILE), ..args };
    let pitch = TILE as usize * numbers.bytes() + 16;
    // What may be large comes first: the other two are bounded by 65,535.
    let grid = [args.m.div_ceil(TILE), args.n.div_ceil(TILE), args.k.div_ceil(args.k_part).max(1)];
    Launch::new("train_matmul", grid, 128, 2 * TILE as usize * pitch, &args)
}

/// Rows of a table, summed in groups.
pub fn gather_rows(args: &GatherArgs) -> Launch {
    Launch::new("gather_rows", [args.rows.div_ceil(8), 1, 1], 256, 0, args)
}

/// Gradients brought back to `rows` rows of a table.
pub fn scatter_rows(args: &ScatterArgs, rows: u32) -> Launch {
    Launch::new("scatter_rows", [rows, 1, 1], 256, 256 * 4, args)
}

/// Sums of parts.
pub fn fold(args: &FoldArgs) -> Launch {
    Launch::new("fold", [args.count.div_ceil(256), 1, 1], 256, 0, args)
}

/// A bias from its table.
pub fn bias_forward(args: &BiasArgs) -> Launch {
    Launch::new("bias_forward", [args.count.div_ceil(256), args.heads, 1], 256, 0, args)
}

/// Its gradient, back to `buckets` rows.
pub fn bias_backward(args: &BiasArgs, buckets: u32) -> Launch {
    Launch::new("bias_backward", [buckets, args.heads, 1], 256, 32 * 4, args)
}

/// One number in, one out.
pub fn element(args: &ElementArgs) -> Launch {
    Launch::new("element", [args.count.div_ceil(1024) as u32, 1, 1], 256, 0, args)
}

/// `x / rms(x) * w`.
pub fn norm_forward(args: &TrainNormArgs) -> Launch {
    Launch::new("norm_forward", [args.rows.div_ceil(NORM_ROWS), 1, 1], 256, 0, args)
}

/// Its gradients.
pub fn norm_backward(args: &TrainNormArgs) -> Launch {
    let shared = 8 * args.dim as usize * 4;
    Launch::new("norm_backward", [args.rows.div_ceil(NORM_ROWS), 1, 1], 256, shared, args)
}

fn attend(kernel: &'static str, args: &TrainAttendArgs, batch: u32) -> Launch {
    Launch::new(kernel, [batch, args.heads, 1], 256, attend_shared(args.keys, args.head_dim), args)
}

fn attend_shared(keys: u32, head_dim: u32) -> usize {
    let (keys, head_dim) = (keys as usize, head_dim as usize);
    4 * (2 * keys * (head_dim + 1) + 8 * (keys + head_dim))
}

/// Whether so many keys of that width fit a block.
pub fn attend_fits(keys: u32, head_dim: u32) -> bool {
    attend_shared(keys, head_dim) <= MOST_SHARED
}

/// Attention over `batch` sequences.
pub fn attend_forward(args: &TrainAttendArgs, batch: u32) -> Launch {
    attend("attend_forward", args, batch)
}

/// Its gradients.
pub fn attend_backward(args: &TrainAttendArgs, batch: u32) -> Launch {
    attend("attend_backward", args, batch)
}

/// The loss of each row, and the gradient in the logits' place.
pub fn cross_entropy(args: &CrossEntropyArgs) -> Launch {
    Launch::new("cross_entropy", [args.rows, 1, 1], 256, 32 * 4, args)
}

/// Scores of targets against what was drawn, `rows` of them.
pub fn drawn_scores(args: &DrawnArgs, rows: u32) -> Launch {
    Launch::new("drawn_scores", [rows, 1, 1], 256, 32 * 4, args)
}

/// The gradient of the targets' own scores.
pub fn drawn_backward(args: &DrawnArgs, rows: u32) -> Launch {
    Launch::new("drawn_backward", [rows, 1, 1], 256, 0, args)
}

/// A bias, and a ReLU where there is one.
pub fn tower_bias(args: &TowerBiasArgs) -> Launch {
    Launch::new("tower_bias", [args.rows.div_ceil(8), args.cols.div_ceil(32), 1], 256, 0, args)
}

/// Its way back, with a partial sum of the bias's gradient for every [`BACK_ROWS`] rows.
pub fn tower_bias_back(args: &TowerBiasBackArgs) -> Launch {
    let grid = [args.rows.div_ceil(BACK_ROWS), args.cols.div_ceil(32), 1];
    Launch::new("tower_bias_back", grid, 256, 256 * 4, args)
}

/// The gradient of a squared error, and as many partial sums of it as [`squares`] says.
pub fn tower_error(args: &TowerErrorArgs) -> Launch {
    Launch::new("tower_error", [squares(args.count), 1, 1], 256, 32 * 4, args)
}

/// The nearest codeword of every row of scores.
pub fn nearest_code(args: &NearestArgs) -> Launch {
    Launch::new("nearest_code", [args.rows.div_ceil(8), 1, 1], 256, 0, args)
}

/// Rows less their codewords.
pub fn subtract_codeword(args: &CodewordArgs) -> Launch {
    Launch::new("subtract_codeword", [args.rows.div_ceil(8), 1, 1], 256, 0, args)
}

/// Rows scaled to length 1.
pub fn unit_rows(args: &CodewordArgs) -> Launch {
    Launch::new("unit_rows", [args.rows.div_ceil(8), 1, 1], 256, 0, args)
}

/// As many partial sums of squares as [`squares`] says.
pub fn sum_of_squares(args: &SquaresArgs) -> Launch {
    Launch::new("sum_of_squares", [squares(args.count), 1, 1], 256, 32 * 4, args)
}

/// A step of the optimiser.
pub fn adamw(args: &AdamWArgs) -> Launch {
    Launch::new("adamw", [args.count.div_ceil(256) as u32, 1, 1], 256, 0, args)
}
