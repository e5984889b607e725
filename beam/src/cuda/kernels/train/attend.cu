// Attention with bias, masks and dropout of its probabilities, and its gradients.
//
// q, out, grad, dq: (batch, queries, inner); kv, dkv: (batch, keys, 2 inner), keys first; inner = heads * head_dim.
// bias: (heads, queries, keys) or null. A query sees the first keys alone: its own and those before it (CAUSAL), as many
// as `lengths` says of its sequence, or all.
// kept, ds: (batch, heads, queries, keys), what the backward pass leaves: dropped probabilities, and the gradient of the
// scores with bias, which is folded over the batch for the bias.
// Grid: (batch, heads), 8 warps, a query to a warp at a time.
// Shared: keys and values (keys, head_dim + 1) each, and of each warp its query's scores (keys) and query (head_dim).
#define ALL_KEYS 0
#define CAUSAL 1
#define FIRST_KEYS 2

struct TrainAttendArgs {
    const float* q;
    const float* kv;
    const float* bias;
    const u32* lengths;
    float* out;
    const float* grad;
    float* dq;
    float* dkv;
    float* kept;
    float* ds;
    Drop drop;
    u32 queries, keys, heads, head_dim;
    float scale;
    u32 mask;
};

struct Head {
    float* keys;
    float* values;
    float* scores;
    float* query;
    u32 inner, pitch, lane, warp;
    // Of keys and values of this head in memory.
    u64 kv_at;
};

DEV Head open_head(const TrainAttendArgs& a, float* shared) {
    Head h;
    h.pitch = a.head_dim + 1;
    h.inner = a.heads * a.head_dim;
    h.lane = threadIdx.x % WARP;
    h.warp = threadIdx.x / WARP;
    h.keys = shared;
    h.values = h.keys + a.keys * h.pitch;
    h.scores = h.values + a.keys * h.pitch + h.warp * (a.keys + a.head_dim);
    h.query = h.scores + a.keys;
    h.kv_at = (u64)blockIdx.x * a.keys * 2 * h.inner + blockIdx.y * a.head_dim;
    for (u32 i = threadIdx.x; i < a.keys * a.head_dim; i += blockDim.x) {
        u32 key = i / a.head_dim, d = i % a.head_dim;
        u64 at = h.kv_at + (u64)key * 2 * h.inner + d;
        h.keys[key * h.pitch + d] = a.kv[at];
        h.values[key * h.pitch + d] = a.kv[at + h.inner];
    }
    __syncthreads();
    return h;
}

DEV u32 visible_keys(const TrainAttendArgs& a, u32 query) {
    if (a.mask == CAUSAL) return a.keys - a.queries + query + 1;
    return a.mask == FIRST_KEYS ? a.lengths[blockIdx.x] : a.keys;
}

// The probabilities of one query into the warp's scores, before dropout.
DEV void probabilities(const TrainAttendArgs& a, const Head& h, u32 query, u32 visible) {
    u64 q_at = ((u64)blockIdx.x * a.queries + query) * h.inner + blockIdx.y * a.head_dim;
    for (u32 d = h.lane; d < a.head_dim; d += WARP) h.query[d] = a.q[q_at + d];
    __syncwarp();
    const float* bias = a.bias ? a.bias + ((u64)blockIdx.y * a.queries + query) * a.keys : 0;
    float most = MINUS_INFINITY;
    for (u32 key = h.lane; key < visible; key += WARP) {
        float sum = 0.0f;
        for (u32 d = 0; d < a.head_dim; d++) sum = fma_(h.query[d], h.keys[key * h.pitch + d], sum);
        sum = sum * a.scale + (bias ? bias[key] : 0.0f);
        h.scores[key] = sum;
        most = sum > most ? sum : most;
    }
    most = warp_max(most);
    float total = 0.0f;
    for (u32 key = h.lane; key < visible; key += WARP) {
        float e = exp_(h.scores[key] - most);
        h.scores[key] = e;
        total += e;
    }
    float inverse = 1.0f / warp_sum(total);
    for (u32 key = h.lane; key < visible; key += WARP) h.scores[key] *= inverse;
    __syncwarp();
}

