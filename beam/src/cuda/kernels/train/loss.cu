// Cross-entropy of rows of logits with label smoothing, and its gradient in the logits' place.
//
// logits: (rows, ld), `classes` of them meant; ruled_out: (rows, classes) added to them, or null; targets: (rows).
// The gradient is that of weight times the mean over rows; losses: (rows), each weight / rows times its own.
// Grid: rows, 8 warps. Shared: (32).
struct CrossEntropyArgs {
    float* logits;
    const float* ruled_out;
    const u32* targets;
    float* losses;
    u32 rows, classes, ld;
    float smoothing, weight;
    u32 pad;
};

KERNEL(cross_entropy, 256, 4, CrossEntropyArgs) {
    SHARED(shared);
    float* scratch = (float*)shared;
    u32 row = blockIdx.x, target = a.targets[row];
    float* x = a.logits + (u64)row * a.ld;
    if (a.ruled_out)
        for (u32 i = threadIdx.x; i < a.classes; i += blockDim.x) x[i] += a.ruled_out[(u64)row * a.classes + i];
    __syncthreads();
    float most = MINUS_INFINITY;
    for (u32 i = threadIdx.x; i < a.classes; i += blockDim.x) most = x[i] > most ? x[i] : most;
    most = block_max(most, scratch);
    float total = 0.0f, plain = 0.0f;
    for (u32 i = threadIdx.x; i < a.classes; i += blockDim.x) {
        total += exp_(x[i] - most);
        plain += x[i];
    }
    total = block_sum(total, scratch);
    plain = block_sum(plain, scratch);
    float scale = a.weight / (float)a.rows, uniform = a.smoothing / (float)a.classes, own = x[target];
    __syncthreads();
    if (threadIdx.x == 0)
        a.losses[row] = scale * (most + ln_(total) - (1.0f - a.smoothing) * own - uniform * plain);
    for (u32 i = threadIdx.x; i < a.classes; i += blockDim.x) {
        float g = exp_(x[i] - most) / total - uniform;
        if (i == target) g -= 1.0f - a.smoothing;
        x[i] = scale * g;
    }
}

// Scores of targets against what was drawn, on their way into the cross-entropy: column 0 of scores (rows, ld) becomes
// x . y of each row, and column 1 + i gets what undoes the bias of its draw, column[i] + offset[row]; where the drawn item
// is the target itself it is ruled out. x, y, dx, dy: (rows, dim); items, column: (draws); targets, offset: (rows).
// Grid: rows, 8 warps. Shared: (32).
struct DrawnArgs {
    const float* x;
    const float* y;
    float* scores;
    const u32* items;
    const u32* targets;
    const float* column;
    const float* offset;
    float* dx;
    float* dy;
    u32 dim, draws, ld, pad;
};

KERNEL(drawn_scores, 256, 4, DrawnArgs) {
    SHARED(shared);
    u32 row = blockIdx.x, target = a.targets[row];
    float* scores = a.scores + (u64)row * a.ld;
    float sum = 0.0f;
    for (u32 d = threadIdx.x; d < a.dim; d += blockDim.x) sum = fma_(a.x[(u64)row * a.dim + d], a.y[(u64)row * a.dim + d], sum);
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) scores[0] = sum;
    for (u32 i = threadIdx.x; i < a.draws; i += blockDim.x)
        scores[1 + i] += a.items[i] == target ? -1e4f : a.column[i] + a.offset[row];
}

// dx += g y, dy += g x, with the gradient g of column 0 in its place.
KERNEL(drawn_backward, 256, 4, DrawnArgs) {
    u32 row = blockIdx.x;
    float g = a.scores[(u64)row * a.ld];
    for (u32 d = threadIdx.x; d < a.dim; d += blockDim.x) {
        u64 at = (u64)row * a.dim + d;
        a.dx[at] += g * a.y[at];
        a.dy[at] += g * a.x[at];
    }
}
