#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "api.h"
#include "context.h"
#include "cpu.h"
#include "target.h"

namespace mixq {

namespace portable {
namespace {
#include "simd_portable.inc"
#include "math.inc"
#include "attention_portable.inc"
#include "attention.inc"
}  // namespace
}  // namespace portable

#if MIXQ_X86
namespace avx2 {
namespace {
MIXQ_BEGIN_AVX2
#define MIXQ_VNNI 0
#include "simd_avx2.inc"
#include "math.inc"
#include "attention_avx2.inc"
#include "attention.inc"
#undef MIXQ_VNNI
MIXQ_END
}  // namespace
}  // namespace avx2

namespace avx512 {
namespace {
MIXQ_BEGIN_AVX512
#include "simd_avx512.inc"
#include "math.inc"
#include "attention_avx512.inc"
#include "attention.inc"
MIXQ_END
}  // namespace
}  // namespace avx512
#endif

const AttentionKernels& attention_kernels(int isa) {
    switch (isa) {
#if MIXQ_X86
        case MIXQ_ISA_AVX512_BF16:
        case MIXQ_ISA_AVX512: return avx512::kAttention;
        case MIXQ_ISA_AVX_VNNI:
        case MIXQ_ISA_AVX2: return avx2::kAttention;
#endif
        default: return portable::kAttention;
    }
}

namespace {

// Less than this many bytes or values are not worth waking a thread for.
constexpr int64_t kAloneBytes = 64 << 10;
constexpr int64_t kAloneValues = 16 << 10;
constexpr int64_t kMergeValues = 64 << 10;

int64_t element_bytes(const MixqKvCache& cache) {
    return cache.kind == MIXQ_KV_BF16 ? 2 : cache.kind == MIXQ_KV_INT8 ? 1 : 4;
}

void rotary_append(MixqContext& c, const MixqKvCache& cache, float* q, const float* k, const float* v, const float* cos,
                   const float* sin, int64_t T, int64_t H, int64_t start) {
    const AttentionKernels& kernels = attention_kernels(c.isa);
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

// A piece of work is one block of one kv head, for every row: the block is read from memory once, however many rows.
void attention(MixqContext& c, const MixqKvCache& cache, const float* q, int64_t T, int64_t H, int64_t length,
               int64_t window, float* out) {
    const AttentionKernels& kernels = attention_kernels(c.isa);
    const int64_t C = cache.head_dim, KV = cache.heads, group = H / KV;
    auto first_seen = [&](int64_t t) { return window > 0 ? std::max<int64_t>(0, length + t + 1 - window) : 0; };
    const int64_t base = first_seen(0) / kAttentionBlock;
    const int64_t blocks = (length + T - 1) / kAttentionBlock + 1 - base;
    Partial* partials = reinterpret_cast<Partial*>(
        c.workspace.get(T * H * blocks * static_cast<int64_t>(sizeof(Partial))));  // [T, KV, blocks, group]

    const int64_t bytes = 2 * KV * (length + T - first_seen(0)) * C * element_bytes(cache);
    c.pool.run(KV * blocks, bytes * T > kAloneBytes ? 1 : KV * blocks, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
            const int64_t head = piece / blocks, block = piece % blocks;
            for (int64_t t = 0; t < T; ++t) {
                const int64_t first = std::max(first_seen(t), (base + block) * kAttentionBlock);
                const int64_t stop = std::min(length + t + 1, (base + block + 1) * kAttentionBlock);
                if (first < stop)
                    kernels.attend(cache, head, first, stop, q + (t * H + head * group) * C, group,
                                   partials + ((t * KV + head) * blocks + block) * group);
            }
        }
    });
    const int64_t merge_grain = std::max<int64_t>(1, kMergeValues / (blocks * C));
    c.pool.run(T * H, merge_grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t t = row / H, h = row % H;
            const int64_t first = first_seen(t) / kAttentionBlock, last = (length + t) / kAttentionBlock;
            kernels.merge(partials + ((t * KV + h / group) * blocks + first - base) * group + h % group, last - first + 1,
                          group, C, out + row * C);
        }
    });
}

}  // namespace
}  // namespace mixq

void mixq_rotary_append(MixqContext* context, const MixqKvCache* cache, float* q, const float* k, const float* v,
                        const float* cos, const float* sin, int64_t T, int64_t H, int64_t start) {
    mixq::Timer timer(context);
    mixq::rotary_append(*context, *cache, q, k, v, cos, sin, T, H, start);
}

int mixq_attention(MixqContext* context, const MixqKvCache* cache, const float* q, int64_t T, int64_t H, int64_t length,
                   int64_t window, float* out) {
    mixq::Timer timer(context);
    try {
        mixq::attention(*context, *cache, q, T, H, length, window, out);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