// Where a query's row of scores begins among all: what its dropout is drawn by.
DEV u64 row_of_scores(const TrainAttendArgs& a, u32 query) {
    return (((u64)blockIdx.x * a.heads + blockIdx.y) * a.queries + query) * a.keys;
}

KERNEL(attend_forward, 256, 2, TrainAttendArgs) {
    SHARED(shared);
    Head h = open_head(a, (float*)shared);
    for (u32 query = h.warp; query < a.queries; query += 8) {
        u32 visible = visible_keys(a, query);
        probabilities(a, h, query, visible);
        u64 row = row_of_scores(a, query);
        for (u32 key = h.lane; key < visible; key += WARP) h.scores[key] *= drop_factor(a.drop, row, key);
        __syncwarp();
        u64 at = ((u64)blockIdx.x * a.queries + query) * h.inner + blockIdx.y * a.head_dim;
        for (u32 d = h.lane; d < a.head_dim; d += WARP) {
            float sum = 0.0f;
            for (u32 key = 0; key < visible; key++) sum = fma_(h.scores[key], h.values[key * h.pitch + d], sum);
            a.out[at + d] = sum;
        }
        __syncwarp();
    }
}

KERNEL(attend_backward, 256, 2, TrainAttendArgs) {
    SHARED(shared);
    Head h = open_head(a, (float*)shared);
    u64 rows_at = ((u64)blockIdx.x * a.queries) * h.inner + blockIdx.y * a.head_dim;
    for (u32 query = h.warp; query < a.queries; query += 8) {
        u32 visible = visible_keys(a, query);
        probabilities(a, h, query, visible);
        u64 row = row_of_scores(a, query), at = rows_at + (u64)query * h.inner;
        // The query has been used: its place takes the gradient of what came out.
        for (u32 d = h.lane; d < a.head_dim; d += WARP) h.query[d] = a.grad[at + d];
        __syncwarp();
        float along = 0.0f;
        for (u32 key = h.lane; key < a.keys; key += WARP) {
            float p = 0.0f, kept = 0.0f, dp = 0.0f;
            if (key < visible) {
                float factor = drop_factor(a.drop, row, key);
                p = h.scores[key];
                kept = p * factor;
                for (u32 d = 0; d < a.head_dim; d++) dp = fma_(h.query[d], h.values[key * h.pitch + d], dp);
                dp *= factor;
            }
            along = fma_(p, dp, along);
            a.kept[row + key] = kept;
            a.ds[row + key] = dp;
        }
        along = warp_sum(along);
        for (u32 key = h.lane; key < a.keys; key += WARP) {
            float ds = key < visible ? h.scores[key] * (a.ds[row + key] - along) : 0.0f;
            a.ds[row + key] = ds;
            if (key < visible) h.scores[key] = ds;
        }
        __syncwarp();
        for (u32 d = h.lane; d < a.head_dim; d += WARP) {
            float sum = 0.0f;
            for (u32 key = 0; key < visible; key++) sum = fma_(h.scores[key], h.keys[key * h.pitch + d], sum);
            a.dq[at + d] += sum * a.scale;
        }
        __syncwarp();
    }
    __syncthreads();
    u64 scores_at = row_of_scores(a, 0);
    for (u32 i = threadIdx.x; i < a.keys * a.head_dim; i += blockDim.x) {
        u32 key = i / a.head_dim, d = i % a.head_dim;
        float dk = 0.0f, dv = 0.0f;
        for (u32 query = 0; query < a.queries; query++) {
            u64 row = scores_at + (u64)query * a.keys + key, at = rows_at + (u64)query * h.inner + d;
            dk = fma_(a.ds[row], a.q[at], dk);
            dv = fma_(a.kept[row], a.grad[at], dv);
        }
        u64 at = h.kv_at + (u64)key * 2 * h.inner + d;
        a.dkv[at] += dk * a.scale;
        a.dkv[at + h.inner] += dv;
    }
}
