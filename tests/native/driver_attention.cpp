// Writing a KV cache and attention over it; see driver.cpp.

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"

namespace driver {

// A layer's cache, filled by mixq_rotary_append, and attention over it.
void test_attention(Random& random, const Context& context) {
    const int kind = static_cast<int>(random.whole(0, 2));
    const int64_t KV = random.whole(1, 3), group = random.whole(1, 5), H = KV * group, C = 8 * random.whole(1, 32);
    const int64_t T = random.whole(1, 20), length = random.whole(0, random.whole(0, 3) ? 40 : 700), L = length + T;
    const int64_t window = random.whole(0, 1) ? 0 : random.whole(1, L + 3), size = kind == MIXQ_KV_BF16 ? 2 : kind == MIXQ_KV_INT8 ? 1 : 4;
    const int64_t capacity = L + random.whole(0, 2);
    Bytes keys(KV * capacity * C * size, 0), values(KV * capacity * C * size, 0);
    std::vector<float> key_scale(KV * capacity), value_scale(key_scale.size());
    const MixqKvCache cache{kind, KV, capacity, C, keys.at(), values.at(), key_scale.data(), value_scale.data()};
    const std::vector<float> k = random.normals(L * KV * C), v = random.normals(L * KV * C), start_q = random.normals(L * H * C);
    const std::vector<float> cosine(L * C / 2, 0.6f), sine(cosine.size(), 0.8f);
    std::vector<float> q = start_q;
    mixq_rotary_append(context.at, &cache, q.data(), k.data(), v.data(), cosine.data(), sine.data(), length, H, 0);
    const size_t later = length;
    mixq_rotary_append(context.at, &cache, q.data() + length * H * C, k.data() + length * KV * C, v.data() + length * KV * C,
                       cosine.data() + length * C / 2, sine.data() + length * C / 2, T, H, length);
    auto read = [&](const Bytes& from, const std::vector<float>& scale, int64_t head, int64_t position, int64_t c) -> double {
        const int64_t place = head * capacity + position, i = place * C + c;
        if (kind == MIXQ_KV_F32) return static_cast<const float*>(from.at())[i];
        if (kind == MIXQ_KV_BF16) return of_bf16(static_cast<const uint16_t*>(from.at())[i]);
        return static_cast<const int8_t*>(from.at())[i] * static_cast<double>(scale[place]);
    };
    auto rotated = [&](const float* x, int64_t c) {
        return c < C / 2 ? x[c] * 0.6 - x[c + C / 2] * 0.8 : x[c] * 0.6 + x[c - C / 2] * 0.8;
    };
    double worst = 0;  // rotation and rounding
    for (int64_t position = 0; position < L; ++position) {
        for (int64_t h = 0; h < H; ++h)
            for (int64_t c = 0; c < C; ++c) {
                const size_t base = ((position * H + h) * C);
                worst = std::max(worst, std::fabs(q[base + c] - rotated(start_q.data() + base, c)));
            }
        check(worst < 2e-6, "rotary_append", context.isa, "queries");
        for (int64_t head = 0; head < KV; ++head)
            for (int64_t c = 0; c < C; ++c) {
                const int64_t base = (position * KV + head) * C;
                const double allowed = kind == MIXQ_KV_F32 ? 2e-6 : 0.03;
                check(std::fabs(read(keys, key_scale, head, position, c) - rotated(k.data() + base, c)) < allowed, "rotary_append",
                      context.isa, "keys");
                check(std::fabs(read(values, value_scale, head, position, c) - v[base + c]) < allowed,
                      "rotary_append", context.isa, "values");
            }
        if (failures) return;
    }
    std::vector<float> out(T * H * C);
    const float* queries = q.data() + later * (H * C);
    mixq_attention(context.at, &cache, queries, T, H, length, window, out.data());
    double off = 0, all = 0;
    for (int64_t t = 0; t < T; ++t)
        for (int64_t h = 0; h < H; ++h) {
            const int64_t end = length + t + 1, first = window ? std::max<int64_t>(0, end - window) : 0, head = h / group;
            const float* query = queries + (t * H + h) * C;
            std::vector<double> score;
            for (int64_t p = first; p < end; ++p) {
                double sum = 0;
                for (int64_t c = 0; c < C; ++c) sum += query[c] * read(keys, key_scale, head, p, c);
                score.push_back(sum / std::sqrt(static_cast<double>(C)));
            }
            const double largest = *std::max_element(score.begin(), score.end());
            double total = 0;
            for (double& s : score) total += s = std::exp(s - largest);
            for (int64_t c = 0; c < C; ++c) {
                double wanted = 0;
                for (int64_t p = first; p < end; ++p) wanted += score[p - first] / total * read(values, value_scale, head, p, c);
                const double difference = out[(t * H + h) * C + c] - wanted;
                off += difference * difference, all += wanted * wanted;
            }
        }
    char detail[120];
    std::snprintf(detail, sizeof(detail), "kind %d, C %d, T %d, length %d, window %d: off by %g", kind, static_cast<int>(C),
                  static_cast<int>(T), static_cast<int>(length), static_cast<int>(window), std::sqrt(off / all));
    const double bound = kind == MIXQ_KV_INT8 ? 1e-4 : 1e-5;  // queries and weights of int8 values have 16 bits
    check(off <= bound * bound * all, "attention", context.isa, detail);
}

}  // namespace driver
