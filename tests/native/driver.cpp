// Every function of the C interface on random shapes against plain loops in double: for sanitizers, for other compilers
// and for other processors under an emulator, where Python's tests are too slow or cannot run.
//
//   driver [ROUNDS] [SEED]
//
// Exit status 1: a result was wrong; the case is printed.

#include <algorithm>
#include <numeric>
#include <vector>

#include "../../mixq/kernels/native/cpu.h"
#include "checks.h"

using namespace driver;

namespace {

// A whole row of products, in the format's arithmetic; squares[n] is the sum of the terms' squares.
std::vector<double> product(const Matrix& w, const std::vector<double>& x, std::vector<double>* squares) {
    std::vector<double> out(w.c.rows, 0.0);
    squares->assign(out.size(), 0.0);
    for (int64_t n = 0; n < w.c.rows; ++n)
        for (int64_t k = 0; k < w.c.columns; ++k) {
            const double term = w.at(n, k) * x[k];
            out[n] += term;
            (*squares)[n] += term * term;
        }
    return out;
}

void test_linear(Random& random, const Context& context) {
    const int count = static_cast<int>(random.whole(1, 3));
    int64_t unit = 1;
    std::vector<Form> chosen;
    for (int i = 0; i < count; ++i) {
        chosen.push_back(forms()[random.whole(0, static_cast<int64_t>(forms().size()) - 1)]);
        unit = std::max<int64_t>(unit, chosen.back().group);
    }
    const int64_t K = unit * random.whole(1, random.whole(0, 9) ? 5 : 1100 / unit), T = random.whole(1, random.whole(0, 3) ? 6 : 70);
    std::vector<Matrix> w;
    for (const Form& form : chosen) w.push_back(random_matrix(random, form, random.whole(1, 40), K));
    std::vector<float> x = random.normals(T * K);
    const int64_t spoilt = random.whole(0, 5) ? -1 : random.whole(0, T - 1);  // a row that is not finite
    if (spoilt >= 0) x[spoilt * K + random.whole(0, K - 1)] = random.whole(0, 1) ? NAN : -INFINITY;
    std::vector<std::vector<float>> y;
    std::vector<const MixqMatrix*> matrices;
    std::vector<float*> outs;
    for (const Matrix& m : w) y.emplace_back(T * m.c.rows);
    for (int i = 0; i < count; ++i) matrices.push_back(&w[i].c), outs.push_back(y[i].data());
    check(mixq_linear(context.at, count, matrices.data(), x.data(), T, outs.data()) == 0, "linear", context.isa, "no memory");
    Distance distance;
    std::vector<double> squares;
    for (int i = 0; i < count; ++i) {
        const Matrix& m = w[i];
        for (int64_t t = 0; t < T; ++t) {
            if (t == spoilt) {
                for (int64_t n = 0; n < m.c.rows; ++n)
                    check(!std::isfinite(y[i][t * m.c.rows + n]), "linear", context.isa, "finite");
                continue;
            }
            const std::vector<double> wanted = product(m, rounded(x.data() + t * K, K, context.rounding(m.c)), &squares);
            for (int64_t n = 0; n < m.c.rows; ++n)
                distance.add(y[i][t * m.c.rows + n], wanted[n], squares[n]);
        }
    }
    char detail[120];
    std::snprintf(detail, sizeof(detail), "first kind %d, group %d, T %d, K %d: off by %g", w[0].c.kind, w[0].c.group_size,
                  static_cast<int>(T), static_cast<int>(K), distance.worst);
    check(distance.worst < 1e-5, "linear", context.isa, detail);
}

void test_router(Random& random, const Context& context) {
    const int64_t E = random.whole(1, 9), D = random.whole(1, 150), T = random.whole(1, 12);
    const Matrix w = random_matrix(random, {random.whole(0, 1) ? MIXQ_F32 : MIXQ_BF16, 1, 0}, E, D);
    const std::vector<float> x = random.normals(T * D);
    std::vector<float> y(T * E);
    mixq_router(context.at, &w.c, x.data(), T, y.data());
    Distance distance;
    std::vector<double> squares;
    for (int64_t t = 0; t < T; ++t) {
        const std::vector<double> wanted = product(w, rounded(x.data() + t * D, D, Rounding::kNone), &squares);
        for (size_t e = 0; e < wanted.size(); ++e) distance.add(y[t * E + e], wanted[e], squares[e]);
    }
    check(distance.worst < 1e-6, "router", context.isa, "");
}

void test_experts(Random& random, const Context& context) {
    const int64_t E = random.whole(1, 4), A = random.whole(1, std::min<int64_t>(E, 2)), T = random.whole(1, random.whole(0, 2) ? 6 : 60);
    const Form form = forms()[random.whole(0, static_cast<int64_t>(forms().size()) - 1)];
    const int64_t D = form.group * random.whole(1, 3), F = form.group * random.whole(1, 3);
    std::vector<Matrix> w;
    for (int64_t e = 0; e < E; ++e) {
        w.push_back(random_matrix(random, form, F, D));
        w.push_back(random_matrix(random, form, D, F));
        w.push_back(random_matrix(random, form, F, D));
    }
    std::vector<MixqMatrix> matrices;
    for (const Matrix& m : w) matrices.push_back(m.c);
    const std::vector<float> x = random.normals(T * D), weights = random.normals(T * A);
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < T; ++t) {
        std::vector<int64_t> all(E);
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), random.engine);
        ids.insert(ids.end(), all.begin(), all.begin() + A);
    }
    std::vector<float> out(T * D);
    mixq_experts(context.at, matrices.data(), E, x.data(), T, A, ids.data(), weights.data(), out.data());
    double off = 0, size = 0;
    std::vector<double> unused;
    for (int64_t t = 0; t < T; ++t) {
        std::vector<double> wanted(D, 0.0);
        for (int64_t a = 0; a < A; ++a) {
            const size_t e = (ids[t * A + a]);
            const Matrix &w1 = w[3 * e], &w2 = w[3 * e + 1], &w3 = w[3 * e + 2];
            const Rounding how = context.rounding(w1.c);
            const std::vector<double> in = rounded(x.data() + t * D, D, how);
            const std::vector<double> gate = product(w1, in, &unused), up = product(w3, in, &unused);
            std::vector<float> hidden;
            for (size_t f = 0; f < gate.size(); ++f) hidden.push_back(static_cast<float>(gate[f] / (1 + std::exp(-gate[f])) * up[f]));
            const std::vector<double> answer = product(w2, rounded(hidden.data(), F, how), &unused);
            for (size_t d = 0; d < wanted.size(); ++d) wanted[d] += static_cast<double>(weights[t * A + a]) * answer[d];
        }
        for (size_t d = 0; d < wanted.size(); ++d) {
            const double difference = out[t * D + d] - wanted[d];
            off += difference * difference, size += wanted[d] * wanted[d];
        }
    }
    char detail[120];
    std::snprintf(detail, sizeof(detail), "kind %d, group %d, T %d, D %d, F %d: off by %g", form.kind, form.group,
                  static_cast<int>(T), static_cast<int>(D), static_cast<int>(F), std::sqrt(off / size));
    // A hidden value near the middle of two roundings may fall to either side.
    check(off <= 5e-3 * 5e-3 * size, "experts", context.isa, detail);
}

