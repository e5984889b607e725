// What every kernel is written in: plain C++ for NVRTC, without headers, and for the host compiler under emulate.hpp.
//
// Options: BF16 (1: weights and activations are bfloat16, 0: float), ARGS_<kernel> (bytes of the arguments as the host
// packs them). Shared memory is all dynamic, so that a host can fill it with garbage before a block begins.
// Floats are never contracted (fmad=false); where a fused operation is meant it is written fma_().
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMULATED
#define DEV static __device__ __forceinline__
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// `blocks`: that many fit a multiprocessor at least, which is what bounds the registers of a thread.
#define KERNEL(name, threads, blocks, Args)                                                              \
    static_assert(sizeof(Args) == ARGS_##name, "arguments of " #name " are packed otherwise by the host"); \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args a)
#endif

#define WARP 32
#define FULL 0xffffffffu
#define NONE 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)

DEV float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV u32 min_(u32 a, u32 b) { return a < b ? a : b; }
DEV u32 up(u32 n, u32 to) { return (n + to - 1) / to * to; }
DEV bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

#if BF16
typedef u16 Number;
DEV float widen(Number x) { return __uint_as_float((u32)x << 16); }
// To nearest, ties to even.
DEV Number narrow(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (Number)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
typedef float Number;
DEV float widen(Number x) { return x; }
DEV Number narrow(float x) { return x; }
#endif

// Beam's exp and ln (math.rs), operation by operation.
DEV float exp_(float x) {
    bool ruled_out = x < -87.0f;
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = x - n * 0.6933594f;
    r = r - n * -2.1219444e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3982e-3f;
    p = p * r + 8.333452e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    float two_to_n = __uint_as_float((__float_as_uint(shifted) - (0x4b400000u - 127u)) << 23);
    return ruled_out ? 0.0f : (p * r * r + r + 1.0f) * two_to_n;
}

DEV float ln_(float x) {
    if (x == 0.0f) return MINUS_INFINITY;
    if (!is_finite(x)) return x;
    u32 bits = __float_as_uint(x);
    int exponent = (int)(bits >> 23) - 126;
    float m = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u);
    if (m < 0.70710678f) {
        exponent -= 1;
        m += m;
    }
    m -= 1.0f;
    float e = (float)exponent;
    float z = m * m;
    float p = 7.0376836e-2f;
    p = p * m - 1.151461e-1f;
    p = p * m + 1.1676999e-1f;
    p = p * m - 1.2420141e-1f;
    p = p * m + 1.4249323e-1f;
    p = p * m - 1.6668058e-1f;
    p = p * m + 2.0000715e-1f;
    p = p * m - 2.4999994e-1f;
    p = p * m + 3.333333e-1f;
    float y = p * m * z;
    y += -2.1219444e-4f * e;
    y += -0.5f * z;
    return (m + y) + 0.6933594f * e;
}

// The sum of a warp, folded in halves; all lanes get it.
DEV float warp_sum(float x) {
    for (int half = WARP / 2; half > 0; half /= 2) x += __shfl_xor_sync(FULL, x, half);
    return x;
}

DEV float warp_max(float x) {
    for (int half = WARP / 2; half > 0; half /= 2) {
        float y = __shfl_xor_sync(FULL, x, half);
        x = y > x ? y : x;
    }
    return x;
}
