// What the whole operations (linear.cpp, experts.cpp) share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "context.h"

namespace mixq {

// Rows of a matrix that make a piece of work: 16 to 64 KiB of weights.
inline int64_t grain_of(const MixqMatrix& w, int64_t total_rows, int threads) {
    const int64_t share = total_rows * row_stride(w) / (16 * threads);
    const int64_t bytes = std::min<int64_t>(std::max<int64_t>(share, 16 << 10), 64 << 10);
    return std::max<int64_t>(4, bytes / std::max<int64_t>(1, row_stride(w)) / 4 * 4);
}

// Prepare rows for the integer kernels in `memory` (x.size() * row_bytes); x[i] points to K inputs.
inline std::vector<Row> prepare_rows(MixqContext& c, const std::vector<const float*>& x, int64_t K, int forms, char* memory) {
    constexpr int64_t kChunksAtOnce = 16;
    std::vector<Row> rows(x.size());
    for (size_t i = 0; i < x.size(); ++i)
        rows[i] = lay_out_row(memory + static_cast<int64_t>(i) * row_bytes(K, forms), K, forms);
    const int64_t chunks = chunks_of(K);
    c.pool.run(static_cast<int64_t>(x.size()) * chunks, kChunksAtOnce, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t i = begin / chunks, first = begin % chunks, last = std::min(chunks, first + end - begin);
            c.decode.prepare(x[static_cast<size_t>(i)], K, first, last, forms, rows[static_cast<size_t>(i)]);
            begin += last - first;
        }
    });
    return rows;
}

// Pack rows for the bfloat16 kernels; x[i] points to K inputs.
inline void pack_rows(MixqContext& c, const std::vector<const float*>& x, int64_t K, uint32_t* panel) {
    c.pool.run((K + 1) / 2, 64, [&](int64_t begin, int64_t end) {
        c.gemm->pack(x.data(), static_cast<int64_t>(x.size()), K, begin, end, panel);
    });
}

// A thread's buffers for the bfloat16 kernels.
struct GemmBuffers {
    uint16_t* weights;
    float* sums[2];

    // For products with T tokens. What an earlier call of this thread returned is lost.
    static GemmBuffers of_this_thread(int64_t T) {
        static thread_local Workspace workspace;
        const int64_t sums = kGemmRows * padded_tokens(T) * 4, weights = kGemmRows * kGemmStride * 2;
        Cutter memory(workspace.get(Cutter::aligned(weights) + 2 * Cutter::aligned(sums)));
        GemmBuffers buffers;
        buffers.weights = reinterpret_cast<uint16_t*>(memory.cut(weights));
        for (float*& part : buffers.sums) part = memory.floats(kGemmRows * padded_tokens(T));
        return buffers;
    }
};

}  // namespace mixq
