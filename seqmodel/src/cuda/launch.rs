//! Kernels with the blocks and the shared memory that their sizes ask for.

use beam::cuda::{AttendArgs, EmbedArgs, FeedForwardArgs, HeadArgs, Launch, NormArgs, Numbers, PathArgs, ProductArgs};

/// From so many rows on, 64 of them share a block, so that weights are read a quarter as often.
const MANY_ROWS: u32 = 2048;

/// Inputs that a block of `product` holds at once.
const CHUNK: usize = 128;

/// Widest rows that `feed_forward` takes whole.
pub(super) const FUSED_DIM: u32 = 256;

/// Shared memory that a block can have on the devices that this is for.
pub(super) const MOST_SHARED: u32 = 232_448 - 1024;

/// Bytes of a row of `inputs` numbers in shared memory; see `pitch` in `tile.cuh`.
fn pitch(numbers: Numbers, inputs: usize) -> usize {
    inputs * numbers.bytes() + 16
}

fn many(rows: u32) -> bool {
    rows >= MANY_ROWS
}

pub(super) fn product(numbers: Numbers, args: &ProductArgs) -> Launch {
    let (kernel, height) = if many(args.rows) { ("product_64", 64) } else { ("product_16", 16) };
    let shared = height * (4 + pitch(numbers, CHUNK));
    Launch::new(kernel, [args.cols.div_ceil(64), args.rows.div_ceil(height as u32), 1], 128, shared, args)
}

pub(super) fn feed_forward(numbers: Numbers, args: &FeedForwardArgs) -> Launch {
    let (kernel, height) = if many(args.rows) { ("feed_forward_64", 64) } else { ("feed_forward_16", 16) };
    let shared = height * (4 + pitch(numbers, args.dim_pad as usize) + pitch(numbers, CHUNK));
    Launch::new(kernel, [args.rows.div_ceil(height as u32), 1, 1], 256, shared, args)
}

pub(super) fn head(numbers: Numbers, args: &HeadArgs) -> Launch {
    let shared = 16 * (4 + 132 * 4 + pitch(numbers, CHUNK));
    Launch::new("head", [args.tiles, args.rows.div_ceil(16), 1], 128, shared, args)
}

pub(super) fn attend(numbers: Numbers, args: &AttendArgs, batch: u32) -> Launch {
    let seq = args.seq_pad as usize;
    let scores = (seq + 4) * 4 + pitch(numbers, seq);
    let rows = if args.wq == 0 { 0 } else { pitch(numbers, args.dim_pad as usize) };
    let shared = 16 * (4 + pitch(numbers, args.head_dim as usize) + scores.max(rows));
    Launch::new("attend", [args.queries.div_ceil(16), args.heads, batch], 128, shared, args)
}

pub(super) fn path(numbers: Numbers, args: &PathArgs) -> Launch {
    let shared = 16 * pitch(numbers, (args.heads * args.head_dim) as usize);
    Launch::new("path", [args.cols.div_ceil(64), args.rows.div_ceil(16), 1], 128, shared, args)
}

pub(super) fn normalize(args: &NormArgs) -> Launch {
    Launch::new("normalize", [args.rows.div_ceil(8), 1, 1], 256, 8 * 4, args)
}

pub(super) fn embed(args: &EmbedArgs) -> Launch {
    Launch::new("embed", [args.rows.div_ceil(8), 1, 1], 256, 0, args)
}
