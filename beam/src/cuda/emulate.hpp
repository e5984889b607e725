// A thread block on the host: threads are fibers that run from barrier to barrier, in an order drawn from a seed.
//
// Between two barriers a fiber runs alone, so a kernel gives the same bits for every seed exactly when no thread reads
// what another one writes in between without a barrier. Blocks of a grid come in drawn order, too. Shared memory begins
// as garbage (all bits set, which is no number) and is watched behind its end. Threads that wait at different barriers,
// or for one that has returned, are an error.
#define EMULATED 1
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace emulate {
struct Dim { unsigned x, y, z; };
enum State { READY, WARP_WAIT, BLOCK_WAIT, DONE };
constexpr unsigned MOST = 1024, STACK = 48 << 10, SHARED_MOST = 232448, GUARD = 512;

struct Fiber {
    State state;
#if defined(__x86_64__)
    void* sp;
#else
    ucontext_t context;
#endif
};

Fiber fibers[MOST];
unsigned char* stacks;
alignas(16) unsigned char shared[SHARED_MOST + GUARD];
unsigned current, threads;
Dim thread, block, block_dim, grid_dim;
unsigned long long exchange[MOST];
unsigned fragments[MOST][6];
void (*body)(const void*);
const void* arguments;
unsigned long long random_state;
char message[256];

unsigned draw(unsigned below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 32) % below);
}

#if defined(__x86_64__)
extern "C" void sidrec_fiber_switch(void** save, void* load);
asm(".text\n"
    ".globl sidrec_fiber_switch\n"
    ".hidden sidrec_fiber_switch\n"
    ".type sidrec_fiber_switch,@function\n"
    "sidrec_fiber_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
    "ret\n");
void* scheduler;
void back() { sidrec_fiber_switch(&fibers[current].sp, scheduler); }
#else
ucontext_t scheduler;
void back() { swapcontext(&fibers[current].context, &scheduler); }
#endif

void entry() {
    body(arguments);
    fibers[current].state = DONE;
    back();
    abort();
}

void resume(unsigned i) {
    current = i;
    thread = {i, 0, 0};
#if defined(__x86_64__)
    sidrec_fiber_switch(&scheduler, fibers[i].sp);
#else
    swapcontext(&scheduler, &fibers[i].context);
#endif
}

void start(unsigned i) {
    unsigned char* top = stacks + (size_t)(i + 1) * STACK;
    fibers[i].state = READY;
#if defined(__x86_64__)
    void** sp = (void**)top;
    *--sp = nullptr;
    *--sp = (void*)entry;
    for (int r = 0; r < 6; r++) *--sp = nullptr;
    fibers[i].sp = sp;
#else
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = top - STACK;
    fibers[i].context.uc_stack.ss_size = STACK;
    fibers[i].context.uc_link = nullptr;
    makecontext(&fibers[i].context, entry, 0);
#endif
}

void wait(State state) {
    fibers[current].state = state;
    back();
}

// Runs the threads of one block; false when they wait for each other for ever.
bool run_block() {
    static unsigned ready[MOST];
    unsigned count = threads, done = 0, at_block = 0, at_warp[MOST / 32] = {};
    for (unsigned i = 0; i < threads; i++) start(ready[i] = i);
    while (count) {
        unsigned pick = draw(count), i = ready[pick];
        ready[pick] = ready[--count];
        resume(i);
        unsigned warp = i / 32;
        switch (fibers[i].state) {
            case DONE: done++; break;
            case WARP_WAIT:
                if (++at_warp[warp] == 32) {
                    at_warp[warp] = 0;
                    for (unsigned j = warp * 32; j < warp * 32 + 32; j++) fibers[ready[count++] = j].state = READY;
                }
                break;
            case BLOCK_WAIT:
                if (++at_block == threads) {
                    at_block = 0;
                    for (unsigned j = 0; j < threads; j++) fibers[ready[count++] = j].state = READY;
                }
                break;
            default: return false;
        }
    }
    return done == threads;
}

