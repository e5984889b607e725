// Sums and maxima over a block, in a fixed order.

// The sum over the block, in all threads; `scratch` holds 32 floats and is free again when this returns.
DEV float block_sum(float x, float* scratch) {
    u32 warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 i = 0; i < warps; i++) sum += scratch[i];
    __syncthreads();
    return sum;
}

DEV float block_max(float x, float* scratch) {
    u32 warps = blockDim.x / WARP;
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = scratch[0];
    for (u32 i = 1; i < warps; i++) most = scratch[i] > most ? scratch[i] : most;
    __syncthreads();
    return most;
}
