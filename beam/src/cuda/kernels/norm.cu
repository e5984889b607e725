// y = x / rms(x) as Numbers: in front of products that are left to cuBLASLt.
//
// x: (.., ldx) float, `dim` numbers and zeros behind them; y: (rows, ldy), ldy <= ldx. row_ids as in product.cu.
// Grid: rows / 8, 8 warps, a warp a row. Shared: scales (8).
struct NormArgs {
    const float* x;
    const u32* row_ids;
    Number* y;
    u32 rows, dim, ldx, ldy;
};

KERNEL(normalize, 256, 4, NormArgs) {
    SHARED(shared);
    float* scales = (float*)shared;
    u32 first = blockIdx.x * 8;
    inverse_rms(scales, a.x, a.ldx, a.row_ids, first, 8, a.rows, a.dim);
    __syncthreads();
    u32 height = min_(8, a.rows - first);
    load_rows(a.y + (u64)first * a.ldy, a.ldy, a.x, a.ldx, a.row_ids, scales, first, height, a.rows, 0, a.ldy);
}
