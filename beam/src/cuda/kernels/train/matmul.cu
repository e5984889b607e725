// C = A B^T, all floats in memory, multiplied as Numbers: bfloat16 on tensor cores with f32 sums, or f32.
//
// A(i, k) lies at a[i * a_row + k * a_col], B(j, k) at b[j * b_row + k * b_col]; one stride of each is 1, so that products
// of transposes need no copies. C: (m, ldc), added to with ADD.
// Grid: (m / 64, n / 64, parts), 4 warps, each 16 columns of all rows of the block. A part takes k_part of the k inputs
// and writes to c + part * part_stride; `fold` adds parts up.
// Shared: both tiles (64, pitch(64)).
#define TRAIN_ADD 1
#define TRAIN_CHUNK 64

struct MatmulArgs {
    const float* a;
    const float* b;
    float* c;
    u64 part_stride;
    u32 m, n, k, a_row, a_col, b_row, b_col, ldc, k_part, flags;
};

// 64 rows from `first` on, 64 inputs from `from` on, zeros where there are none.
DEV void load_tile(Number* tile, u32 ld, const float* x, u32 row_stride, u32 col_stride, u32 first, u32 rows, u32 from, u32 to) {
    for (u32 i = threadIdx.x; i < 64 * TRAIN_CHUNK; i += blockDim.x) {
        // Neighbouring threads read neighbouring numbers.
        u32 r = col_stride == 1 ? i / TRAIN_CHUNK : i % 64, k = col_stride == 1 ? i % TRAIN_CHUNK : i / 64;
        bool there = first + r < rows && from + k < to;
        float v = there ? x[(u64)(first + r) * row_stride + (u64)(from + k) * col_stride] : 0.0f;
        tile[r * ld + k] = narrow(v);
    }
}

KERNEL(train_matmul, 128, 3, MatmulArgs) {
    SHARED(shared);
    u32 ld = pitch(TRAIN_CHUNK), row = blockIdx.x * 64, col = blockIdx.y * 64, warp = threadIdx.x / WARP;
    Number* left = (Number*)shared;
    Number* right = left + 64 * ld;
    u32 from = blockIdx.z * a.k_part, to = min_(a.k, from + a.k_part);
    float acc[4][2][4];
    clear(acc);
    for (u32 k = from; k < to; k += TRAIN_CHUNK) {
        __syncthreads();
        load_tile(left, ld, a.a, a.a_row, a.a_col, row, a.m, k, to);
        load_tile(right, ld, a.b, a.b_row, a.b_col, col, a.n, k, to);
        __syncthreads();
        multiply(acc, left, ld, right + warp * 16 * ld, ld, TRAIN_CHUNK, 2);
    }
    float* c = a.c + blockIdx.z * a.part_stride;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 r = row + 16 * m + own_row(i), j = col + warp * 16 + 8 * n + own_column(i);
                if (r < a.m && j < a.n) {
                    float* to = c + (u64)r * a.ldc + j;
                    *to = (a.flags & TRAIN_ADD) ? *to + acc[m][n][i] : acc[m][n][i];
                }
            }
}
