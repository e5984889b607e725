// x += attention of each beam to its own path, times the output projection: the decoder's self-attention.
//
// Keys and values stay where the steps left them, (steps, most rows, 2 * width) Numbers, and are read through the
// ancestor table: ancestors (rows, 8) holds the row of each earlier step that a beam continues; the newest is its own.
// query: (rows, width). bias: (heads, distances), distance 0 at `zero`. Wo: (dim_pad, ldw). x: (rows, ldx) float.
// Grid: (dim_pad / 64, rows / 16), 4 warps; one thread a row and head, then 16 columns a warp.
// Shared: mixed (16, pitch(width)).
#define MAX_STEPS 8

struct PathArgs {
    const Number* query;
    const Number* cache;
    const u32* ancestors;
    const float* bias;
    const Number* w;
    float* x;
    u64 step_stride;
    u32 rows, step, heads, head_dim, ldw, ldx, cols, distances, zero, pad;
};

KERNEL(path, 128, 4, PathArgs) {
    SHARED(shared);
    Number* mixed = (Number*)shared;
    u32 width = a.heads * a.head_dim, lda = pitch(width), first = blockIdx.y * 16;
    for (u32 i = threadIdx.x; i < 16 * a.heads; i += blockDim.x) {
        u32 r = i / a.heads, head = i % a.heads, row = first + r;
        Number* out = mixed + r * lda + head * a.head_dim;
        if (row >= a.rows) {
            for (u32 d = 0; d < a.head_dim; d++) out[d] = narrow(0.0f);
            continue;
        }
        const Number* query = a.query + (u64)row * width + head * a.head_dim;
        float weight[MAX_STEPS];
        const Number* key[MAX_STEPS];
        float max = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (u32 t = 0; t < MAX_STEPS; t++) {
            if (t <= a.step) {
                u32 at = t < a.step ? a.ancestors[row * MAX_STEPS + t] : row;
                key[t] = a.cache + t * a.step_stride + (u64)at * 2 * width + head * a.head_dim;
                float s = 0.0f;
                for (u32 d = 0; d < a.head_dim; d++) s = fma_(widen(query[d]), widen(key[t][d]), s);
                if (a.bias) s += a.bias[head * a.distances + a.zero + t - a.step];
                weight[t] = s;
                max = s > max ? s : max;
            }
        }
#pragma unroll
        for (u32 t = 0; t < MAX_STEPS; t++)
            if (t <= a.step) {
                weight[t] = exp_(weight[t] - max);
                sum += weight[t];
            }
        float inverse = 1.0f / sum;
        for (u32 d = 0; d < a.head_dim; d++) {
            float s = 0.0f;
#pragma unroll
            for (u32 t = 0; t < MAX_STEPS; t++)
                if (t <= a.step) s = fma_(weight[t] * inverse, widen(key[t][width + d]), s);
            out[d] = narrow(s);
        }
    }
    __syncthreads();
    u32 col = blockIdx.x * 64 + threadIdx.x / WARP * 16, tiles = col < a.cols ? min_(2, (a.cols - col) / 8) : 0;
    float acc[1][2][4];
    clear(acc);
    multiply(acc, mixed, lda, a.w + (u64)col * a.ldw, a.ldw, width, tiles);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 row = first + own_row(i);
            if (n < tiles && row < a.rows) a.x[(u64)row * a.ldx + col + 8 * n + own_column(i)] += acc[0][n][i];
        }
}
