// What the towers of an RQ-VAE take beside products: biases with ReLU, their way back, and the squared error.

// y = max(y + bias, 0) where relu is set, else y + bias, in place. y: (rows, ld), cols of them meant; bias: (cols).
// Grid: (rows / 8, cols / 32), 8 warps, a warp a row.
struct TowerBiasArgs {
    float* y;
    const float* bias;
    u32 rows, cols, ld, relu;
};

KERNEL(tower_bias, 256, 4, TowerBiasArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP, col = blockIdx.y * WARP + threadIdx.x % WARP;
    if (row >= a.rows || col >= a.cols) return;
    u64 at = (u64)row * a.ld + col;
    float y = a.y[at] + a.bias[col];
    a.y[at] = !a.relu || y > 0.0f ? y : 0.0f;
}

// g = 0 where y, what came out of the ReLU, is not above 0; partial[block] = sums of what is left over the block's rows.
// g: (rows, ld), cols of them meant; y: (rows, cols), or null for a layer without a ReLU; partial: (rows / 64, cols),
// folded into the bias's gradient afterwards.
// Grid: (rows / 64, cols / 32), 8 warps of 8 rows each. Shared: (8, 32).
struct TowerBiasBackArgs {
    float* g;
    const float* y;
    float* partial;
    u32 rows, cols, ld, pad;
};

KERNEL(tower_bias_back, 256, 4, TowerBiasBackArgs) {
    SHARED(shared);
    float* sums = (float*)shared;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, col = blockIdx.y * WARP + lane;
    float sum = 0.0f;
    for (u32 i = 0; i < 8; i++) {
        u32 row = blockIdx.x * 64 + warp * 8 + i;
        if (row >= a.rows || col >= a.cols) break;
        u64 at = (u64)row * a.ld + col;
        if (!a.y || a.y[(u64)row * a.cols + col] > 0.0f)
            sum += a.g[at];
        else
            a.g[at] = 0.0f;
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && col < a.cols) {
        for (u32 w = 1; w < 8; w++) sum += sums[w * WARP + lane];
        a.partial[(u64)blockIdx.x * a.cols + col] = sum;
    }
}

// y = 2 scale (y - x), the gradient of scale |y - x|^2, in place; partial[block] = sum of (y - x)^2 of what the block has
// seen. y, x: (count); scale: (1), in memory because it changes from step to step.
// Grid: any number of blocks. Shared: (32).
struct TowerErrorArgs {
    float* y;
    const float* x;
    const float* scale;
    float* partial;
    u64 count;
};

KERNEL(tower_error, 256, 4, TowerErrorArgs) {
    SHARED(shared);
    float sum = 0.0f, twice = 2.0f * a.scale[0];
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < a.count; i += (u64)gridDim.x * blockDim.x) {
        float off = a.y[i] - a.x[i];
        sum = fma_(off, off, sum);
        a.y[i] = twice * off;
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}
