// y = x / rms(x) * w over rows, and its gradients. A warp a row, 8 rows of a warp one after the other.
//
// x, y, dx, dy: (rows, dim); w: (dim). partial: (blocks, dim), folded into dw afterwards.
// Grid: rows / 64, 8 warps. Shared of the backward pass: (8, dim).
struct TrainNormArgs {
    const float* x;
    const float* w;
    float* y;
    const float* dy;
    float* dx;
    float* partial;
    u32 rows, dim;
};

#define ROWS_OF_A_WARP 8

DEV float row_scale(const float* x, u32 dim) {
    float sum = 0.0f;
    for (u32 d = threadIdx.x % WARP; d < dim; d += WARP) sum = fma_(x[d], x[d], sum);
    return 1.0f / __fsqrt_rn(warp_sum(sum) / (float)dim + 1e-6f);
}

KERNEL(norm_forward, 256, 4, TrainNormArgs) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = 0; i < ROWS_OF_A_WARP; i++) {
        u32 row = (blockIdx.x * 8 + warp) * ROWS_OF_A_WARP + i;
        if (row >= a.rows) return;
        const float* x = a.x + (u64)row * a.dim;
        float scale = row_scale(x, a.dim);
        for (u32 d = lane; d < a.dim; d += WARP) a.y[(u64)row * a.dim + d] = x[d] * scale * a.w[d];
    }
}

KERNEL(norm_backward, 256, 4, TrainNormArgs) {
    SHARED(shared);
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* dw = (float*)shared + warp * a.dim;
    for (u32 d = lane; d < a.dim; d += WARP) dw[d] = 0.0f;
    for (u32 i = 0; i < ROWS_OF_A_WARP; i++) {
        u32 row = (blockIdx.x * 8 + warp) * ROWS_OF_A_WARP + i;
        if (row >= a.rows) break;
        u64 at = (u64)row * a.dim;
        const float* x = a.x + at;
        float scale = row_scale(x, a.dim), along = 0.0f;
        for (u32 d = lane; d < a.dim; d += WARP) {
            float g = a.dy[at + d];
            dw[d] += g * x[d] * scale;
            along = fma_(a.w[d] * g, x[d], along);
        }
        along = warp_sum(along) * scale * scale * scale / (float)a.dim;
        for (u32 d = lane; d < a.dim; d += WARP) a.dx[at + d] += a.w[d] * a.dy[at + d] * scale - x[d] * along;
    }
    __syncthreads();
    for (u32 d = threadIdx.x; d < a.dim; d += blockDim.x) {
        float sum = 0.0f;
        for (u32 w = 0; w < 8; w++) sum += ((float*)shared)[w * a.dim + d];
        a.partial[(u64)blockIdx.x * a.dim + d] = sum;
    }
}
