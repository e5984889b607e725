// What the search for nearest codewords takes beside products. A warp a row in all of them.

// codes[row] = the c with the least norms[c] / 2 - scores[row, c], the first of equals. scores: (rows, count).
// Grid: rows / 8, 8 warps.
struct NearestArgs {
    const float* scores;
    const float* norms;
    u32* codes;
    u32 rows, count;
};

KERNEL(nearest_code, 256, 4, NearestArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= a.rows) return;
    const float* scores = a.scores + (u64)row * a.count;
    float best = -MINUS_INFINITY;
    u32 code = NONE;
    for (u32 c = lane; c < a.count; c += WARP) {
        float distance = 0.5f * a.norms[c] - scores[c];
        if (distance < best) {
            best = distance;
            code = c;
        }
    }
    for (int half = WARP / 2; half > 0; half /= 2) {
        float other = __shfl_xor_sync(FULL, best, half);
        u32 there = __shfl_xor_sync(FULL, code, half);
        if (other < best || (other == best && there < code)) {
            best = other;
            code = there;
        }
    }
    if (lane == 0) a.codes[row] = code;
}

// x[row] -= codewords[codes[row]]. x: (rows, dim); codewords: (.., dim).
struct CodewordArgs {
    float* x;
    const float* codewords;
    const u32* codes;
    u32 rows, dim;
};

KERNEL(subtract_codeword, 256, 4, CodewordArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP;
    if (row >= a.rows) return;
    float* x = a.x + (u64)row * a.dim;
    const float* codeword = a.codewords + (u64)a.codes[row] * a.dim;
    for (u32 d = threadIdx.x % WARP; d < a.dim; d += WARP) x[d] -= codeword[d];
}

// x[row] /= |x[row]|; zeros stay. Codewords and codes are not looked at.
KERNEL(unit_rows, 256, 4, CodewordArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= a.rows) return;
    float* x = a.x + (u64)row * a.dim;
    float sum = 0.0f;
    for (u32 d = lane; d < a.dim; d += WARP) sum = fma_(x[d], x[d], sum);
    float norm = __fsqrt_rn(warp_sum(sum));
    if (norm > 0.0f)
        for (u32 d = lane; d < a.dim; d += WARP) x[d] /= norm;
}
