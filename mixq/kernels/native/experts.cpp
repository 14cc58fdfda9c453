// The chosen experts of a layer: gate and up, SiLU, down, and the weighted sum.
//
// Axes: T tokens, A active experts, P = T * A pairs (token, choice), R pairs of one expert, D hidden, F ffn.

#include "api.h"
#include "operation.h"

namespace mixq {
namespace {

constexpr int64_t kPairsAtOnce = 256;  // whose activations are prepared together for the integer kernels
constexpr int64_t kTokensAtOnce = 1024;  // whose outputs are kept at once: 32 MiB for Mixtral
constexpr int64_t kGateRows = 64;      // gate and up are computed in turns of at least this many rows
constexpr int64_t kGateOutputs = 1024;  // and at least this many outputs: each turn starts with a wait for memory

// The matrices of one layer: gate (w1), down (w2) and up (w3) of each expert.
struct Experts {
    const MixqMatrix* w;
    const MixqMatrix& gate(int64_t expert) const { return w[3 * expert]; }
    const MixqMatrix& down(int64_t expert) const { return w[3 * expert + 1]; }
    const MixqMatrix& up(int64_t expert) const { return w[3 * expert + 2]; }
    int64_t D() const { return w[0].columns; }
    int64_t F() const { return w[0].rows; }
};

// An expert, and the pairs t * A + a that chose it.
struct Chosen {
    int64_t expert;
    std::vector<int64_t> pairs;
};

std::vector<Chosen> group_by_expert(const int64_t* ids, int64_t E, int64_t P) {
    std::vector<Chosen> groups(static_cast<size_t>(E));
    for (int64_t p = 0; p < P; ++p)
        if (ids[p] >= 0) groups[static_cast<size_t>(ids[p])].pairs.push_back(p);
    for (int64_t e = 0; e < E; ++e) groups[static_cast<size_t>(e)].expert = e;
    groups.erase(std::remove_if(groups.begin(), groups.end(), [](const Chosen& g) { return g.pairs.empty(); }), groups.end());
    return groups;
}

const void* codes_at(const MixqMatrix& w, int64_t n) {
    return n < w.rows ? static_cast<const char*>(w.codes) + n * row_stride(w) : nullptr;
}

// outputs[pair] for a few pairs of several experts, each expert's weights read once. At most kPairsAtOnce pairs.
void integer_experts(MixqContext& c, const Experts& experts, const float* x, int64_t A, const std::vector<Chosen>& groups,
                     float* outputs, Workspace& workspace) {
    const int64_t D = experts.D(), F = experts.F(), G = static_cast<int64_t>(groups.size());
    int forms_in = 0, forms_hidden = 0;
    std::vector<int64_t> tokens, first_pair;  // the tokens that chose any of them, and where each group's pairs begin
    int64_t P = 0;
    for (const Chosen& g : groups) {
        forms_in |= forms_of(experts.gate(g.expert)) | forms_of(experts.up(g.expert));
        forms_hidden |= forms_of(experts.down(g.expert));
        first_pair.push_back(P);
        P += static_cast<int64_t>(g.pairs.size());
        for (int64_t pair : g.pairs) tokens.push_back(pair / A);
    }
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    std::vector<const float*> inputs, middles;
    for (int64_t token : tokens) inputs.push_back(x + token * D);

    const int64_t in_bytes = static_cast<int64_t>(tokens.size()) * row_bytes(D, forms_in);
    Cutter memory(workspace.get(Cutter::aligned(in_bytes) + Cutter::aligned(P * row_bytes(F, forms_hidden)) +
                                Cutter::aligned(P * F * 4)));
    const std::vector<Row> in = prepare_rows(c, inputs, D, forms_in, memory.cut(in_bytes));
    char* hidden_rows = memory.cut(P * row_bytes(F, forms_hidden));
    float* hidden = memory.floats(P * F);  // in the order of the groups' pairs
    std::vector<const Row*> row_of_pair;
    for (const Chosen& g : groups)
        for (int64_t pair : g.pairs)
            row_of_pair.push_back(&in[static_cast<size_t>(std::lower_bound(tokens.begin(), tokens.end(), pair / A) - tokens.begin())]);

    c.pool.run(G * F, kGateRows, [&](int64_t begin, int64_t end) {
        static thread_local std::vector<float> buffer(2 * kPairsAtOnce * kGateRows);
        float *gate[kPairsAtOnce], *up[kPairsAtOnce];
        while (begin < end) {
            const int64_t which = begin / F, start = first_pair[static_cast<size_t>(which)];
            const Chosen& g = groups[static_cast<size_t>(which)];
            const MixqMatrix &w1 = experts.gate(g.expert), &w3 = experts.up(g.expert);
            const int64_t R = static_cast<int64_t>(g.pairs.size());
            const Row* const* rows = row_of_pair.data() + start;
            const int64_t turn = std::max(kGateRows, kGateOutputs / R);
            const int64_t n = begin % F, stop = std::min({n + turn, F, n + end - begin});
            const bool goes_on = begin + stop - n < end;
            for (int64_t i = 0; i < R; ++i) {
                gate[i] = buffer.data() + 2 * i * turn;
                up[i] = gate[i] + turn;
            }
            c.decode.multiply(w1, n, stop, rows, R, gate, codes_at(w3, n), c.fetch);
            c.decode.multiply(w3, n, stop, rows, R, up, goes_on ? codes_at(w1, stop) : nullptr, c.fetch);
            for (int64_t i = 0; i < R; ++i) c.decode.silu_mul(gate[i], up[i], hidden + (start + i) * F + n, stop - n);
            begin += stop - n;
        }
    });

    for (int64_t i = 0; i < P; ++i) middles.push_back(hidden + i * F);
    const std::vector<Row> middle = prepare_rows(c, middles, F, forms_hidden, hidden_rows);
    const int64_t grain = grain_of(experts.down(groups[0].expert), G * D, c.pool.threads());
    c.pool.run(G * D, grain, [&](int64_t begin, int64_t end) {
        const Row* rows[kPairsAtOnce];
        float* out[kPairsAtOnce];
        while (begin < end) {
            const int64_t which = begin / D, start = first_pair[static_cast<size_t>(which)];
            const Chosen& g = groups[static_cast<size_t>(which)];
            const int64_t R = static_cast<int64_t>(g.pairs.size());
            const int64_t n = begin % D, stop = std::min(D, n + end - begin);
            for (int64_t i = 0; i < R; ++i) {
                rows[i] = &middle[static_cast<size_t>(start + i)];
                out[i] = outputs + g.pairs[static_cast<size_t>(i)] * D + n;
            }
            const bool goes_on = which + 1 < G && begin + stop - n < end;
            const void* next = goes_on ? experts.down(groups[static_cast<size_t>(which + 1)].expert).codes : nullptr;
            c.decode.multiply(experts.down(g.expert), n, stop, rows, R, out, next, c.fetch);
            begin += stop - n;
        }
    });
}

// outputs[pair] for many pairs of one expert, whose matrices are quantized.
void many_pairs_of_expert(MixqContext& c, const Experts& experts, const float* x, int64_t A, const Chosen& g, float* outputs,
                          Workspace& workspace) {
    const MixqMatrix &w1 = experts.gate(g.expert), &w2 = experts.down(g.expert), &w3 = experts.up(g.expert);
    const GemmKernels& gemm = *c.gemm;
    const Layout of_gate = Layout::of(w1), of_up = Layout::of(w3), of_down = Layout::of(w2);
    const int64_t D = experts.D(), F = experts.F(), R = static_cast<int64_t>(g.pairs.size()), N = gemm.outputs;
    const int64_t gate_bytes = gemm.panel_bytes(of_gate, R, D), up_bytes = of_up == of_gate ? 0 : gemm.panel_bytes(of_up, R, D);
    const int64_t down_bytes = gemm.panel_bytes(of_down, R, F);
    Cutter memory(workspace.get(Cutter::aligned(gate_bytes) + Cutter::aligned(up_bytes) + Cutter::aligned(down_bytes)));
    std::vector<const float*> inputs;
    std::vector<float*> places;
    for (int64_t pair : g.pairs) inputs.push_back(x + pair / A * D), places.push_back(outputs + pair * D);
    const Panel for_gate = pack_rows(c, inputs, D, of_gate, memory.cut(gate_bytes));
    const Panel for_up = up_bytes ? pack_rows(c, inputs, D, of_up, memory.cut(up_bytes)) : for_gate;
    const Panel hidden{of_down, Order(F, of_down.block), R, F, memory.cut(down_bytes)};

    auto multiply = [&](const MixqMatrix& w, int64_t n, int64_t stop, const Panel& panel, float* const* out, const Ahead& ahead) {
        char* tile = tile_of_this_thread(gemm, panel.layout, w.columns);
        gemm.expand(w, n, stop, panel.order, tile);
        gemm.multiply(w, n, stop, tile, panel, out, ahead);
    };
    c.pool.run((F + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {  // blocks of hidden values with one scale
        static thread_local std::vector<float> buffer;
        static thread_local std::vector<float*> out;
        buffer.resize(static_cast<size_t>(2 * R * kBlock)), out.resize(static_cast<size_t>(2 * R));
        for (int64_t n = begin * kBlock; n < std::min(F, end * kBlock); n += kBlock) {
            const int64_t last = std::min(F, n + kBlock);
            for (int64_t first = n; first < last; first += N) {
                for (int64_t i = 0; i < 2 * R; ++i) out[static_cast<size_t>(i)] = buffer.data() + i * kBlock + first - n;
                const int64_t stop = std::min(last, first + N);
                multiply(w1, first, stop, for_gate, out.data(), codes_ahead(w3, first, stop));
                multiply(w3, first, stop, for_up, out.data() + R, codes_ahead(w1, stop, stop < end * kBlock ? stop + N : stop));
            }
            for (int64_t i = 0; i < R; ++i) {
                float *gate = buffer.data() + i * kBlock, *up = gate + R * kBlock;
                c.decode.silu_mul(gate, up, gate, last - n);
                gemm.pack(hidden, i, gate, n, last);
            }
        }
    });
    c.pool.run((D + N - 1) / N, 1, [&](int64_t begin, int64_t end) {
        static thread_local std::vector<float*> out;
        out.resize(static_cast<size_t>(R));
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t n = tile * N, stop = std::min(D, n + N);
            for (int64_t i = 0; i < R; ++i) out[static_cast<size_t>(i)] = places[static_cast<size_t>(i)] + n;
            multiply(w2, n, stop, hidden, out.data(), codes_ahead(w2, stop, tile + 1 < end ? stop + N : stop));
        }
    });
}

bool has_quantized(const Experts& experts, int64_t expert) {
    return is_quantized(experts.gate(expert)) && is_quantized(experts.down(expert)) &&
           is_quantized(experts.up(expert));
}

void weighted_sum(MixqContext& c, const float* outputs, const int64_t* ids, const float* weights, int64_t T, int64_t A, int64_t D,
                    float* out) {
    c.pool.run(T, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            std::fill(out + t * D, out + (t + 1) * D, 0.0f);
            for (int64_t a = 0; a < A; ++a) {
                if (ids[t * A + a] < 0) continue;  // computed elsewhere
                const float share = weights[t * A + a];
                const float* output = outputs + (t * A + a) * D;
                for (int64_t d = 0; d < D; ++d) out[t * D + d] += share * output[d];
            }
        }
    });
}

