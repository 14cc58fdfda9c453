// The quantizer's search; see driver.cpp.

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"

#include "../../mixq/kernels/native/search.h"

namespace driver {

// What a search says it lost is what its codes lose, and that is little.
void test_search(Random& random, int isa) {
    constexpr int kSizes[] = {16, 32, 64, 128};
    const int g = kSizes[random.whole(0, 3)], type = static_cast<int>(random.whole(0, 2)), bits = random.whole(0, 1) ? 4 : 8;
    const int64_t N = random.whole(1, 5), K = g * random.whole(1, 9), G = K / g;
    Bytes weight(N * K * (type == MIXQ_FLOAT32 ? 4 : 2), 0);
    std::vector<double> values;
    const bool zero = random.whole(0, 9) == 0, spoilt = random.whole(0, 9) == 0;
    for (int64_t i = 0; i < N * K; ++i) {
        float value = zero ? 0.0f : random.normal();
        uint16_t half = to_bf16(value);
        if (type == MIXQ_FLOAT16) value = random_half(random, &half);
        if (type == MIXQ_BFLOAT16) value = of_bf16(half);
        if (spoilt && random.whole(0, 20) == 0) value = random.whole(0, 1) ? NAN : INFINITY, half = 0x7fff;
        type == MIXQ_FLOAT32 ? weight.set(i, value) : weight.set(i, half);
        values.push_back(value);
    }
    std::vector<float> importance(random.whole(0, 1) ? K : 0);
    for (float& column : importance) column = static_cast<float>(std::exp(random.normal()));
    const MixqSource source{weight.at(), N, K, type, g, importance.empty() ? nullptr : importance.data()};
    std::vector<double> errors(N), energies(errors.size()), group_errors(errors.size());
    int64_t groups = 0;
    const MixqLoss loss{errors.data(), energies.data(), group_errors.data(), &groups};
    const Matrix table = random_matrix(random, {MIXQ_NIBBLES, 16, MIXQ_SCALE_I8}, 1, 16);
    const bool nl4 = random.whole(0, 1);
    std::vector<uint8_t> codes(N * K * (nl4 ? 4 : bits) / 8);
    std::vector<int8_t> scale(N * G);
    std::vector<uint16_t> half_scale(scale.size());
    std::vector<float> row_scale(errors.size(), 1.0f);
    const int status = nl4 ? mixq_search_nl4(isa, &source, table.c.table, codes.data(), scale.data(), row_scale.data(), &loss)
                           : mixq_search_integers(isa, &source, bits, MIXQ_BFLOAT16, codes.data(), half_scale.data(), &loss);
    check(status == MIXQ_SEARCH_DONE, "search", isa, "status");
    if (spoilt) return;  // useless codes, but nothing read or written out of bounds
    for (int64_t n = 0; n < N; ++n) {
        double lost = 0, energy = 0;
        for (int64_t k = 0; k < K; ++k) {
            const size_t i = (n * K + k), group = (n * G + k / g);
            const int code = !nl4 && bits == 8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 15;
            const double decoded = nl4 ? static_cast<double>(table.c.table[code]) * scale[group] * row_scale[n]
                                       : (code - (bits == 8 ? 128 : 8)) * static_cast<double>(of_bf16(half_scale[group]));
            lost += (decoded - values[i]) * (decoded - values[i]), energy += values[i] * values[i];
        }
        const double said = errors[n];
        check(std::fabs(lost - said) <= 1e-3 * said + 1e-9 * energy, "search", isa, "the loss that it tells");
        check(!importance.empty() || lost <= 0.05 * energy, "search", isa, "it loses too much");
    }
}

}  // namespace driver