void test_rms_norm(Random& random, const Context& context) {
    const int64_t T = random.whole(1, 5), D = random.whole(1, 130);
    const std::vector<float> x = random.normals(T * D);
    Bytes weight(2 * D, random.whole(0, 1));
    std::vector<float> scale, out(x.size());
    for (int64_t d = 0; d < D; ++d) {
        weight.set(d, to_bf16(random.normal()));
        uint16_t bits;
        std::memcpy(&bits, static_cast<const char*>(weight.at()) + 2 * d, 2);
        scale.push_back(of_bf16(bits));
    }
    mixq_rms_norm(context.at, x.data(), weight.at(), 1e-5f, T, D, out.data());
    Distance distance;
    for (int64_t t = 0; t < T; ++t) {
        double squares = 0;
        for (int64_t d = 0; d < D; ++d) squares += static_cast<double>(x[t * D + d]) * x[t * D + d];
        const double factor = 1 / std::sqrt(squares / static_cast<double>(D) + 1e-5f);
        for (int64_t d = 0; d < D; ++d) {
            const double wanted = x[t * D + d] * factor * scale[d];
            distance.add(out[t * D + d], wanted, wanted * wanted);
        }
    }
    check(distance.worst < 1e-6, "rms_norm", context.isa, "");
}

void test_read(Random& random, const Context& context) {
    const int64_t bytes = random.whole(0, 3 << 20);
    Bytes data(bytes, 8 * random.whole(0, 3));
    uint64_t total = 0;
    for (int64_t i = 0; i < bytes; ++i) data.set(i, static_cast<uint8_t>(i * 7 + i / 256));
    const int64_t piece = int64_t{1} << 20;  // what is no multiple of 256 at a piece's end is not read
    for (int64_t begin = 0; begin < bytes; begin += piece)
        for (int64_t i = begin; i + 256 <= std::min(bytes, begin + piece); i += 256)
            for (int64_t j = 0; j < 256; j += 8) {
                uint64_t word;
                std::memcpy(&word, static_cast<const char*>(data.at()) + i + j, 8);
                total += word;
            }
    check(mixq_read(context.at, data.at(), bytes, 0) == static_cast<int64_t>(total), "read", context.isa, "a plain sum");
    check(mixq_read(context.at, data.at(), bytes, 1) == static_cast<int64_t>(total), "read", context.isa, "fetching ahead");
    mixq_read(context.at, data.at(), bytes, 2);
}

}  // namespace

int main(int count, char** arguments) {
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 40;
    const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
    std::printf("%s, seed %d, best instruction set %d\n", mixq_compiler(), static_cast<int>(seed), mixq_best_isa());
    check(mixq_abi_version() == MIXQ_ABI_VERSION, "the version", 0, "");
    check(mixq_open(0, MIXQ_ISA_PORTABLE) == nullptr && mixq_open(1, 77) == nullptr, "opening", 0, "nonsense was taken");
    for (int isa = 0; isa <= MIXQ_ISA_NEON; ++isa) {
        if (!mixq_supports(isa)) continue;
        Random random(seed);
        for (int round = 0; round < rounds && !failures; ++round) {
            const Context context(1 + round % 4, isa);
            const int32_t hint = static_cast<int32_t>(random.whole(0, 3)), rows = 1 << random.whole(0, 2);
            const MixqFetch fetch{hint, rows, 64 * random.whole(0, 300), 64 * random.whole(0, 20)};
            mixq_set_fetch(context.at, &fetch);
            test_linear(random, context);
            test_router(random, context);
            test_experts(random, context);
            test_rms_norm(random, context);
            test_attention(random, context);
            test_choose(random, context);
            test_step(random, context);
            test_search(random, isa);
            if (round % 8 == 0) test_read(random, context);
            check(mixq_busy_ns(context.at) > 0, "the account of time", isa, "");
        }
        std::printf("instruction set %d: %s\n", isa, failures ? "WRONG" : "right");
    }
    return failures ? 1 : 0;
}
