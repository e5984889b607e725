// Matrix products by warps: rows in shared memory times the transpose of a row-major matrix.
//
// A lane with g = lane / 4 and q = lane % 4 owns, of every 16 x 8 tile, the rows g and g + 8 and the columns 2q and
// 2q + 1, in both number types. Sums run over the inputs in steps of 32, which rows must be padded to with zeros.
// bfloat16 goes through mma.sync m16n8k16: the eight inputs that a lane needs in two of its steps are read as one piece
// of 16 bytes, which permutes the inputs of both sides alike and so leaves the sum as it is, but for the order.
#define STEP 32

#ifndef EMULATED
DEV void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// Numbers between rows in shared memory: a shift by four banks a row.
DEV u32 pitch(u32 inputs) { return inputs + 16 / sizeof(Number); }

// acc[m][n] += rows 16 m .. of `a` times rows 8 n .. of `w`, as many of the NB as `tiles` says. Whole warps only.
template <int MT, int NB>
DEV void multiply(float (&acc)[MT][NB][4], const Number* a, u32 lda, const Number* w, u64 ldw, u32 inputs, u32 tiles) {
    u32 lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#if BF16
    for (u32 k = 0; k < inputs; k += STEP) {
        uint4 low[MT], high[MT];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            low[m] = *(const uint4*)(a + (16 * m + g) * lda + k + 8 * q);
            high[m] = *(const uint4*)(a + (16 * m + g + 8) * lda + k + 8 * q);
        }
#pragma unroll
        for (int n = 0; n < NB; n++) {
            if (n < tiles) {
                uint4 b = *(const uint4*)(w + (8 * n + g) * ldw + k + 8 * q);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(acc[m][n], low[m].x, high[m].x, low[m].y, high[m].y, b.x, b.y);
                    mma(acc[m][n], low[m].z, high[m].z, low[m].w, high[m].w, b.z, b.w);
                }
            }
        }
    }
#else
    for (u32 k = 0; k < inputs; k += 4) {
        float4 low[MT], high[MT];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            low[m] = *(const float4*)(a + (16 * m + g) * lda + k);
            high[m] = *(const float4*)(a + (16 * m + g + 8) * lda + k);
        }
#pragma unroll
        for (int n = 0; n < NB; n++) {
            if (n < tiles) {
                float4 b[2];
                b[0] = *(const float4*)(w + (8 * n + 2 * q) * ldw + k);
                b[1] = *(const float4*)(w + (8 * n + 2 * q + 1) * ldw + k);
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float s = acc[m][n][c], t = acc[m][n][2 + c];
                        s = fma_(low[m].x, b[c].x, s);
                        s = fma_(low[m].y, b[c].y, s);
                        s = fma_(low[m].z, b[c].z, s);
                        s = fma_(low[m].w, b[c].w, s);
                        t = fma_(high[m].x, b[c].x, t);
                        t = fma_(high[m].y, b[c].y, t);
                        t = fma_(high[m].z, b[c].z, t);
                        t = fma_(high[m].w, b[c].w, t);
                        acc[m][n][c] = s;
                        acc[m][n][2 + c] = t;
                    }
                }
            }
        }
    }
#endif
}

template <int MT, int NB>
DEV void clear(float (&acc)[MT][NB][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NB; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
}

// Row and column, inside its tile, of number i of what a lane owns.
DEV u32 own_row(int i) { return threadIdx.x % WARP / 4 + (i < 2 ? 0 : 8); }
DEV u32 own_column(int i) { return threadIdx.x % WARP % 4 * 2 + i % 2; }

// 1 / rms of `count` rows from `first` on into `scales`, a warp a row; rows that are not there get 0.
// x: (.., ldx) with `dim` numbers a row and zeros behind them.
DEV void inverse_rms(float* scales, const float* x, u32 ldx, const u32* row_ids, u32 first, u32 count, u32 rows, u32 dim) {
    u32 lane = threadIdx.x % WARP;
    for (u32 r = threadIdx.x / WARP; r < count; r += blockDim.x / WARP) {
        u32 row = first + r;
        float scale = 0.0f;
        if (row < rows) {
            const float* from = x + (u64)(row_ids ? row_ids[row] : row) * ldx;
            float sum = 0.0f;
            for (u32 k = lane; k < dim; k += WARP) sum = fma_(from[k], from[k], sum);
            scale = 1.0f / __fsqrt_rn(warp_sum(sum) / (float)dim + 1e-6f);
        }
        if (lane == 0) scales[r] = scale;
    }
}

// Inputs from .. from + count of `height` rows into shared memory, four at a time; rows that are not there as zeros.
// With scales x is float (.., ldx) and scaled row by row, without it holds Numbers.
DEV void load_rows(Number* tile, u32 lda, const void* x, u32 ldx, const u32* row_ids, const float* scales, u32 first,
                   u32 height, u32 rows, u32 from, u32 count) {
    for (u32 i = threadIdx.x; i < height * (count / 4); i += blockDim.x) {
        u32 r = i / (count / 4), k = i % (count / 4) * 4, row = first + r;
        Number* to = tile + r * lda + k;
        if (row >= rows) {
            to[0] = to[1] = to[2] = to[3] = narrow(0.0f);
            continue;
        }
        u64 at = (u64)(row_ids ? row_ids[row] : row) * ldx + from + k;
        if (scales) {
            float4 v = *(const float4*)((const float*)x + at);
            float s = scales[r];
            to[0] = narrow(v.x * s);
            to[1] = narrow(v.y * s);
            to[2] = narrow(v.z * s);
            to[3] = narrow(v.w * s);
        } else {
            const Number* v = (const Number*)x + at;
            to[0] = v[0];
            to[1] = v[1];
            to[2] = v[2];
            to[3] = v[3];
        }
    }
}
