// The new beams of a request from the best candidates of its parts: parent, code, node, score, path, next input.
//
// keys: (batch, parts, width), key_counts: (batch, parts). Old beams: nodes, ancestors (.., 8), path (.., 8), `beams` a
// request; new ones `width` a request, best first, those beyond the new count with node NONE. ancestors holds rows of the
// steps. x: (batch * width, ldx), the rows of `table` (.., ldt) from `table_row` on that belong to the codes; or null.
// Grid: batch, 8 warps. Shared: Best.
struct SelectArgs {
    const Index* index;
    const u64* keys;
    const u32* key_counts;
    const u32* nodes;
    const u32* ancestors;
    const u16* path;
    u32* new_nodes;
    float* new_scores;
    u32* new_ancestors;
    u16* new_path;
    u32* new_counts;
    const float* table;
    float* x;
    u32 level, beams, width, parts, codes, table_row, ldt, ldx;
};

KERNEL(select_best, 256, 2, SelectArgs) {
    SHARED(shared);
    Best* best = (Best*)shared;
    u32 b = blockIdx.x;
    if (threadIdx.x == 0) {
        best->count = 0;
        best->limit = 0;
    }
    __syncthreads();
    for (u32 part = 0; part < a.parts; part++) {
        u32 count = a.key_counts[b * a.parts + part];
        const u64* keys = a.keys + ((u64)b * a.parts + part) * a.width;
        for (u32 from = 0; from < count; from += ROUND) {
            for (u32 i = threadIdx.x; i < ROUND; i += blockDim.x) offer(best, from + i < count ? keys[from + i] : 0);
            __syncthreads();
            if (best->count > BUFFER - ROUND) cut_to(best, a.width);
            __syncthreads();
        }
    }
    cut_to(best, a.width);
    u32 count = best->count;
    if (threadIdx.x == 0) a.new_counts[b] = count;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) {
        u32 row = b * a.width + i;
        if (i >= count) {
            a.new_nodes[row] = NONE;
            a.new_scores[row] = 0.0f;
            for (u32 t = 0; t < MAX_LEVELS; t++) {
                a.new_ancestors[row * MAX_LEVELS + t] = 0;
                a.new_path[row * MAX_LEVELS + t] = 0;
            }
            continue;
        }
        u64 key = best->keys[i];
        u32 code = index_of(key) % a.codes, parent = b * a.beams + index_of(key) / a.codes;
        u32 from, to;
        children(a.index, a.level, a.nodes[parent], from, to);
        while (from < to) {
            u32 middle = (from + to) / 2;
            if (code_of(a.index, a.level, middle) < code) from = middle + 1;
            else to = middle;
        }
        a.new_nodes[row] = from;
        a.new_scores[row] = score_of(key);
        for (u32 t = 0; t < MAX_LEVELS; t++) {
            bool past = t < a.level;
            a.new_ancestors[row * MAX_LEVELS + t] = past ? a.ancestors[parent * MAX_LEVELS + t] : t == a.level ? parent : 0;
            a.new_path[row * MAX_LEVELS + t] = past ? a.path[parent * MAX_LEVELS + t] : t == a.level ? (u16)code : 0;
        }
    }
    if (!a.x) return;
    for (u32 i = threadIdx.x; i < a.width * (a.ldx / 4); i += blockDim.x) {
        u32 r = i / (a.ldx / 4), k = i % (a.ldx / 4) * 4;
        float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
        if (r < count) {
            u32 code = index_of(best->keys[r]) % a.codes;
            v = *(const float4*)(a.table + (u64)(a.table_row + code) * a.ldt + k);
        }
        *(float4*)(a.x + ((u64)b * a.width + r) * a.ldx + k) = v;
    }
}
