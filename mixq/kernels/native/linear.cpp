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
                c.decode.multiply(*w[i], begin - base, stop - base, which, some, out, next);
                begin = stop;
            }
        });
    }
}

void bf16_linear(MixqContext& c, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    const int64_t K = w[0]->columns;
    std::vector<const float*> inputs;
    for (int64_t t = 0; t < T; ++t) inputs.push_back(x + t * K);
    uint32_t* panel = reinterpret_cast<uint32_t*>(c.workspace.get(panel_pairs(T, K) * 4));
    pack_rows(c, inputs, K, panel);
    for (int i = 0; i < count; ++i)
        multiply_panel(c, *w[i], panel, T, [&](int64_t t) { return y[i] + t * w[i]->rows; });
}

}  // namespace
}  // namespace mixq

int mixq_linear(MixqContext* context, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    return mixq::timed(context, [&](MixqContext& c) {
        int forms = 0;
        for (int i = 0; i < count; ++i) forms |= mixq::forms_of(*w[i]);
        if (T > c.integer_rows)
            mixq::bf16_linear(c, count, w, x, T, y);
        else
            mixq::integer_linear(c, count, w, x, T, y, forms);
    });
}

int mixq_router(MixqContext* context, const MixqMatrix* w, const float* x, int64_t T, float* y) {
    return mixq::timed(context, [&](MixqContext& c) { mixq::integer_linear(c, 1, &w, x, T, &y, mixq::kUnrounded); });
}

void mixq_set_integer_rows(MixqContext* context, int64_t rows) {
    if (context->gemm) context->integer_rows = rows;
}

int64_t mixq_integer_rows(const MixqContext* context) { return context->integer_rows; }

int mixq_dequantize(MixqContext* context, const MixqMatrix* w, int64_t begin, int64_t end, void* out) {
    if (!context->gemm) return 1;
    return mixq::timed(context, [&](MixqContext& c) {
        c.pool.run(end - begin, 16, [&](int64_t first, int64_t last) {
            for (int64_t n = first; n < last; ++n)
                c.gemm->dequantize(*w, begin + n, static_cast<uint16_t*>(out) + n * w->columns);
        });
    });
}
