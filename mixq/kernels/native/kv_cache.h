// One layer's keys and values as they lie in memory.
#pragma once

#include <cstdint>

enum MixqKvKind { MIXQ_KV_BF16 = 0, MIXQ_KV_INT8 = 1, MIXQ_KV_F32 = 2 };

struct MixqKvCache {
    int32_t kind;              // MixqKvKind
    int64_t heads;             // kv heads
    int64_t capacity;          // positions that fit
    int64_t head_dim;          // a multiple of 8, at most 256
    void* keys;                // [heads, capacity, head_dim]
    void* values;              // [heads, capacity, head_dim]
    float* key_scale;          // int8: [heads, capacity]
    float* value_scale;        // int8: [heads, capacity]
};
