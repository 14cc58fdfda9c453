// Attention of a few queries over a layer's KV cache, and writing that cache.
//
// Contract: a block is kAttentionBlock positions of one kv head, at multiples of that number, so that a query's
// result for a block depends only on the query and on what it sees. Blocks are combined in their order.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "api.h"
#include "context.h"
#include "cpu.h"
#include "target.h"

namespace mixq {

constexpr int64_t kAttentionBlock = 512;
constexpr int kMaxHeadDim = 256;

// A query head's result for one block: the largest score, the sum of exp(score - largest), and the values so weighted.
struct Partial {
    float largest, total, unused[14];
    float values[kMaxHeadDim];
};

struct AttentionKernels {
    // Partials of `group` query heads q [group, C] that read kv head `head`: positions [first, end), at most a block.
    void (*attend)(const MixqKvCache& cache, int64_t head, int64_t first, int64_t end, const float* q, int64_t group,
                   const MixqFetch& fetch, Partial* out);

    // into = the result for both blocks; `next` is the later one.
    void (*combine)(Partial& into, const Partial& next, int64_t C);

    // out [C] = the output of a query head that has seen all its blocks.
    void (*finish)(const Partial& all, int64_t C, float* out);

    // out [C] = x [C] rotated by the angles of cos and sin [C/2]; out may be x.
    void (*rotate)(const float* x, const float* cos, const float* sin, int64_t C, float* out);

    // Write x [C] as row `place` of a cache's keys or values; `scale` is null except for int8.
    void (*write)(const MixqKvCache& cache, void* data, float* scale, int64_t place, const float* x);
};

#define MIXQ_KERNELS "attention.inc"
#define MIXQ_PORTABLE "simd_fours.inc"
#include "every_isa.inc"

namespace {

// Fewer bytes or values than these, about 10 us, are not worth waking a thread.
constexpr int64_t kAloneBytes = 256 << 10;
constexpr int64_t kAloneValues = 16 << 10;

constexpr int64_t kFewRows = 8;    // above, each thread computes whole rows
constexpr int64_t kTileRows = 16;  // of a prefill: they read a block of keys and values from the cache of a core
constexpr int64_t kTileHeads = 4;

int64_t element_bytes(const MixqKvCache& cache) {
    return cache.kind == MIXQ_KV_BF16 ? 2 : cache.kind == MIXQ_KV_INT8 ? 1 : 4;
}

void rotary_append(MixqContext& c, const MixqKvCache& cache, float* q, const float* k, const float* v, const float* cos,
                   const float* sin, int64_t T, int64_t H, int64_t start) {
    const AttentionKernels& kernels = kernels_of(c.isa);
    const int64_t C = cache.head_dim, KV = cache.heads;
    const int64_t grain = std::max<int64_t>(1, kAloneValues / ((H + 2 * KV) * C));
    c.pool.run(T, grain, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const float *cosine = cos + t * (C / 2), *sine = sin + t * (C / 2);
            for (int64_t h = t * H; h < (t + 1) * H; ++h) kernels.rotate(q + h * C, cosine, sine, C, q + h * C);
            for (int64_t h = 0; h < KV; ++h) {
                float key[kMaxHeadDim];
                kernels.rotate(k + (t * KV + h) * C, cosine, sine, C, key);
                const int64_t place = h * cache.capacity + start + t;
                kernels.write(cache, cache.keys, cache.key_scale, place, key);
                kernels.write(cache, cache.values, cache.value_scale, place, v + (t * KV + h) * C);
            }
        }
    });
}

// T queries of H heads over one layer.
struct Attention {
    const AttentionKernels& kernels;
    const MixqFetch& fetch;
    const MixqKvCache& cache;
    const float* q;
    int64_t T, H, length, window;
    float* out;
    int64_t C = cache.head_dim, KV = cache.heads, group = H / KV;

    int64_t first_seen(int64_t t) const { return window > 0 ? std::max<int64_t>(0, length + t + 1 - window) : 0; }
    int64_t first_block(int64_t t) const { return first_seen(t) / kAttentionBlock; }
    int64_t last_block(int64_t t) const { return (length + t) / kAttentionBlock; }
    int64_t bytes() const { return 2 * KV * (length + T - first_seen(0)) * C * element_bytes(cache); }