void run(MixqContext& c, const Experts& experts, int64_t E, const float* x, int64_t T, int64_t A, const int64_t* ids,
         const float* weights, float* out) {
    const int64_t D = experts.D();
    float* outputs = reinterpret_cast<float*>(c.outputs.get(T * A * D * 4));
    std::vector<Chosen> few;
    int64_t pairs_of_few = 0;
    auto flush = [&] {
        if (!few.empty()) integer_experts(c, experts, x, A, few, outputs, c.workspace);
        few.clear(), pairs_of_few = 0;
    };
    for (Chosen& g : group_by_expert(ids, E, T * A)) {
        const int64_t pairs = static_cast<int64_t>(g.pairs.size());
        if (many_rows(c, pairs) && has_quantized(experts, g.expert)) {
            many_pairs_of_expert(c, experts, x, A, g, outputs, c.workspace);
            continue;
        }
        if (pairs_of_few + pairs > kPairsAtOnce) flush();
        pairs_of_few += pairs;
        few.push_back(std::move(g));
    }
    flush();
    weighted_sum(c, outputs, ids, weights, T, A, D, out);
}

}  // namespace
}  // namespace mixq

int mixq_experts(MixqContext* context, const MixqMatrix* w, int64_t E, const float* x, int64_t T, int64_t A,
                 const int64_t* ids, const float* weights, float* out) {
    const mixq::Experts experts{w};
    const int64_t D = experts.D();
    // The kernels of few rows take kPairsAtOnce pairs.
    bool many = context->gemm != nullptr;
    for (int64_t e = 0; e < E; ++e) many = many && mixq::has_quantized(experts, e);
    const int64_t some = many ? mixq::kTokensAtOnce : std::max<int64_t>(1, mixq::kPairsAtOnce / A);
    return mixq::timed(context, [&](MixqContext& c) {
        for (int64_t t = 0; t < T; t += some)
            mixq::run(c, experts, E, x + t * D, std::min(some, T - t), A, ids + t * A, weights + t * A, out + t * D);
    });
}
