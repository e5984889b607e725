// Items behind the beams of a request, best first: those that its mask allows, each once.
//
// nodes (leaves), scores: (batch * beams,), counts: (batch,), path: (.., 8).
// found: (batch,), items, item_scores: (batch, k), codes: (batch, k, 8).
// Grid: batch, 1 warp; 32 items of a leaf at a time.
struct FinishArgs {
    const Index* index;
    const Mask* masks;
    const u32* pool;
    const u32* nodes;
    const float* scores;
    const u32* counts;
    const u16* path;
    u32* found;
    u32* items;
    float* item_scores;
    u16* codes;
    u32 beams, k;
};

KERNEL(finish, 32, 16, FinishArgs) {
    u32 b = blockIdx.x, lane = threadIdx.x, found = 0, count = min_(a.counts[b], a.beams);
    const Index* index = a.index;
    const Mask& mask = a.masks[b];
    u32* items = a.items + (u64)b * a.k;
    for (u32 r = 0; r < count && found < a.k; r++) {
        u64 row = (u64)b * a.beams + r;
        u32 from, to;
        children(index, index->levels, a.nodes[row], from, to);
        for (; from < to && found < a.k; from += WARP) {
            u32 item = 0;
            bool take = from + lane < to;
            if (take) {
                item = index->words[index->items_at + from + lane];
                take = leads_on(index, mask, a.pool, index->levels + 1, item);
            }
            if (index->aliases) {
                // An item with several IDs comes with the best of them; a leaf has none twice.
                for (u32 i = 0; i < found; i++)
                    if (items[i] == item) take = false;
            }
            u32 lanes = __ballot_sync(FULL, take);
            u32 at = found + popcount(lanes & ((1u << lane) - 1));
            if (take && at < a.k) {
                items[at] = item;
                a.item_scores[(u64)b * a.k + at] = a.scores[row];
                for (u32 t = 0; t < MAX_LEVELS; t++) a.codes[((u64)b * a.k + at) * MAX_LEVELS + t] = a.path[row * MAX_LEVELS + t];
            }
            found = min_(a.k, found + popcount(lanes));
            __syncwarp();
        }
    }
    if (lane == 0) a.found[b] = found;
}
