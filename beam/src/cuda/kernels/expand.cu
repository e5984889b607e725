// The best children of the beams of a request, by the total order on candidates: scores, masks, exact selection.
//
// A part of a request's beams a block, a beam a warp at a time: children by the trie, 32 a step, tested against the
// request's mask, scored from logits and their partial sums, and kept when they beat the worst of the best so far.
// logits: (rows, ldl), partials: (rows, tiles, 2). nodes, scores: (rows,); counts: (batch,), beams there are.
// keys: (batch, parts, width), greatest first; key_counts: (batch, parts).
// Scores have the bits of CpuKernel on beam::math::log_softmax of the same logits.
// Grid: (parts, batch), 8 warps. Shared: Best.
// Ladder: one buffer a block, cut by a bitonic sort when it is full; not yet measured.
struct ExpandArgs {
    const Index* index;
    const Mask* masks;
    const u32* pool;
    const float* logits;
    const float* partials;
    const u32* nodes;
    const float* scores;
    const u32* counts;
    u64* keys;
    u32* key_counts;
    // Guidance: the best below every node (batch, stride) as guide.cu leaves it, or null; where the nodes of this level and
    // of the next one begin; and the weight that it has.
    const float* best;
    u64 stride;
    u32 level, beams, width, codes, ldl, tiles, valid_only, at, below;
    float weight;
};

KERNEL(expand, 256, 2, ExpandArgs) {
    SHARED(shared);
    Best* best = (Best*)shared;
    u32 part = blockIdx.x, parts = gridDim.x, b = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Index* index = a.index;
    const Mask& mask = a.masks[b];
    u32 count = min_(a.counts[b], a.beams), warps = blockDim.x / WARP;
    if (threadIdx.x == 0) {
        best->count = 0;
        best->limit = 0;
    }
    u32 rank = part + parts * warp, child = 0, end = 0, first = 0;
    float base = 0.0f, norm = 0.0f, max = 0.0f, log_sum = 0.0f, above = 0.0f;
    const float* guide = a.best ? a.best + b * a.stride : 0;
    const float* logits = a.logits;
    bool open = false;
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0) best->busy = 0;
        __syncthreads();
        for (int turn = 0; turn < ROUND / WARP / 8; turn++) {
            if (!open) {
                if (rank >= count) break;
                u64 row = (u64)b * a.beams + rank;
                logits = a.logits + row * a.ldl;
                const float* partials = a.partials + row * a.tiles * 2;
                max = MINUS_INFINITY;
                for (u32 t = 0; t < a.tiles; t++) max = partials[2 * t] > max ? partials[2 * t] : max;
                float sum = 0.0f;
                for (u32 t = 0; t < a.tiles; t++) {
                    float x = partials[2 * t];
                    sum += x == MINUS_INFINITY ? 0.0f : partials[2 * t + 1] * exp_(x - max);
                }
                log_sum = ln_(sum);
                base = a.scores[row];
                above = guide && a.level > 0 ? guide[a.at + a.nodes[row]] : 0.0f;
                first = rank * a.codes;
                children(index, a.level, a.nodes[row], child, end);
                norm = 0.0f;
                if (a.valid_only) {
                    float most = MINUS_INFINITY;
                    for (u32 c = child + lane; c < end; c += WARP) {
                        float x = (logits[code_of(index, a.level, c)] - max) - log_sum;
                        most = is_finite(x) && x > most ? x : most;
                    }
                    most = warp_max(most);
                    float sum = 0.0f;
                    if (most != MINUS_INFINITY)
                        for (u32 c = child + lane; c < end; c += WARP) {
                            float x = (logits[code_of(index, a.level, c)] - max) - log_sum;
                            sum += is_finite(x) ? exp_(x - most) : 0.0f;
                        }
                    sum = warp_sum(sum);
                    norm = most == MINUS_INFINITY ? most : most + ln_(sum);
                }
                open = true;
            }
            u32 c = child + lane;
            u64 key = 0;
            if (c < end && leads_on(index, mask, a.pool, a.level + 1, c)) {
                u32 code = code_of(index, a.level, c);
                float own = ((logits[code] - max) - log_sum) - norm;
                if (guide) own = a.weight * (guide[a.below + c] - above) + (1.0f - a.weight) * own;
                key = key_of(base + own, first + code);
            }
            offer(best, key);
            child += WARP;
            if (child >= end) {
                open = false;
                rank += parts * warps;
            }
        }
        if (lane == 0 && (open || rank < count)) best->busy = 1;
        __syncthreads();
        bool busy = best->busy;
        if (best->count > BUFFER - ROUND) cut_to(best, a.width);
        if (!busy) break;
    }
    __syncthreads();
    cut_to(best, a.width);
    u64* out = a.keys + ((u64)b * parts + part) * a.width;
    for (u32 i = threadIdx.x; i < best->count; i += blockDim.x) out[i] = best->keys[i];
    if (threadIdx.x == 0) a.key_counts[b * parts + part] = best->count;
}
