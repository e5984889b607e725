// Candidates as one number each (order.rs): the bits of the score in an order that integers have, over the complement of
// parent rank * codes + code. Keys of a request are all different, so what is best does not depend on who comes first.
#define BUFFER 4096
// Candidates that a block may add between two looks at the buffer.
#define ROUND 1024

DEV u64 key_of(float score, u32 index) {
    if (!is_finite(score)) return 0;
    u32 bits = __float_as_uint(score + 0.0f);
    u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (u32)~index;
}
DEV float score_of(u64 key) {
    u32 ordered = (u32)(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
DEV u32 index_of(u64 key) { return ~(u32)key; }

// The best so far, in shared memory. No key is 0.
struct Best {
    u64 keys[BUFFER];
    // What a key has to beat.
    u64 limit;
    u32 count, busy;
};

// Sorts the first `count` keys, greatest first. All threads of the block.
DEV void sort(Best* best, u32 count) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += blockDim.x) best->keys[i] = 0;
    for (u32 run = 2; run <= size; run *= 2)
        for (u32 gap = run / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < size / 2; i += blockDim.x) {
                u32 low = i / gap * 2 * gap + i % gap, high = low + gap;
                u64 x = best->keys[low], y = best->keys[high];
                bool descending = (low & run) == 0;
                if (descending ? x < y : x > y) {
                    best->keys[low] = y;
                    best->keys[high] = x;
                }
            }
        }
    __syncthreads();
}

// Cuts to the best `width`, sorted. All threads of the block, none of which may be adding.
DEV void cut_to(Best* best, u32 width) {
    u32 count = best->count;
    sort(best, count);
    if (threadIdx.x == 0) {
        best->count = min_(count, width);
        if (count >= width) best->limit = best->keys[width - 1];
    }
    __syncthreads();
}

// Adds the key of every lane that has one. Whole warps only.
DEV void offer(Best* best, u64 key) {
    bool add = key > best->limit;
    u32 lanes = __ballot_sync(FULL, add);
    if (!lanes) return;
    u32 lane = threadIdx.x % WARP, at = 0;
    if (lane == 0) at = atomicAdd(&best->count, popcount(lanes));
    at = __shfl_sync(FULL, at, 0);
    if (add) best->keys[at + popcount(lanes & ((1u << lane) - 1))] = key;
}
