// Whole operations out of the row kernels: plain linears, the router, a layer's experts.

#include <algorithm>
#include <vector>

#include "api.h"
#include "context.h"

namespace mixq {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // activations prepared together: 36 KiB a row of 4096 inputs
constexpr int64_t kPreparedChunks = 16;
constexpr int64_t kGateRows = 64;  // gate and up are computed in turns of this many rows

// Rows of a matrix that make a piece of work: 16 to 64 KiB of weights, whole blocks of 4 rows.
int64_t grain_of(const MixqMatrix& w, int64_t total_rows, int threads) {
    const int64_t share = total_rows * row_stride(w) / (16 * threads);
    const int64_t bytes = std::min<int64_t>(std::max<int64_t>(share, 16 << 10), 64 << 10);
    return std::max<int64_t>(4, bytes / std::max<int64_t>(1, row_stride(w)) / 4 * 4);
}

// Prepare T rows of activations in `memory`.
std::vector<Row> prepare_rows(MixqContext& c, const float* x, int64_t T, int64_t K, int forms, char* memory) {
    std::vector<Row> rows(static_cast<size_t>(T));
    for (int64_t t = 0; t < T; ++t) rows[static_cast<size_t>(t)] = lay_out_row(memory + t * row_bytes(K), K);
    const int64_t chunks = chunks_of(K);
    c.pool.run(T * chunks, kPreparedChunks, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
            const int64_t t = i / chunks, first = i % chunks, last = std::min(chunks, first + end - i);
            c.decode.prepare(x + t * K, K, first, last, forms, rows[static_cast<size_t>(t)]);
            i += last - first;
        }
    });
    return rows;
}

const void* codes_at(const MixqMatrix& w, int64_t n) {
    return n < w.rows ? static_cast<const char*>(w.codes) + n * row_stride(w) : nullptr;
}

void linear(MixqContext& c, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y,
            int forms) {
    const int64_t K = w[0]->columns;
    std::vector<int64_t> ends;
    int64_t total = 0;
    for (int i = 0; i < count; ++i) ends.push_back(total += w[i]->rows);
    const int64_t grain = grain_of(*w[0], total, c.pool.threads());
    for (int64_t t0 = 0; t0 < T; t0 += kRowsAtOnce) {
        const int64_t some = std::min(kRowsAtOnce, T - t0);
        const std::vector<Row> rows = prepare_rows(c, x + t0 * K, some, K, forms, c.workspace.get(some * row_bytes(K)));
        c.pool.run(total, grain, [&](int64_t begin, int64_t end) {
            const Row* which[kRowsAtOnce];
            for (int64_t t = 0; t < some; ++t) which[t] = &rows[static_cast<size_t>(t)];
            for (int i = 0; begin < end; ++i) {
                if (begin >= ends[static_cast<size_t>(i)]) continue;
                const int64_t base = ends[static_cast<size_t>(i)] - w[i]->rows;
                const int64_t stop = std::min(end, ends[static_cast<size_t>(i)]);
                float* out[kRowsAtOnce];
                for (int64_t t = 0; t < some; ++t) out[t] = y[i] + (t0 + t) * w[i]->rows + begin - base;
                c.decode.multiply(*w[i], begin - base, stop - base, which, some, out, nullptr);
                begin = stop;
            }
        });
    }
}

// The tokens that chose one expert, and where in [T, A] they did.
struct Chosen {
    int64_t expert;
    std::vector<int64_t> pairs;  // t * A + a
};

std::vector<Chosen> group_by_expert(const int64_t* ids, int64_t pairs) {
    std::vector<Chosen> groups;
    for (int64_t p = 0; p < pairs; ++p) {
        auto same = [&](const Chosen& g) { return g.expert == ids[p]; };
        auto found = std::find_if(groups.begin(), groups.end(), same);
        if (found == groups.end()) found = groups.insert(groups.end(), Chosen{ids[p], {}});
        found->pairs.push_back(p);
    }
    return groups;
}

