// Linear layers and the router.

#include "api.h"
#include "operation.h"

namespace mixq {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // activations prepared together for the integer kernels

void integer_linear(MixqContext& c, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y,
                    int forms) {
    const int64_t K = w[0]->columns;
    int64_t total = 0;
    for (int i = 0; i < count; ++i) total += w[i]->rows;
    const int64_t grain = grain_of(*w[0], total, c.pool.threads());
    for (int64_t t0 = 0; t0 < T; t0 += kRowsAtOnce) {
        const int64_t some = std::min(kRowsAtOnce, T - t0);
        std::vector<const float*> inputs;
        for (int64_t t = t0; t < t0 + some; ++t) inputs.push_back(x + t * K);
        const std::vector<Row> rows = prepare_rows(c, inputs, K, forms, c.workspace.get(some * row_bytes(K, forms)));
        c.pool.run(total, grain, [&](int64_t begin, int64_t end) {
            const Row* which[kRowsAtOnce];
            for (int64_t t = 0; t < some; ++t) which[t] = &rows[static_cast<size_t>(t)];
            int64_t base = 0;  // the matrices' rows are numbered in order
            for (int i = 0; i < count && begin < end; base += w[i]->rows, ++i) {
                const int64_t stop = std::min(end, base + w[i]->rows);
                if (begin >= stop) continue;
                float* out[kRowsAtOnce];
                for (int64_t t = 0; t < some; ++t) out[t] = y[i] + (t0 + t) * w[i]->rows + begin - base;
                const void* next = i + 1 < count && end > stop ? w[i + 1]->codes : nullptr;
                c.decode.multiply(*w[i], begin - base, stop - base, which, some, out, next, c.fetch);
                begin = stop;
            }
        });
    }
}

// The same for many rows; quantized matrices.
void many_linear(MixqContext& c, const std::vector<const MixqMatrix*>& w, const float* x, int64_t T, const std::vector<float*>& y) {
    const int64_t K = w[0]->columns, N = c.gemm->outputs;
    std::vector<Layout> layouts;
    std::vector<size_t> panel_of, matrix_of;  // of a matrix, and of a tile
    std::vector<int64_t> first_tile;
    int64_t tiles = 0, bytes = 0;
    for (const MixqMatrix* matrix : w) {
        const auto found = std::find(layouts.begin(), layouts.end(), Layout::of(*matrix));
        panel_of.push_back(static_cast<size_t>(found - layouts.begin()));
        if (found == layouts.end()) layouts.push_back(Layout::of(*matrix));
        first_tile.push_back(tiles);
        tiles += (matrix->rows + N - 1) / N;
        matrix_of.resize(static_cast<size_t>(tiles), first_tile.size() - 1);
    }
    for (const Layout& layout : layouts) bytes += Cutter::aligned(c.gemm->panel_bytes(layout, T, K));
    Cutter memory(c.workspace.get(bytes));
    std::vector<const float*> inputs;
    for (int64_t t = 0; t < T; ++t) inputs.push_back(x + t * K);
    std::vector<Panel> panels;
    for (const Layout& layout : layouts)
        panels.push_back(pack_rows(c, inputs, K, layout, memory.cut(c.gemm->panel_bytes(layout, T, K))));
    c.pool.run(tiles, 1, [&](int64_t begin, int64_t end) {
        static thread_local std::vector<float*> out;
        out.resize(static_cast<size_t>(T));
        for (int64_t i = begin; i < end; ++i) {
            const size_t which = matrix_of[static_cast<size_t>(i)];
            const MixqMatrix& matrix = *w[which];
            const Panel& panel = panels[panel_of[which]];
            const int64_t n = (i - first_tile[which]) * N, stop = std::min(matrix.rows, n + N);
            for (int64_t t = 0; t < T; ++t) out[static_cast<size_t>(t)] = y[which] + t * matrix.rows + n;
            char* tile = tile_of_this_thread(*c.gemm, panel.layout, K);
            c.gemm->expand(matrix, n, stop, panel.order, tile);
            c.gemm->multiply(matrix, n, stop, tile, panel, out.data(), codes_ahead(matrix, stop, i + 1 < end ? stop + N : stop));
        }
    });
}

// Quantized matrices as above, the others by the kernels of few rows.
void mixed_linear(MixqContext& c, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    std::vector<const MixqMatrix*> quantized;
    std::vector<float*> places;
    for (int i = 0; i < count; ++i) {
        if (is_quantized(*w[i]))
            quantized.push_back(w[i]), places.push_back(y[i]);
        else
            integer_linear(c, 1, w + i, x, T, y + i, forms_of(*w[i]));
    }
    if (!quantized.empty()) many_linear(c, quantized, x, T, places);
}

}  // namespace
}  // namespace mixq

int mixq_linear(MixqContext* context, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    return mixq::timed(context, [&](MixqContext& c) {
        if (mixq::many_rows(c, T)) return mixq::mixed_linear(c, count, w, x, T, y);
        int forms = 0;
        for (int i = 0; i < count; ++i) forms |= mixq::forms_of(*w[i]);
        mixq::integer_linear(c, count, w, x, T, y, forms);
    });
}

int mixq_router(MixqContext* context, const MixqMatrix* w, const float* x, int64_t T, float* y) {
    return mixq::timed(context, [&](MixqContext& c) { mixq::integer_linear(c, 1, &w, x, T, &y, mixq::kUnrounded); });
}

void mixq_set_fetch(MixqContext* context, const MixqFetch* fetch) { context->fetch = *fetch; }
