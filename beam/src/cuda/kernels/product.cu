// y = x W^T with what stands around it in a transformer block: norm in front, relu or residual behind.
//
// x: (rows, ldx), float and divided by its rms with NORM, Numbers without; row_ids, where given, says which row of x is
// meant. W: (cols, ldw), inputs padded to 32 with zeros, cols a multiple of 8. y: see store().
// Grid: (cols / 64, rows / 16 or 64), 4 warps, each 16 columns of all rows of the block.
// Shared: scales (rows of the block), tile (rows of the block, pitch(128)).
// Rows of the block: 16 for few beams, where latency counts, 64 where weights are worth reading once for many rows.
// Ladder: 16-byte fragments without ldmatrix, K in chunks of 128, no double buffer; not yet measured on a device.
#define NORM 1
#define RELU 2
#define ADD 4
#define FLOATS 8
#define HEADS 16
#define CHUNK 128

struct ProductArgs {
    const void* x;
    const u32* row_ids;
    const Number* w;
    void* y0;
    void* y1;
    // From one layer's keys and values to the next, and from keys to values, in Numbers.
    u64 layer_stride, values_at;
    u32 rows, inputs, dim, cols, ldx, ldw, ld0, ld1;
    // Columns from `split` on go to y1.
    u32 split, flags;
    // Shape of keys and values with HEADS; seq_pad is seq in steps of 32.
    u32 seq, seq_pad, heads, head_dim;
};

DEV void store(const ProductArgs& a, u32 row, u32 col, float v) {
    if (a.flags & RELU) v = v > 0.0f ? v : 0.0f;
    if (col < a.split) {
        u64 at = (u64)row * a.ld0 + col;
        if (a.flags & ADD) ((float*)a.y0)[at] += v;
        else if (a.flags & FLOATS) ((float*)a.y0)[at] = v;
        else ((Number*)a.y0)[at] = narrow(v);
        return;
    }
    u32 c = col - a.split;
    if (!(a.flags & HEADS)) {
        ((Number*)a.y1)[(u64)row * a.ld1 + c] = narrow(v);
        return;
    }
    // Keys (batch, heads, seq_pad, head_dim), values transposed (batch, heads, head_dim, seq_pad), of every layer.
    u32 width = a.heads * a.head_dim, layer = c / (2 * width);
    c %= 2 * width;
    bool is_value = c >= width;
    u32 head = c % width / a.head_dim, d = c % a.head_dim, b = row / a.seq, s = row % a.seq;
    Number* y = (Number*)a.y1 + layer * a.layer_stride + (is_value ? a.values_at : 0);
    u64 block = (u64)(b * a.heads + head) * a.head_dim * a.seq_pad;
    y[block + (is_value ? (u64)d * a.seq_pad + s : (u64)s * a.head_dim + d)] = narrow(v);
}

template <int MT>
DEV void product(const ProductArgs& a) {
    SHARED(shared);
    float* scales = (float*)shared;
    Number* tile = (Number*)(scales + 16 * MT);
    u32 lda = pitch(CHUNK), first = blockIdx.y * 16 * MT, warp = threadIdx.x / WARP, col = blockIdx.x * 64 + warp * 16;
    u32 tiles = col < a.cols ? min_(2, (a.cols - col) / 8) : 0;
    bool norm = a.flags & NORM;
    if (norm) inverse_rms(scales, (const float*)a.x, a.ldx, a.row_ids, first, 16 * MT, a.rows, a.dim);
    float acc[MT][2][4];
    clear(acc);
    for (u32 k = 0; k < a.inputs; k += CHUNK) {
        u32 count = min_(CHUNK, a.inputs - k);
        __syncthreads();
        load_rows(tile, lda, a.x, a.ldx, a.row_ids, norm ? scales : 0, first, 16 * MT, a.rows, k, count);
        __syncthreads();
        multiply(acc, tile, lda, a.w + (u64)col * a.ldw + k, a.ldw, count, tiles);
    }
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = first + 16 * m + own_row(i);
                if (n < tiles && row < a.rows) store(a, row, col + 8 * n + own_column(i), acc[m][n][i]);
            }
}

KERNEL(product_16, 128, 4, ProductArgs) { product<1>(a); }
KERNEL(product_64, 128, 3, ProductArgs) { product<4>(a); }