// dims: grid, then block. Null when all went well, else what is wrong.
const char* run(void (*kernel)(const void*), const void* args, unsigned most, const unsigned* dims, unsigned bytes,
                unsigned long long seed) {
    if (!stacks) stacks = (unsigned char*)aligned_alloc(4096, (size_t)MOST * STACK);
    body = kernel;
    arguments = args;
    grid_dim = {dims[0], dims[1], dims[2]};
    block_dim = {dims[3], dims[4], dims[5]};
    threads = dims[3] * dims[4] * dims[5];
    random_state = seed * 0x9e3779b97f4a7c15ull + 0x1234567ull;
    if (threads == 0 || threads % 32 || threads > most || dims[4] != 1 || dims[5] != 1) return "the block is not one row of whole warps within the launch bounds";
    if (bytes > SHARED_MOST) return "more shared memory than a block can have";
    unsigned blocks = dims[0] * dims[1] * dims[2];
    if (blocks == 0) return "an empty grid";
    if (dims[1] > 65535 || dims[2] > 65535) return "a grid beyond 65535 blocks in y or z";
    unsigned* order = (unsigned*)malloc(blocks * sizeof(unsigned));
    for (unsigned i = 0; i < blocks; i++) {
        unsigned j = draw(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    const char* failure = nullptr;
    for (unsigned i = 0; i < blocks && !failure; i++) {
        unsigned at = order[i];
        block = {at % dims[0], at / dims[0] % dims[1], at / dims[0] / dims[1]};
        memset(shared, 0xff, bytes + GUARD);
        if (!run_block()) failure = "threads wait at different barriers, or for one that has returned";
        for (unsigned j = bytes; j < bytes + GUARD; j++)
            if (shared[j] != 0xff) failure = "a write behind the end of shared memory";
    }
    free(order);
    return failure;
}

template <class T> T shuffle(T value, unsigned lane) {
    memcpy(&exchange[current], &value, sizeof(T));
    wait(WARP_WAIT);
    T result;
    memcpy(&result, &exchange[current / 32 * 32 + lane % 32], sizeof(T));
    wait(WARP_WAIT);
    return result;
}

template <class T> unsigned bits(T x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}
inline float real(unsigned x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
}  // namespace emulate

#define threadIdx emulate::thread
#define blockIdx emulate::block
#define blockDim emulate::block_dim
#define gridDim emulate::grid_dim
#define DEV static inline
#define SHARED(name) unsigned char* name = emulate::shared
#define KERNEL(name, threads, blocks, Args)                                                                   \
    static void body_##name(const Args& a);                                                                   \
    static void call_##name(const void* args) { body_##name(*(const Args*)args); }                            \
    extern "C" unsigned args_##name() { return sizeof(Args); }                                                \
    extern "C" const char* launch_##name(const void* args, const unsigned* dims, unsigned bytes, unsigned long long seed) { \
        Args copy;                                                                                            \
        memcpy(&copy, args, sizeof(Args));                                                                    \
        return emulate::run(call_##name, &copy, threads, dims, bytes, seed);                                  \
    }                                                                                                         \
    static void body_##name(const Args& a)

static inline void __syncthreads() { emulate::wait(emulate::BLOCK_WAIT); }
static inline void __syncwarp() { emulate::wait(emulate::WARP_WAIT); }
template <class T> static inline T __shfl_xor_sync(unsigned, T x, unsigned mask) { return emulate::shuffle(x, emulate::current % 32 ^ mask); }
template <class T> static inline T __shfl_sync(unsigned, T x, unsigned lane) { return emulate::shuffle(x, lane); }
static inline unsigned __ballot_sync(unsigned, bool x) {
    emulate::exchange[emulate::current] = x;
    emulate::wait(emulate::WARP_WAIT);
    unsigned lanes = 0, first = emulate::current / 32 * 32;
    for (unsigned i = 0; i < 32; i++) lanes |= (unsigned)(emulate::exchange[first + i] & 1) << i;
    emulate::wait(emulate::WARP_WAIT);
    return lanes;
}
static inline unsigned atomicAdd(unsigned* at, unsigned x) {
    unsigned before = *at;
    *at += x;
    return before;
}
static inline unsigned __float_as_uint(float x) { return emulate::bits(x); }
static inline float __uint_as_float(unsigned x) { return emulate::real(x); }
static inline float __int_as_float(int x) { return emulate::real((unsigned)x); }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

// Fragments as the PTX manual lays them out for m16n8k16, row by column, two bfloat16 a register.
static inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    using namespace emulate;
    unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
    memcpy(fragments[current], mine, sizeof(mine));
    wait(WARP_WAIT);
    unsigned first = current / 32 * 32, lane = current % 32;
    auto half = [](unsigned x, unsigned i) { return real(i ? x & 0xffff0000u : x << 16); };
    for (int i = 0; i < 4; i++) {
        unsigned row = lane / 4 + (i < 2 ? 0 : 8), col = lane % 4 * 2 + i % 2;
        float sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            unsigned q = k % 8 / 2, high = k / 8;
            float a = half(fragments[first + row % 8 * 4 + q][(row / 8) + 2 * high], k % 2);
            float b = half(fragments[first + col * 4 + q][4 + high], k % 2);
            sum = __builtin_fmaf(a, b, sum);
        }
        d[i] = sum;
    }
    wait(WARP_WAIT);
}
