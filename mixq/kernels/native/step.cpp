// The router's choice, and a decode step in one call.
//
// Contract: a step is the operations of api.h one after the other, so that its results have the bits of the separate
// calls. Between two calls from Python, the code and data of the interpreter and of torch have left the CPU's caches:
// that costs 50 to 100 us for each operation, more than most of them take.
//
// Axes: T tokens of S sequences, D hidden, H heads, KV kv heads, C head size, E experts, A active experts, V vocabulary.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "api.h"
#include "context.h"
#include "target.h"

namespace mixq {
namespace {

#include "math.inc"

// Whether a score comes before another one; a NaN does, as in torch.
bool larger(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// ids and weights [A] of the largest of the scores [E].
void choose(const float* scores, int64_t E, int64_t A, int64_t* ids, float* weights) {
    for (int64_t a = 0; a < A; ++a) {
        auto taken = [&](int64_t e) { return std::find(ids, ids + a, e) != ids + a; };
        int64_t best = 0;
        while (taken(best)) ++best;
        for (int64_t e = best + 1; e < E; ++e)
            if (larger(scores[e], scores[best]) && !taken(e)) best = e;
        ids[a] = best;
    }
    float total = 0.0f;
    for (int64_t a = 0; a < A; ++a) {
        const float below = scores[ids[a]] - scores[ids[0]];
        weights[a] = std::isnan(below) ? below : exp_of(below);  // inf - inf is a NaN too, as in torch
        total += weights[a];
    }
    for (int64_t a = 0; a < A; ++a) weights[a] /= total;
}

// What a step computes on its way.
struct Activations {
    float *x, *h, *normed, *q, *k, *v, *attended, *output, *scores, *weights;

    // Floats of a token in each of them, for the sizes of a network.
    struct Sizes {
        int64_t D, Q, K, E, A;  // Q = H * C, K = KV * C
        int64_t of_all() const { return 4 * D + 2 * Q + 2 * K + E + A + 10 * 16; }  // each begins a cache line
    };

    // `from` has T * of.of_all() floats.
    Activations(char* from, int64_t T, const Sizes& of) {
        Cutter memory(from);
        for (float** each : {&x, &h, &normed, &output}) *each = memory.floats(T * of.D);
        for (float** each : {&q, &attended}) *each = memory.floats(T * of.Q);
        for (float** each : {&k, &v}) *each = memory.floats(T * of.K);
        scores = memory.floats(T * of.E), weights = memory.floats(T * of.A);
    }
};

// One pass through the network; each operation returns 0, or 1: no memory.
struct Step {
    MixqContext* context;
    const MixqNetwork& network;
    const MixqRows* rows;
    int64_t S, T, D, C;
    Activations a;

    int layer(int64_t index, int64_t* ids) const {
        const MixqLayer& layer = network.layers[index];
        float* qkv[3] = {a.q, a.k, a.v};
        norm(a.x, layer.input_norm);
        if (mixq_linear(context, 3, layer.qkv, a.normed, T, qkv) || attention(layer, index)) return 1;
        if (mixq_linear(context, 1, &layer.o, a.attended, T, &a.output)) return 1;
        add(a.x, a.h);
        norm(a.h, layer.post_norm);
        if (choice(layer, ids)) return 1;
        const int64_t E = layer.gate ? layer.gate->rows : 1;
        if (mixq_experts(context, layer.experts, E, a.normed, T, network.active, ids, a.weights, a.output)) return 1;
        add(a.h, a.x);
        return 0;
    }

    int attention(const MixqLayer& layer, int64_t index) const {
        const int64_t Q = layer.qkv[0]->rows, K = layer.qkv[1]->rows;
        for (int64_t s = 0, t = 0; s < S; t += rows[s++].count) {
            const MixqKvCache* cache = rows[s].caches + index;
            const int64_t position = rows[s].position, count = rows[s].count, angles = position * (C / 2);
            mixq_rotary_append(context, cache, a.q + t * Q, a.k + t * K, a.v + t * K, network.cosine + angles,
                               network.sine + angles, count, Q / C, position);
            if (mixq_attention(context, cache, a.q + t * Q, count, Q / C, position, network.window, a.attended + t * Q))
                return 1;
        }
        return 0;
    }

    int choice(const MixqLayer& layer, int64_t* ids) const {
        if (!layer.gate) {
            std::fill(ids, ids + T, 0);
            std::fill(a.weights, a.weights + T, 1.0f);
            return 0;
        }
        if (mixq_router(context, layer.gate, a.normed, T, a.scores)) return 1;
        mixq_choose(context, a.scores, T, layer.gate->rows, network.active, ids, a.weights);
        return 0;
    }

    void norm(const float* x, const void* weight) const {
        mixq_rms_norm(context, x, weight, network.eps, T, D, a.normed);
    }

    void add(const float* x, float* sum) const {
        for (int64_t i = 0; i < T * D; ++i) sum[i] = x[i] + a.output[i];
    }

    // a.x = the tokens' embeddings
    void embed(const int64_t* tokens) const {
        for (int64_t t = 0; t < T; ++t)
            for (int64_t d = 0; d < D; ++d)
                a.x[t * D + d] = bf16_to_float(number_at<uint16_t>(network.embedding, tokens[t] * D + d));
    }

    // Keep the last token of each sequence, in the first rows of a.x.
    void keep_last() {
        for (int64_t s = 0, end = 0; s < S; ++s) {
            end += rows[s].count;
            std::memmove(a.x + s * D, a.x + (end - 1) * D, static_cast<size_t>(D) * sizeof(float));
        }
        T = S;
    }

    int head(float* logits) const {
        norm(a.x, network.norm);
        return mixq_linear(context, 1, &network.head, a.normed, T, &logits);
    }
};

}  // namespace
}  // namespace mixq

void mixq_choose(MixqContext* context, const float* scores, int64_t T, int64_t E, int64_t A, int64_t* ids, float* weights) {
    mixq::timed(context, [&](MixqContext&) {
        for (int64_t t = 0; t < T; ++t) mixq::choose(scores + t * E, E, A, ids + t * A, weights + t * A);
    });
}

int mixq_step(MixqContext* context, const MixqNetwork* network, const int64_t* tokens, int64_t S, const MixqRows* rows,
              int all_logits, int64_t* ids, float* logits) {
    const MixqLayer& first = network->layers[0];
    const mixq::Activations::Sizes sizes{first.o->rows, first.qkv[0]->rows, first.qkv[1]->rows,
                                         first.gate ? first.gate->rows : 1, network->active};
    int64_t T = 0;
    for (int64_t s = 0; s < S; ++s) T += rows[s].count;
    int failed = 0;
    const int no_memory = mixq::timed(context, [&](MixqContext& c) {
        char* memory = c.step.get(T * sizes.of_all() * 4);
        mixq::Step step{context, *network, rows, S, T, sizes.D, rows[0].caches[0].head_dim, {memory, T, sizes}};
        step.embed(tokens);
        for (int64_t l = 0; l < network->count && !failed; ++l) failed = step.layer(l, ids + l * T * network->active);
        if (failed) return;
        if (!all_logits) step.keep_last();
        failed = step.head(logits);
    });
    return failed | no_memory;
}
