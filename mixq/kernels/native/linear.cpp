// Plain linears and the router, out of the row kernels.

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
            int64_t base = 0;  // the matrices' rows follow one another
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
    const int64_t stride = padded_tokens(T);
    for (int i = 0; i < count; ++i) {
        const int64_t N = w[i]->rows;
        c.pool.run(N, kGemmRows, [&](int64_t begin, int64_t end) {
            const GemmBuffers buffers = GemmBuffers::of_this_thread(T);
            float* sums = buffers.sums[0];
            for (; begin < end; begin += kGemmRows) {
                const int64_t stop = std::min(end, begin + kGemmRows);
                c.gemm->multiply(*w[i], begin, stop, panel, T, buffers.weights, sums);
                for (int64_t t = 0; t < T; ++t)
                    for (int64_t n = begin; n < stop; ++n) y[i][t * N + n] = sums[(n - begin) * stride + t];
            }
        });
    }
}

}  // namespace
}  // namespace mixq

int mixq_linear(MixqContext* context, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    mixq::Timer timer(context);
    int forms = 0;
    for (int i = 0; i < count; ++i) forms |= mixq::forms_of(*w[i]);
    try {
        if (T > context->integer_rows)
            mixq::bf16_linear(*context, count, w, x, T, y);
        else
            mixq::integer_linear(*context, count, w, x, T, y, forms);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int mixq_router(MixqContext* context, const MixqMatrix* w, const float* x, int64_t T, float* y) {
    mixq::Timer timer(context);
    try {
        mixq::integer_linear(*context, 1, &w, x, T, &y, mixq::kUnrounded);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

void mixq_set_integer_rows(MixqContext* context, int64_t rows) {
    if (context->gemm) context->integer_rows = rows;
}

int64_t mixq_integer_rows(const MixqContext* context) { return context->integer_rows; }

int mixq_dequantize(MixqContext* context, const MixqMatrix* w, int64_t begin, int64_t end, void* out) {
    if (!context->gemm) return 1;
    mixq::Timer timer(context);
    const int64_t K = w->columns;
    context->pool.run(end - begin, 16, [&](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n)
            context->gemm->dequantize(*w, begin + n, static_cast<uint16_t*>(out) + n * K);
    });
    return 0;
}
