// Dropout that is drawn again, not stored.

DEV u64 mix_(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// As seqmodel's `Drop`: the same elements survive as on the processor.
struct Drop {
    u64 key;
    u32 threshold;
    // 1 / share kept; 1 where nothing is dropped.
    float kept;
};

#define DROP_BLOCK 8192

// 0 or `kept`, for position `index` of a run that begins at `start`.
DEV float drop_factor(const Drop& drop, u64 start, u32 index) {
    if (drop.kept == 1.0f) return 1.0f;
    u64 key = mix_(drop.key ^ start * 0x9e3779b97f4a7c15ull);
    u32 z = index * 0x9e3779b1u + (u32)key;
    z = (z ^ (z >> 16)) * 0x85ebca6bu + (u32)(key >> 32);
    z = (z ^ (z >> 13)) * 0xc2b2ae35u;
    z ^= z >> 16;
    return (int)(z >> 1) < (int)(drop.threshold >> 1) ? drop.kept : 0.0f;
}

// The same for element `i` of a whole tensor.
DEV float drop_element(const Drop& drop, u64 i) { return drop_factor(drop, i / DROP_BLOCK * DROP_BLOCK, (u32)(i % DROP_BLOCK)); }