// One pass over the chosen experts' weights for at most kRowsAtOnce pairs. Axes: D hidden, F ffn, P pairs (t, a).
void experts(MixqContext& c, const MixqMatrix* w, const float* x, int64_t T, int64_t A, const int64_t* ids,
             const float* weights, float* out) {
    const int64_t D = w[0].columns, F = w[0].rows, P = T * A;
    const std::vector<Chosen> groups = group_by_expert(ids, P);
    int forms_in = 0, forms_hidden = 0;
    for (const Chosen& g : groups) {
        forms_in |= forms_of(w[3 * g.expert]) | forms_of(w[3 * g.expert + 2]);
        forms_hidden |= forms_of(w[3 * g.expert + 1]);
    }
    Cutter memory(c.workspace.get(Cutter::aligned(T * row_bytes(D)) + Cutter::aligned(P * row_bytes(F)) +
                                  Cutter::aligned(P * F * 4) + Cutter::aligned(P * D * 4)));
    const std::vector<Row> in = prepare_rows(c, x, T, D, forms_in, memory.cut(T * row_bytes(D)));
    char* hidden_rows = memory.cut(P * row_bytes(F));
    float* hidden = memory.floats(P * F);
    float* answers = memory.floats(P * D);

    c.pool.run(static_cast<int64_t>(groups.size()) * F, kGateRows, [&](int64_t begin, int64_t end) {
        float gate[kRowsAtOnce][kGateRows], up[kRowsAtOnce][kGateRows];
        float *gate_rows[kRowsAtOnce], *up_rows[kRowsAtOnce];
        for (int64_t t = 0; t < kRowsAtOnce; ++t) gate_rows[t] = gate[t], up_rows[t] = up[t];
        while (begin < end) {
            const Chosen& g = groups[static_cast<size_t>(begin / F)];
            const MixqMatrix &w1 = w[3 * g.expert], &w3 = w[3 * g.expert + 2];
            const int64_t R = static_cast<int64_t>(g.pairs.size());
            const Row* rows[kRowsAtOnce];
            for (int64_t i = 0; i < R; ++i) rows[i] = &in[static_cast<size_t>(g.pairs[static_cast<size_t>(i)] / A)];
            const int64_t n = begin % F, stop = std::min({n + kGateRows, F, n + end - begin});
            const bool goes_on = begin + stop - n < end;
            c.decode.multiply(w1, n, stop, rows, R, gate_rows, codes_at(w3, n));
            c.decode.multiply(w3, n, stop, rows, R, up_rows, goes_on ? codes_at(w1, stop) : nullptr);
            for (int64_t i = 0; i < R; ++i)
                c.decode.silu_mul(gate[i], up[i], hidden + g.pairs[static_cast<size_t>(i)] * F + n, stop - n);
            begin += stop - n;
        }
    });

    const std::vector<Row> middle = prepare_rows(c, hidden, P, F, forms_hidden, hidden_rows);
    const int64_t grain = grain_of(w[3 * groups[0].expert + 1], static_cast<int64_t>(groups.size()) * D, c.pool.threads());
    c.pool.run(static_cast<int64_t>(groups.size()) * D, grain, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const Chosen& g = groups[static_cast<size_t>(begin / D)];
            const int64_t R = static_cast<int64_t>(g.pairs.size());
            const int64_t n = begin % D, stop = std::min(D, n + end - begin);
            const Row* rows[kRowsAtOnce];
            float* place[kRowsAtOnce];
            for (int64_t i = 0; i < R; ++i) {
                const int64_t pair = g.pairs[static_cast<size_t>(i)];
                rows[i] = &middle[static_cast<size_t>(pair)];
                place[i] = answers + pair * D + n;
            }
            c.decode.multiply(w[3 * g.expert + 1], n, stop, rows, R, place, nullptr);
            begin += stop - n;
        }
    });

    for (int64_t t = 0; t < T; ++t) {
        std::fill(out + t * D, out + (t + 1) * D, 0.0f);
        for (int64_t a = 0; a < A; ++a) {
            const float share = weights[t * A + a];
            const float* answer = answers + (t * A + a) * D;
            for (int64_t d = 0; d < D; ++d) out[t * D + d] += share * answer[d];
        }
    }
}

}  // namespace
}  // namespace mixq

int mixq_linear(MixqContext* context, int count, const MixqMatrix* const* w, const float* x, int64_t T, float* const* y) {
    mixq::Timer timer(context);
    int forms = 0;
    for (int i = 0; i < count; ++i) forms |= mixq::forms_of(*w[i]);
    try {
        mixq::linear(*context, count, w, x, T, y, forms);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int mixq_router(MixqContext* context, const MixqMatrix* w, const float* x, int64_t T, float* y) {
    mixq::Timer timer(context);
    try {
        mixq::linear(*context, 1, &w, x, T, &y, mixq::kUnrounded);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

int mixq_experts(MixqContext* context, const MixqMatrix* w, int64_t /*E*/, const float* x, int64_t T, int64_t A,
                 const int64_t* ids, const float* weights, float* out) {
    mixq::Timer timer(context);
    const int64_t D = w[0].columns, some = std::max<int64_t>(1, mixq::kRowsAtOnce / A);
    try {
        for (int64_t t = 0; t < T; t += some)
            mixq::experts(*context, w, x + t * D, std::min(some, T - t), A, ids + t * A, weights + t * A, out + t * D);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
