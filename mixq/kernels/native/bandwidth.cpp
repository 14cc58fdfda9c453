// How fast this machine's cores read memory: the limit with which the decode kernels' speeds are compared.

#include <atomic>
#include <cstring>

#include "api.h"
#include "context.h"
#include "target.h"

namespace mixq {
namespace {

#include "fetch.inc"

using Lanes = uint64_t __attribute__((vector_size(64)));

constexpr int64_t kPiece = 1 << 20;

inline void add_line(const char* p, Lanes& sum) {
    Lanes line;
    std::memcpy(&line, p, sizeof(line));  // at any address
    sum += line;
}

uint64_t total(const Lanes* sums) {
    const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return all[0] + all[1] + all[2] + all[3] + all[4] + all[5] + all[6] + all[7];
}

uint64_t plain(const char* p, int64_t bytes, const MixqFetch& fetch) {
    Lanes sums[4] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        fetch_lines(p + i + fetch.distance, 4, fetch);
        for (int j = 0; j < 4; ++j) add_line(p + i + 64 * j, sums[j]);  // the compiler picks the registers
    }
    return total(sums);
}

// Four rows of 2 KiB in parallel, prefetching the next four: the order of the kernels for 4096 inputs.
uint64_t by_rows(const char* p, int64_t bytes) {
    constexpr int64_t kRow = 2048;
    Lanes sums[4] = {};
    for (int64_t block = 0; block + 4 * kRow <= bytes; block += 4 * kRow)
        for (int64_t i = 0; i < kRow; i += 64)
            for (int r = 0; r < 4; ++r) {
                __builtin_prefetch(p + block + (4 + r) * kRow + i);
                add_line(p + block + r * kRow + i, sums[r]);
            }
    return total(sums);
}

constexpr MixqFetch kNone = {MIXQ_FETCH_NONE, 1, 0, 0}, kNear = {MIXQ_FETCH_TWICE, 1, 4096, 4096};

}  // namespace
}  // namespace mixq

int64_t mixq_read(MixqContext* context, const void* data, int64_t bytes, int kind) {
    std::atomic<uint64_t> total{0};
    const char* p = static_cast<const char*>(data);
    context->pool.run(bytes, mixq::kPiece, [&](int64_t begin, int64_t end) {
        const MixqFetch& fetch = kind == 0 ? mixq::kNone : kind == 1 ? mixq::kNear : context->fetch;
        total += kind == 2 ? mixq::by_rows(p + begin, end - begin) : mixq::plain(p + begin, end - begin, fetch);
    });
    return static_cast<int64_t>(total.load());
}
