// x += relu(norm(x) Wi^T) Wo^T, the hidden row never leaving the multiprocessor.
//
// x: (rows, ldx) float, dim_pad <= 256 numbers. Wi: (hidden, ldi), Wo: (dim_pad, ldo), hidden a multiple of 128.
// Grid: rows / 16 or 64, 8 warps. Shared: scales, normed (rows of the block, pitch(dim_pad)), hidden (.., pitch(128)).
// Ladder: a chunk of 128 hidden units at a time, 16 a warp, then dim_pad / 8 columns a warp; not yet measured.
#define UNITS 128

struct FeedForwardArgs {
    float* x;
    const Number* wi;
    const Number* wo;
    u32 rows, dim, dim_pad, hidden, ldx, ldi, ldo, pad;
};

template <int MT>
DEV void feed_forward(const FeedForwardArgs& a) {
    SHARED(shared);
    u32 lda = pitch(a.dim_pad), ldh = pitch(UNITS), first = blockIdx.x * 16 * MT, warp = threadIdx.x / WARP;
    float* scales = (float*)shared;
    Number* normed = (Number*)(scales + 16 * MT);
    Number* units = normed + 16 * MT * lda;
    // Columns of the output in tiles of 8, dealt out to the warps in runs.
    u32 each = (a.dim_pad / 8 + 7) / 8, from = warp * each;
    u32 tiles = from < a.dim_pad / 8 ? min_(each, a.dim_pad / 8 - from) : 0;
    inverse_rms(scales, a.x, a.ldx, 0, first, 16 * MT, a.rows, a.dim);
    __syncthreads();
    load_rows(normed, lda, a.x, a.ldx, 0, scales, first, 16 * MT, a.rows, 0, a.dim_pad);
    float out[MT][4][4];
    clear(out);
    for (u32 u = 0; u < a.hidden; u += UNITS) {
        __syncthreads();
        float acc[MT][2][4];
        clear(acc);
        multiply(acc, normed, lda, a.wi + (u64)(u + warp * 16) * a.ldi, a.ldi, a.dim_pad, 2);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float v = acc[m][n][i];
                    units[(16 * m + own_row(i)) * ldh + warp * 16 + 8 * n + own_column(i)] = narrow(v > 0.0f ? v : 0.0f);
                }
        __syncthreads();
        multiply(out, units, ldh, a.wo + (u64)from * 8 * a.ldo + u, a.ldo, UNITS, tiles);
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = first + 16 * m + own_row(i);
                if (n < tiles && row < a.rows) a.x[(u64)row * a.ldx + (from + n) * 8 + own_column(i)] += out[m][n][i];
            }
}

KERNEL(feed_forward_16, 256, 2, FeedForwardArgs) { feed_forward<1>(a); }
KERNEL(feed_forward_64, 256, 1, FeedForwardArgs) { feed_forward<4>(a); }
