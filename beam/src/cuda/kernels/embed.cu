// Rows of a table: x[i] = table[ids[i]], zeros where there is no row.
//
// table: (.., ldt) float, ids: (rows,) or null for the row `same` everywhere, x: (rows, ldx), ldx <= ldt, multiples of 4.
// Grid: rows in steps of 8, a warp a row.
struct EmbedArgs {
    const float* table;
    const u32* ids;
    float* x;
    u32 rows, same, ldt, ldx;
};

KERNEL(embed, 256, 4, EmbedArgs) {
    u32 row = blockIdx.x * 8 + threadIdx.x / WARP;
    if (row >= a.rows) return;
    u32 id = a.ids ? a.ids[row] : a.same;
    for (u32 k = threadIdx.x % WARP * 4; k < a.ldx; k += 4 * WARP) {
        float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
        if (id != NONE) v = *(const float4*)(a.table + (u64)id * a.ldt + k);
        *(float4*)(a.x + (u64)row * a.ldx + k) = v;
    }
}
