// The optimiser: sizes of gradients, the step, and the running average of the weights.

// partial[block] = sum of squares of what the block reads of x: (count). Grid: any number of blocks. Shared: (32).
struct SquaresArgs {
    const float* x;
    float* partial;
    u64 count;
};

KERNEL(sum_of_squares, 256, 4, SquaresArgs) {
    SHARED(shared);
    float sum = 0.0f;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < a.count; i += (u64)gridDim.x * blockDim.x)
        sum = fma_(a.x[i], a.x[i], sum);
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}

// As rqvae's `AdamW`: w, g, m, v: (count). rate and root hold the corrections of the moments, decay is
// 1 - lr * weight decay, scale what clipping leaves of the gradient. average, where given: += average_step (w - average).
// Grid: count / 256.
struct AdamWArgs {
    float* w;
    const float* g;
    float* m;
    float* v;
    float* average;
    u64 count;
    float beta1, beta2, epsilon, decay, rate, root, scale, average_step;
};

KERNEL(adamw, 256, 4, AdamWArgs) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float g = a.g[i] * a.scale;
    float m = a.beta1 * a.m[i] + (1.0f - a.beta1) * g, v = a.beta2 * a.v[i] + (1.0f - a.beta2) * g * g;
    float w = a.w[i] * a.decay - a.rate * m / (__fsqrt_rn(v) * a.root + a.epsilon);
    a.m[i] = m;
    a.v[i] = v;
    a.w[i] = w;
    if (a.average) a.average[i] += (w - a.average[i]) * a.average_step;
}
