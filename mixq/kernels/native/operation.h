// Shared by linear.cpp and experts.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "context.h"

namespace mixq {

// Rows of a matrix in a piece of work: 16 to 64 KiB of weights.
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

    // For products with T tokens. They replace those of the thread's earlier calls.
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

// out(t)[n] = W[n] . row t, for the T rows of a panel.
template <class Out>
void multiply_panel(MixqContext& c, const MixqMatrix& w, const uint32_t* panel, int64_t T, const Out& out) {
    c.pool.run(w.rows, kGemmRows, [&](int64_t begin, int64_t end) {
        const GemmBuffers buffers = GemmBuffers::of_this_thread(T);
        float* sums = buffers.sums[0];
        for (; begin < end; begin += kGemmRows) {
            const int64_t stop = std::min(end, begin + kGemmRows);
            c.gemm->multiply(w, begin, stop, panel, T, buffers.weights, sums);
            for (int64_t t = 0; t < T; ++t) {
                float* row = out(t);
                for (int64_t n = begin; n < stop; ++n) row[n] = sums[(n - begin) * padded_tokens(T) + t];
            }
        }
    });
}

}  // namespace mixq
