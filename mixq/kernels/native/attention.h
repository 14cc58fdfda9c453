// Attention of a few queries over a layer's KV cache, and writing that cache.
//
// Contract: a block is kAttentionBlock positions of one kv head, at multiples of that number, so that what a query gets
// from a block depends on the query and on what it sees alone. Blocks are combined in their order.
#pragma once

#include <cstdint>

#include "kv_cache.h"

namespace mixq {

constexpr int64_t kAttentionBlock = 512;
constexpr int kMaxHeadDim = 256;

// What a query head gets from one block: `largest` score, sum of exp(score - largest), and the values weighted so.
struct Partial {
    float largest, total, unused[14];
    float values[kMaxHeadDim];
};

struct AttentionKernels {
    // Partials of `group` query heads q [group, C] that read kv head `head`: positions [first, end), at most a block.
    void (*attend)(const MixqKvCache& cache, int64_t head, int64_t first, int64_t end, const float* q, int64_t group,
                   Partial* out);

    // into = what both blocks say together; `next` comes later.
    void (*combine)(Partial& into, const Partial& next, int64_t C);

    // out [C] = the answer of a query head that has seen all its blocks.
    void (*finish)(const Partial& all, int64_t C, float* out);

    // out [C] = x [C] rotated by the angles of cos and sin [C/2]; out may be x.
    void (*rotate)(const float* x, const float* cos, const float* sin, int64_t C, float* out);

    // Write x [C] as row `place` of a cache's keys or values; `scale` is null but for int8.
    void (*write)(const MixqKvCache& cache, void* data, float* scale, int64_t place, const float* x);
};

// The kernels for a MixqIsa that the CPU supports.
const AttentionKernels& attention_kernels(int isa);

}  // namespace mixq
