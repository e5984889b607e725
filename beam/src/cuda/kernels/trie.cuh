// The trie's arena (trie/arena.rs) and the masks of requests, as the search kernels read them.
//
// Kernels get the address of a header, so that another catalogue is put in place by writing the header anew.
#define MAX_LEVELS 8

struct Level {
    // 0: one child a node, 1: bits, 2: bytes, 3: shorts, 4: words; see Width.
    u32 width, nodes, wide, pad;
    // First words of the arrays.
    u64 bases, distances, codes;
};

struct Index {
    const u32* words;
    u64 items_at;
    // First 64-bit word of each level's bits in a mask over the whole catalogue; the items' bits behind the leaves'.
    u64 live_at[MAX_LEVELS + 2];
    u32 levels, items, aliases, pad;
    Level level[MAX_LEVELS + 1];
};

// What one request may see. Lists are ascending: nodes of level l, and items at levels + 1, at[l] .. at[l + 1] of a pool.
struct Mask {
    // Bits of what is live in the whole catalogue, or null.
    const u64* live;
    // 0: no list, 1: the listed are denied, 2: only the listed are allowed.
    u32 kind, pad;
    u32 at[MAX_LEVELS + 4];
};

DEV u32 popcount(u32 x) { return (u32)__popc(x); }
DEV u32 lowest(u32 x) { return (u32)__ffs((int)x) - 1; }

DEV u32 select_bit(const u32* words, const Level& l, u32 node) {
    u32 first = words[l.bases + node / 32];
    const u32* bits = words + l.distances;
    u32 at = first / 32, word = bits[at] & (0xffffffffu << (first % 32)), skip = node % 32;
    for (;;) {
        u32 here = popcount(word);
        if (skip < here) break;
        skip -= here;
        word = bits[++at];
    }
    while (skip--) word &= word - 1;
    return 32 * at + lowest(word);
}

DEV u32 cut(const u32* words, const Level& l, u32 node) {
    switch (l.width) {
        case 0: return node;
        case 1: return select_bit(words, l, node);
        case 2: return words[l.bases + node / 16] + ((const u8*)(words + l.distances))[node];
        case 3: return words[l.bases + node / 16] + ((const u16*)(words + l.distances))[node];
        default: return words[l.distances + node];
    }
}

// Children of a node: start .. end of the next level.
DEV void children(const Index* index, u32 level, u32 node, u32& start, u32& end) {
    const Level& l = index->level[level];
    start = cut(index->words, l, node);
    end = cut(index->words, l, node + 1);
}

DEV u32 code_of(const Index* index, u32 level, u32 child) {
    const Level& l = index->level[level];
    const u32* codes = index->words + l.codes;
    return l.wide ? ((const u16*)codes)[child] : ((const u8*)codes)[child];
}

DEV bool has(const u64* bits, u32 at) { return bits[at / 64] >> (at % 64) & 1; }

DEV bool listed(const u32* list, u32 from, u32 to, u32 what) {
    u32 end = to;
    while (from < to) {
        u32 middle = (from + to) / 2;
        if (list[middle] < what) from = middle + 1;
        else to = middle;
    }
    return from < end && list[from] == what;
}

// Whether node `node` of `level` (or, at levels + 1, an item) is visible.
DEV bool leads_on(const Index* index, const Mask& mask, const u32* pool, u32 level, u32 node) {
    u32 from = mask.at[level], to = mask.at[level + 1];
    if (mask.kind == 2) return listed(pool, from, to, node);
    if (mask.live && !has(mask.live + index->live_at[level], node)) return false;
    return mask.kind == 0 || !listed(pool, from, to, node);
}