    // Partials of query heads [g, g + count) of a kv head's group.
    void attend(int64_t t, int64_t head, int64_t g, int64_t count, int64_t block, Partial* to) const {
        const int64_t first = std::max(first_seen(t), block * kAttentionBlock);
        const int64_t end = std::min(length + t + 1, (block + 1) * kAttentionBlock);
        kernels.attend(cache, head, first, end, q + (t * H + head * group + g) * C, count, fetch, to);
    }
};

// A piece of work is one block of one kv head for all of a few rows: however many, memory is read once.
void few_rows(MixqContext& c, const Attention& a) {
    const int64_t base = a.first_block(0), blocks = a.last_block(a.T - 1) + 1 - base, pieces = a.KV * blocks;
    Partial* partials = reinterpret_cast<Partial*>(
        c.workspace.get(a.T * a.H * blocks * static_cast<int64_t>(sizeof(Partial))));  // [T, KV, blocks, group]
    auto place = [&](int64_t t, int64_t head, int64_t block) {
        return partials + ((t * a.KV + head) * blocks + block - base) * a.group;
    };
    c.pool.run(pieces, a.bytes() * a.T > kAloneBytes ? 1 : pieces, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t head = piece / blocks, block = base + piece % blocks;
            for (int64_t t = 0; t < a.T; ++t)
                if (a.first_block(t) <= block && block <= a.last_block(t))
                    a.attend(t, head, 0, a.group, block, place(t, head, block));
        }
    });
    c.pool.run(a.T * a.H, std::max<int64_t>(1, kAloneValues / (blocks * a.C)), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t t = row / a.H, head = row % a.H / a.group, g = row % a.H % a.group;
            Partial& all = place(t, head, a.first_block(t))[g];
            for (int64_t block = a.first_block(t) + 1; block <= a.last_block(t); ++block)
                a.kernels.combine(all, place(t, head, block)[g], a.C);
            a.kernels.finish(all, a.C, a.out + row * a.C);
        }
    });
}

// A piece of work is some rows of one kv head, block after block: working memory does not grow with the context.
void many_rows(MixqContext& c, const Attention& a) {
    const int64_t tiles = (a.T + kTileRows - 1) / kTileRows;
    Partial* all = reinterpret_cast<Partial*>(c.workspace.get(a.T * a.H * static_cast<int64_t>(sizeof(Partial))));
    c.pool.run(a.KV * tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t head = piece / tiles, t0 = piece % tiles * kTileRows, t1 = std::min(a.T, t0 + kTileRows);
            for (int64_t block = a.first_block(t0); block <= a.last_block(t1 - 1); ++block)
                for (int64_t t = t0; t < t1; ++t) {
                    if (block < a.first_block(t) || a.last_block(t) < block) continue;
                    for (int64_t g = 0; g < a.group; g += kTileHeads) {
                        const int64_t heads = std::min(kTileHeads, a.group - g);
                        Partial* so_far = all + t * a.H + head * a.group + g;
                        if (block == a.first_block(t)) {
                            a.attend(t, head, g, heads, block, so_far);
                            continue;
                        }
                        Partial next[kTileHeads];
                        a.attend(t, head, g, heads, block, next);
                        for (int64_t i = 0; i < heads; ++i) a.kernels.combine(so_far[i], next[i], a.C);
                    }
                }
            for (int64_t t = t0; t < t1; ++t)
                for (int64_t h = head * a.group; h < (head + 1) * a.group; ++h)
                    a.kernels.finish(all[t * a.H + h], a.C, a.out + (t * a.H + h) * a.C);
        }
    });
}

}  // namespace
}  // namespace mixq

void mixq_rotary_append(MixqContext* context, const MixqKvCache* cache, float* q, const float* k, const float* v,
                        const float* cos, const float* sin, int64_t T, int64_t H, int64_t start) {
    mixq::timed(context, [&](MixqContext& c) { mixq::rotary_append(c, *cache, q, k, v, cos, sin, T, H, start); });
}

int mixq_attention(MixqContext* context, const MixqKvCache* cache, const float* q, int64_t T, int64_t H, int64_t length,
                   int64_t window, float* out) {
    return mixq::timed(context, [&](MixqContext& c) {
        const mixq::Attention work{mixq::kernels_of(c.isa), c.fetch, *cache, q, T, H, length, window, out};
        T <= mixq::kFewRows ? mixq::few_rows(c, work) : mixq::many_rows(c, work);
    });
}
