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

// A panel for the integer kernels of many rows, in `memory` (c.gemm->panel_bytes); x[i] points to K inputs.
inline Panel pack_rows(MixqContext& c, const std::vector<const float*>& x, int64_t K, const Layout& layout, char* memory) {
    const int64_t T = static_cast<int64_t>(x.size()), pieces = (K + kTurn - 1) / kTurn;
    const Panel panel{layout, Order(K, layout.block), T, K, memory};
    c.pool.run(T * pieces, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = i / pieces, first = i % pieces * kTurn;
            c.gemm->pack(panel, t, x[static_cast<size_t>(t)] + first, first, std::min(K, first + kTurn));
        }
    });
    return panel;
}

// This thread's buffer for a tile of K inputs. It replaces that of the thread's earlier call.
inline char* tile_of_this_thread(const GemmKernels& gemm, const Layout& layout, int64_t K) {
    static thread_local Workspace workspace;
    return workspace.get(gemm.tile_bytes(layout, K));
}

// The codes of rows [begin, end), as far as the matrix has them.
inline Ahead codes_ahead(const MixqMatrix& w, int64_t begin, int64_t end) {
    const int64_t stride = row_stride(w);
    return {static_cast<const char*>(w.codes) + begin * stride, std::max<int64_t>(0, std::min(end, w.rows) - begin) * stride};
}

// Whether T rows are multiplied by the kernels of many rows: for speed alone, as the results are the same.
inline bool many_rows(const MixqContext& c, int64_t T) { return c.gemm && T >= c.gemm->from; }

inline bool is_quantized(const MixqMatrix& w) { return w.kind == MIXQ_NIBBLES || w.kind == MIXQ_BYTES; }

}  // namespace mixq
