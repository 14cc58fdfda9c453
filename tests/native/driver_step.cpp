// The router's choice, and a step in one call against the separate calls; see driver.cpp.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "checks.h"

namespace driver {

void test_choose(Random& random, const Context& context) {
    const int64_t E = random.whole(1, 9), A = random.whole(1, E), T = random.whole(1, 4);
    std::vector<float> scores = random.normals(T * E, random.whole(0, 3) ? 1.0f : 100.0f);
    if (random.whole(0, 1)) scores[random.whole(0, T * E - 1)] = scores[0];
    std::vector<int64_t> ids(T * A);
    std::vector<float> weights(T * A);
    mixq_choose(context.at, scores.data(), T, E, A, ids.data(), weights.data());
    for (int64_t t = 0; t < T; ++t) {
        const float* score = scores.data() + t * E;
        std::vector<int64_t> order(E);
        for (int64_t e = 0; e < E; ++e) order[e] = e;
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
        double total = 0;
        for (int64_t a = 0; a < A; ++a) total += std::exp(static_cast<double>(score[order[a]]) - score[order[0]]);
        for (int64_t a = 0; a < A; ++a) {
            check(ids[t * A + a] == order[a], "choose", context.isa, "an id");
            const double wanted = std::exp(static_cast<double>(score[order[a]]) - score[order[0]]) / total;
            check(std::fabs(weights[t * A + a] - wanted) < 1e-6, "choose", context.isa, "a weight");
        }
    }
    scores.assign(E, NAN);
    mixq_choose(context.at, scores.data(), 1, E, A, ids.data(), weights.data());
    for (int64_t a = 0; a < A; ++a) check(ids[a] == a && std::isnan(weights[a]), "choose", context.isa, "of NaN");
}

// A network of one or two layers with plain caches.
void test_step(Random& random, const Context& context) {
    const Form form = forms()[random.whole(0, static_cast<int64_t>(forms().size()) - 1)];
    const int64_t KV = random.whole(1, 2), H = KV * random.whole(1, 3), C = 128, D = form.group * random.whole(1, 3);
    const int64_t F = form.group, V = random.whole(1, 9), capacity = 40, S = random.whole(1, 3), L = random.whole(1, 2);
    const bool dense = random.whole(0, 3) == 0;
    const int64_t E = dense ? 1 : random.whole(1, 4), A = random.whole(1, E);
    auto norm = [&] {
        std::vector<uint16_t> weight;
        for (int64_t d = 0; d < D; ++d) weight.push_back(to_bf16(random.normal()));
        return weight;
    };
    std::vector<Matrix> owned;  // their memory
    auto matrix = [&](const Form& kind, int64_t N, int64_t K) {
        owned.push_back(random_matrix(random, kind, N, K));
        return owned.back().c;
    };
    struct Parts {
        MixqMatrix qkv[3], o, gate;
        std::vector<MixqMatrix> experts;
        std::vector<uint16_t> input_norm, post_norm;
        const MixqMatrix* pointers[3];
    };
    std::vector<Parts> parts(L);
    std::vector<MixqLayer> layers;
    for (Parts& p : parts) {
        for (int i = 0; i < 3; ++i) p.qkv[i] = matrix(form, (i ? KV : H) * C, D), p.pointers[i] = p.qkv + i;
        p.o = matrix(form, D, H * C), p.gate = matrix({MIXQ_BF16, 1, 0}, E, D);
        for (int64_t e = 0; e < E; ++e)
            for (int i = 0; i < 3; ++i) p.experts.push_back(i == 1 ? matrix(form, D, F) : matrix(form, F, D));
        p.input_norm = norm(), p.post_norm = norm();
        layers.push_back({p.input_norm.data(), p.post_norm.data(), p.pointers, &p.o, dense ? nullptr : &p.gate, p.experts.data()});
    }
    const MixqMatrix head = matrix(form, V, D), embedding = matrix({MIXQ_BF16, 1, 0}, V, D);
    const std::vector<uint16_t> last_norm = norm();
    const std::vector<float> cosine = random.normals(capacity * C / 2), sine = random.normals(capacity * C / 2);
    const int64_t window = random.whole(0, 1) ? 0 : random.whole(1, 20);
    const MixqNetwork network{embedding.codes, layers.data(), L,      last_norm.data(), &head, cosine.data(),
                              sine.data(),     A,             window, 1e-5f};

    std::vector<std::vector<float>> memory;  // keys and values of each layer of each sequence
    std::vector<MixqRows> rows;
    std::vector<int64_t> tokens;
    for (int64_t s = 0; s < S; ++s) {
        for (int64_t i = 0; i < 2 * L; ++i) memory.push_back(random.normals(KV * capacity * C));
        const int64_t count = random.whole(1, 3);
        rows.push_back({nullptr, random.whole(0, capacity - count), count});
        for (int64_t t = 0; t < count; ++t) tokens.push_back(random.whole(0, V - 1));
    }
    const int64_t T = static_cast<int64_t>(tokens.size()), all = random.whole(0, 1), R = all ? T : S;
    auto caches_in = [&](std::vector<std::vector<float>>& at) {
        std::vector<MixqKvCache> caches;
        for (int64_t i = 0; i < S * L; ++i)
            caches.push_back({MIXQ_KV_F32, KV, capacity, C, at[2 * i].data(), at[2 * i + 1].data(), nullptr, nullptr});
        return caches;
    };
    std::vector<std::vector<float>> separate_memory = memory;
    const std::vector<MixqKvCache> caches = caches_in(memory), separate = caches_in(separate_memory);
    for (int64_t s = 0; s < S; ++s) rows[s].caches = caches.data() + s * L;
    std::vector<int64_t> ids(L * T * A);
    std::vector<float> logits(R * V);
    const int code = mixq_step(context.at, &network, tokens.data(), S, rows.data(), static_cast<int>(all), ids.data(), logits.data());
    check(code == 0, "step", context.isa, "no memory");

    std::vector<float> x, normed(T * D), q(T * H * C), k(T * KV * C), v(k.size()), attended(q.size()), output(T * D);
    for (int64_t token : tokens)
        for (int64_t d = 0; d < D; ++d) {
            uint16_t bits;
            std::memcpy(&bits, static_cast<const char*>(embedding.codes) + 2 * (token * D + d), 2);
            x.push_back(of_bf16(bits));
        }
    std::vector<float> scores(T * E), weights(T * A, 1.0f);
    std::vector<int64_t> own_ids(L * T * A, 0);
    auto multiply = [&](const MixqMatrix* w, const std::vector<float>& in, int64_t count, float* out) {
        mixq_linear(context.at, 1, &w, in.data(), count, &out);
    };
    for (int64_t l = 0; l < L; ++l) {
        const Parts& p = parts[l];
        mixq_rms_norm(context.at, x.data(), p.input_norm.data(), 1e-5f, T, D, normed.data());
        multiply(p.qkv, normed, T, q.data()), multiply(p.qkv + 1, normed, T, k.data()), multiply(p.qkv + 2, normed, T, v.data());
        for (int64_t s = 0, t = 0; s < S; t += rows[s++].count) {
            const int64_t position = rows[s].position, count = rows[s].count;
            const MixqKvCache* cache = &separate[s * L + l];
            mixq_rotary_append(context.at, cache, q.data() + t * H * C, k.data() + t * KV * C, v.data() + t * KV * C,
                               cosine.data() + position * C / 2, sine.data() + position * C / 2, count, H, position);
            mixq_attention(context.at, cache, q.data() + t * H * C, count, H, position, window, attended.data() + t * H * C);
        }
        multiply(&p.o, attended, T, output.data());
        for (int64_t i = 0; i < T * D; ++i) x[i] += output[i];
        mixq_rms_norm(context.at, x.data(), p.post_norm.data(), 1e-5f, T, D, normed.data());
        if (!dense) {
            mixq_router(context.at, &p.gate, normed.data(), T, scores.data());
            mixq_choose(context.at, scores.data(), T, E, A, own_ids.data() + l * T * A, weights.data());
        }
        mixq_experts(context.at, p.experts.data(), E, normed.data(), T, A, own_ids.data() + l * T * A, weights.data(), output.data());
        for (int64_t i = 0; i < T * D; ++i) x[i] += output[i];
    }
    std::vector<float> kept;
    for (int64_t s = 0, t = 0; s < S; ++s)
        for (int64_t i = 0; i < rows[s].count; ++i, ++t)
            if (all || i + 1 == rows[s].count) kept.insert(kept.end(), x.begin() + t * D, x.begin() + (t + 1) * D);
    mixq_rms_norm(context.at, kept.data(), last_norm.data(), 1e-5f, R, D, normed.data());
    std::vector<float> own_logits(R * V);
    multiply(&head, normed, R, own_logits.data());
    check(ids == own_ids && logits == own_logits, "step", context.isa, "what it returns");
    check(memory == separate_memory, "step", context.isa, "the caches");
}

}  // namespace driver
