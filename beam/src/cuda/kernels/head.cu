// Logits of one level and, tile by tile of 128 codes, their maximum and the sum of exponentials over it.
//
// x: (rows, ldx) float, W: (codes in steps of 8, ldw), the norm in front folded in. logits: (rows, ldl) float,
// partials: (rows, tiles, 2). The sums have the bits of beam::math::log_softmax given the same logits.
// Grid: (tiles, rows / 16), 4 warps, each 32 codes. Shared: scales (16), logits (16, 132), tile (16, pitch(128)).
#define CHUNK 128
#define CODES 128
#define LDS 132

struct HeadArgs {
    const float* x;
    const Number* w;
    float* logits;
    float* partials;
    u32 rows, inputs, dim, codes, ldx, ldw, ldl, tiles;
};

KERNEL(head, 128, 4, HeadArgs) {
    SHARED(shared);
    float* scales = (float*)shared;
    float* mine = scales + 16;
    Number* tile = (Number*)(mine + 16 * LDS);
    u32 lda = pitch(CHUNK), first = blockIdx.y * 16, code = blockIdx.x * CODES, warp = threadIdx.x / WARP;
    u32 lane = threadIdx.x % WARP, from = code + 32 * warp, padded = up(a.codes, 8);
    u32 tiles = from < padded ? min_(4, (padded - from) / 8) : 0;
    inverse_rms(scales, a.x, a.ldx, 0, first, 16, a.rows, a.dim);
    float acc[1][4][4];
    clear(acc);
    for (u32 k = 0; k < a.inputs; k += CHUNK) {
        u32 count = min_(CHUNK, a.inputs - k);
        __syncthreads();
        load_rows(tile, lda, a.x, a.ldx, 0, scales, first, 16, a.rows, k, count);
        __syncthreads();
        multiply(acc, tile, lda, a.w + (u64)from * a.ldw + k, a.ldw, count, tiles);
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) mine[own_row(i) * LDS + 32 * warp + 8 * n + own_column(i)] = acc[0][n][i];
    __syncthreads();
    u32 count = min_(CODES, a.codes - code);
    for (u32 r = warp; r < 16 && first + r < a.rows; r += 4) {
        const float* row = mine + r * LDS;
        u64 at = first + r;
        float max = MINUS_INFINITY;
        for (u32 c = lane; c < count; c += WARP) {
            max = row[c] > max ? row[c] : max;
            a.logits[at * a.ldl + code + c] = row[c];
        }
        max = warp_max(max);
        float sum = 0.0f;
        if (max != MINUS_INFINITY)
            for (u32 c = lane; c < count; c += WARP) sum += exp_(row[c] - max);
        sum = warp_sum(sum);
        if (lane == 0) {
            a.partials[(at * a.tiles + blockIdx.x) * 2] = max;
            a.partials[(at * a.tiles + blockIdx.x) * 2 + 1] = sum;
        }
    }
}
