// Attention of 16 queries of one request and head to keys that all queries of the request share: positions of a history
// to each other, with T5's bias by distance, or beams, as rows of the tile, to what was encoded.
//
// Queries: (batch * queries, ldq) Numbers, or, with wq, norm(x) Wq^T of float rows x. Keys: (batch, heads, seq_pad,
// head_dim), values transposed: (batch, heads, head_dim, seq_pad); head_dim and seq_pad multiples of 32. A query sees the
// first lengths[b] keys, or, causal, no more than its own position. bias: (heads, distances), distance 0 at `zero`.
// y: (batch * queries, ldy). Scale is folded into the queries.
// Grid: (queries / 16, heads, batch), 4 warps.
// Shared: scales (16), scores (16, seq_pad + 4), query (16, pitch(head_dim)), weights (16, pitch(seq_pad)); the rows of x
// (16, pitch(dim_pad)) lie where scores and weights come later.
// Ladder: scores of a tile whole in shared memory, two passes for the softmax; not yet measured.
struct AttendArgs {
    const void* x;
    const Number* wq;
    const Number* keys;
    const Number* values;
    const float* bias;
    const u32* lengths;
    Number* y;
    u32 queries, seq, seq_pad, heads, head_dim, ldx, ldw, ldy, dim, dim_pad, distances, zero;
    u32 causal, pad;
};

KERNEL(attend, 128, 4, AttendArgs) {
    SHARED(shared);
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y, b = blockIdx.z;
    u32 first = blockIdx.x * 16, there = min_(16, a.queries - first), row = b * a.queries + first;
    u32 lds = a.seq_pad + 4, ldq = pitch(a.head_dim), ldp = pitch(a.seq_pad);
    float* scales = (float*)shared;
    Number* query = (Number*)(scales + 16);
    float* scores = (float*)(query + 16 * ldq);
    Number* weights = (Number*)(scores + 16 * lds);
    u32 blocks = a.head_dim / 8;
    if (a.wq) {
        Number* normed = (Number*)scores;
        inverse_rms(scales, (const float*)a.x, a.ldx, 0, row, 16, row + there, a.dim);
        __syncthreads();
        load_rows(normed, pitch(a.dim_pad), a.x, a.ldx, 0, scales, row, 16, row + there, 0, a.dim_pad);
        __syncthreads();
    for (u32 n = warp; n < blocks; n += 4) {
            float acc[1][1][4];
            clear(acc);
            const Number* w = a.wq + (u64)(head * a.head_dim + n * 8) * a.ldw;
            multiply(acc, normed, pitch(a.dim_pad), w, a.ldw, a.dim_pad, 1);
#pragma unroll
            for (int i = 0; i < 4; i++) query[own_row(i) * ldq + n * 8 + own_column(i)] = narrow(acc[0][0][i]);
        }
    } else {
        const Number* from = (const Number*)a.x + head * a.head_dim;
        load_rows(query, ldq, from, a.ldx, 0, 0, row, 16, row + there, 0, a.head_dim);
    }
    __syncthreads();
    u64 block = (u64)(b * a.heads + head) * a.head_dim * a.seq_pad;
    for (u32 n = warp; n < a.seq_pad / 8; n += 4) {
        float acc[1][1][4];
        clear(acc);
        multiply(acc, query, ldq, a.keys + block + (u64)n * 8 * a.head_dim, a.head_dim, a.head_dim, 1);
#pragma unroll
        for (int i = 0; i < 4; i++) scores[own_row(i) * lds + n * 8 + own_column(i)] = acc[0][0][i];
    }
    __syncthreads();
    u32 length = min_(a.lengths[b], a.seq);
    for (u32 r = warp; r < 16; r += 4) {
        u32 visible = a.causal ? min_(length, first + r + 1) : length;
        float* line = scores + r * lds;
        float max = MINUS_INFINITY;
        for (u32 s = lane; s < visible; s += WARP) {
            float v = line[s];
            if (a.bias && r < there) v += a.bias[head * a.distances + a.zero + s - (first + r)];
            line[s] = v;
            max = v > max ? v : max;
        }
        max = warp_max(max);
        float sum = 0.0f;
        for (u32 s = lane; s < visible; s += WARP) {
            line[s] = exp_(line[s] - max);
            sum += line[s];
        }
        sum = warp_sum(sum);
        float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        for (u32 s = lane; s < a.seq_pad; s += WARP) weights[r * ldp + s] = narrow(s < visible ? line[s] * inverse : 0.0f);
    }
    __syncthreads();
    for (u32 n = warp; n < blocks; n += 4) {
        float acc[1][1][4];
        clear(acc);
        multiply(acc, weights, ldp, a.values + block + (u64)n * 8 * a.seq_pad, a.seq_pad, a.seq_pad, 1);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 r = own_row(i);
            if (r < there) a.y[(u64)(row + r) * a.ldy + head * a.head_dim + n * 8 + own_column(i)] = narrow(acc[0][0][i]);
        }
    }
}
