// Guidance (guide.rs): the best log-probability of an allowed item below every node, from scores of all items.
//
// counts: (batch,), 0 for requests that are not there, whose masks may be of another time.
// scores: (batch, lds), of which `items` are items; log_sums: (batch,). best: (batch, stride), where the nodes of a level
// begin at `at` and those of the next one at `below`.
struct GuideArgs {
    const Index* index;
    const Mask* masks;
    const u32* pool;
    const u32* counts;
    const float* scores;
    float* log_sums;
    float* best;
    u64 stride;
    u32 items, lds, level, at, below, pad;
};

// The logarithm of the sum of exponentials of a request's scores. Grid: batch, 8 warps. Shared: (32).
KERNEL(guide_sums, 256, 4, GuideArgs) {
    SHARED(shared);
    const float* scores = a.scores + (u64)blockIdx.x * a.lds;
    float most = MINUS_INFINITY, sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.items; i += blockDim.x) most = scores[i] > most ? scores[i] : most;
    most = block_max(most, (float*)shared);
    for (u32 i = threadIdx.x; i < a.items; i += blockDim.x) sum += exp_(scores[i] - most);
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) a.log_sums[blockIdx.x] = most + ln_(sum);
}

// Leaves: the best of their items. Grid: (room for leaves / 256, batch).
KERNEL(guide_leaves, 256, 4, GuideArgs) {
    u32 node = blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y, levels = a.index->levels;
    if (node >= a.index->level[levels].nodes || a.counts[b] == 0) return;
    u32 from, to;
    children(a.index, levels, node, from, to);
    float best = MINUS_INFINITY;
    for (; from < to; from++) {
        u32 item = a.index->words[a.index->items_at + from];
        if (!leads_on(a.index, a.masks[b], a.pool, levels + 1, item)) continue;
        float score = a.scores[(u64)b * a.lds + item] - a.log_sums[b];
        best = score > best ? score : best;
    }
    a.best[b * a.stride + a.at + node] = best;
}

// Nodes of `level`: the best of their children. Grid: (room for nodes / 256, batch).
KERNEL(guide_level, 256, 4, GuideArgs) {
    u32 node = blockIdx.x * blockDim.x + threadIdx.x;
    if (node >= a.index->level[a.level].nodes) return;
    float* all = a.best + blockIdx.y * a.stride;
    u32 from, to;
    children(a.index, a.level, node, from, to);
    float best = MINUS_INFINITY;
    for (; from < to; from++) best = all[a.below + from] > best ? all[a.below + from] : best;
    all[a.at + node] = best;
}
