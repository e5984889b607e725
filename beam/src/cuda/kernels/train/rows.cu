// Rows of tables: read and summed in groups, and gradients brought back to them in a fixed order; sums of parts.

// out[i, :] = sum over the `group` ids of i of table[id, :], NONE adds nothing. out: (rows, ldo), table: (.., ldt).
// Grid: rows / 8, 8 warps, a warp a row.
struct GatherArgs {
    const float* table;
    const u32* ids;
    float* out;
    u32 rows, group, dim, ldt, ldo, pad;
};

KERNEL(gather_rows, 256, 4, GatherArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP;
    if (row >= a.rows) return;
    for (u32 d = threadIdx.x % WARP; d < a.dim; d += WARP) {
        float sum = 0.0f;
        for (u32 g = 0; g < a.group; g++) {
            u32 id = a.ids[(u64)row * a.group + g];
            if (id != NONE) sum += a.table[(u64)id * a.ldt + d];
        }
        a.out[(u64)row * a.ldo + d] = sum;
    }
}

// table[rows[i], :] += sum of grad[p, :] for p in places[starts[i] .. starts[i + 1]]. Rows differ from one another, so
// each is written by one block, and sums run in the same order every time.
// Grid: rows. 256 threads: `slices` of them share a column, each taking every slices-th place. Shared: (256).
struct ScatterArgs {
    float* table;
    const u32* rows;
    const u32* starts;
    const u32* places;
    const float* grad;
    u32 dim, ldt, ldg, pad;
};

KERNEL(scatter_rows, 256, 4, ScatterArgs) {
    SHARED(shared);
    float* sums = (float*)shared;
    u32 slices = a.dim >= blockDim.x ? 1 : blockDim.x / a.dim;
    u32 from = a.starts[blockIdx.x], to = a.starts[blockIdx.x + 1];
    float* row = a.table + (u64)a.rows[blockIdx.x] * a.ldt;
    for (u32 first = 0; first < a.dim; first += blockDim.x) {
        u32 slice = slices == 1 ? 0 : threadIdx.x / a.dim, d = first + (slices == 1 ? threadIdx.x : threadIdx.x % a.dim);
        float sum = 0.0f;
        if (slice < slices && d < a.dim)
            for (u32 p = from + slice; p < to; p += slices) sum += a.grad[(u64)a.places[p] * a.ldg + d];
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (slice == 0 && d < a.dim) {
            for (u32 s = 1; s < slices; s++) sum += sums[threadIdx.x + s * a.dim];
            row[d] += sum;
        }
        __syncthreads();
    }
}

// out[i] += sum of in[part * stride + i] over the parts, i < count.
// Grid: count / 256.
struct FoldArgs {
    const float* in;
    float* out;
    u64 stride;
    u32 count, parts;
};

KERNEL(fold, 256, 4, FoldArgs) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    float sum = 0.0f;
    for (u32 part = 0; part < a.parts; part++) sum += a.in[part * a.stride + i];
    a.out[i] += sum;
}

// Relative bias: bias[head, i] = table[ids[i], head] for the i < count pairs of query and key; table: (buckets, heads).
// Grid: (count / 256, heads).
struct BiasArgs {
    float* table;
    const u32* ids;
    float* bias;
    u32 count, heads;
};

KERNEL(bias_forward, 256, 4, BiasArgs) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, head = blockIdx.y;
    if (i < a.count) a.bias[(u64)head * a.count + i] = a.table[a.ids[i] * a.heads + head];
}

// table[bucket, head] += sum of bias[head, i] over its pairs. Grid: (buckets, heads). Shared: (32).
KERNEL(bias_backward, 256, 4, BiasArgs) {
    SHARED(shared);
    u32 bucket = blockIdx.x, head = blockIdx.y;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.count; i += blockDim.x)
        if (a.ids[i] == bucket) sum += a.bias[(u64)head * a.count + i];
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) a.table[bucket * a.heads + head] += sum;
}
