// One number in, one number out. Grid: count / 1024, 256 threads, four numbers each.

// What is done: y = 0; y += scale x; y = scale x.
#define FILL 0
#define ACCUMULATE 1
#define COPY 2
// y = max(x, 0) dropped; y += x where `by` is above 0, times what is kept (its gradient, `by` what came out).
#define RELU_DROP 3
#define RELU_DROP_BACK 4
// y = dropped x; y = by + dropped x; y += dropped x.
#define DROP 5
#define DROP_ADD 6
#define DROP_ACCUMULATE 7

// y: (count), x and by likewise where they are read.
struct ElementArgs {
    float* y;
    const float* x;
    const float* by;
    Drop drop;
    u64 count;
    float scale;
    u32 what;
};

KERNEL(element, 256, 4, ElementArgs) {
    for (u32 n = 0; n < 4; n++) {
        u64 i = ((u64)blockIdx.x * 4 + n) * 256 + threadIdx.x;
        if (i >= a.count) return;
        float y;
        switch (a.what) {
            case FILL: y = 0.0f; break;
            case ACCUMULATE: y = a.y[i] + a.scale * a.x[i]; break;
            case COPY: y = a.scale * a.x[i]; break;
            case RELU_DROP: y = (a.x[i] > 0.0f ? a.x[i] : 0.0f) * drop_element(a.drop, i); break;
            case RELU_DROP_BACK: y = a.y[i] + (a.by[i] > 0.0f ? a.x[i] * a.drop.kept : 0.0f); break;
            case DROP: y = a.x[i] * drop_element(a.drop, i); break;
            case DROP_ADD: y = a.by[i] + a.x[i] * drop_element(a.drop, i); break;
            default: y = a.y[i] + a.x[i] * drop_element(a.drop, i); break;
        }
        a.y[i] = y;
    }
}
