// Every function of the C interface on random shapes against plain loops in double: for sanitizers, for other compilers
// and for other processors under an emulator, where Python's tests are too slow or cannot run.
//
//   driver [ROUNDS] [SEED]
//
// Exit status 1: a result was wrong; the case is printed.

#include <algorithm>
#include <numeric>

#include "../../mixq/kernels/native/cpu.h"
#include "../../mixq/kernels/native/search.h"
#include "random_matrix.h"

using namespace driver;

namespace {

int failures = 0;

void check(bool right, const char* what, int isa, const char* detail) {
    if (right) return;
    ++failures;
    std::fprintf(stderr, "driver: %s is wrong with instruction set %d: %s\n", what, isa, detail);
}

// The largest difference, relative to the root of the squares of the terms that were added.
struct Distance {
    double worst = 0;
    void add(double got, double wanted, double squares) {
        const double size = std::sqrt(squares), off = std::fabs(got - wanted);
        worst = std::max(worst, size > 0 ? off / size : off > 0 ? 1.0 : 0.0);
        if (!std::isfinite(got)) worst = INFINITY;
    }
};

struct Context {
    Context(int threads, int isa) : isa(isa), at(mixq_open(threads, isa)) { check(at != nullptr, "opening", isa, ""); }
    ~Context() { mixq_close(at); }
    Rounding rounding(int64_t T, const MixqMatrix& w) const {
        if (T > mixq_integer_rows(at) || w.kind == MIXQ_BF16) return Rounding::kBf16;
        return w.kind == MIXQ_F32 ? Rounding::kNone : Rounding::kInt8;
    }
    int isa;
    MixqContext* at;
};

// A whole row of products, in the format's arithmetic; squares[n] is the sum of the terms' squares.
std::vector<double> product(const Matrix& w, const std::vector<double>& x, bool bf16, std::vector<double>* squares) {
    std::vector<double> out(static_cast<size_t>(w.c.rows), 0.0);
    squares->assign(out.size(), 0.0);
    for (int64_t n = 0; n < w.c.rows; ++n)
        for (int64_t k = 0; k < w.c.columns; ++k) {
            const double weight = bf16 ? of_bf16(to_bf16(static_cast<float>(w.at(n, k)))) : w.at(n, k);
            const double term = weight * x[static_cast<size_t>(k)];
            out[static_cast<size_t>(n)] += term;
            (*squares)[static_cast<size_t>(n)] += term * term;
        }
    return out;
}

void test_linear(Random& random, const Context& context) {
    const int count = static_cast<int>(random.whole(1, 3));
    int64_t unit = 1;
    std::vector<Form> chosen;
    for (int i = 0; i < count; ++i) {
        chosen.push_back(forms()[static_cast<size_t>(random.whole(0, static_cast<int64_t>(forms().size()) - 1))]);
        unit = std::max<int64_t>(unit, chosen.back().group);
    }
    const int64_t K = unit * random.whole(1, random.whole(0, 9) ? 5 : 1100 / unit), T = random.whole(1, random.whole(0, 3) ? 6 : 70);
    std::vector<Matrix> w;
    for (const Form& form : chosen) w.push_back(random_matrix(random, form, random.whole(1, 40), K));
    std::vector<float> x = random.normals(T * K);
    const int64_t spoilt = random.whole(0, 5) ? -1 : random.whole(0, T - 1);  // a row that is not finite
    if (spoilt >= 0) x[static_cast<size_t>(spoilt * K + random.whole(0, K - 1))] = random.whole(0, 1) ? NAN : -INFINITY;
    std::vector<std::vector<float>> y;
    std::vector<const MixqMatrix*> matrices;
    std::vector<float*> outs;
    for (const Matrix& m : w) y.emplace_back(static_cast<size_t>(T * m.c.rows));
    for (int i = 0; i < count; ++i) matrices.push_back(&w[static_cast<size_t>(i)].c), outs.push_back(y[static_cast<size_t>(i)].data());
    check(mixq_linear(context.at, count, matrices.data(), x.data(), T, outs.data()) == 0, "linear", context.isa, "no memory");
    Distance distance;
    std::vector<double> squares;
    for (int i = 0; i < count; ++i) {
        const Matrix& m = w[static_cast<size_t>(i)];
        const bool bf16 = T > mixq_integer_rows(context.at);
        for (int64_t t = 0; t < T; ++t) {
            if (t == spoilt) {
                for (int64_t n = 0; n < m.c.rows; ++n)
                    check(!std::isfinite(y[static_cast<size_t>(i)][static_cast<size_t>(t * m.c.rows + n)]), "linear", context.isa, "finite");
                continue;
            }
            const std::vector<double> wanted = product(m, rounded(x.data() + t * K, K, context.rounding(T, m.c)), bf16, &squares);
            for (int64_t n = 0; n < m.c.rows; ++n)
                distance.add(y[static_cast<size_t>(i)][static_cast<size_t>(t * m.c.rows + n)], wanted[static_cast<size_t>(n)], squares[static_cast<size_t>(n)]);
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
    std::vector<float> y(static_cast<size_t>(T * E));
    mixq_router(context.at, &w.c, x.data(), T, y.data());
    Distance distance;
    std::vector<double> squares;
    for (int64_t t = 0; t < T; ++t) {
        const std::vector<double> wanted = product(w, rounded(x.data() + t * D, D, Rounding::kNone), false, &squares);
        for (size_t e = 0; e < wanted.size(); ++e) distance.add(y[static_cast<size_t>(t * E) + e], wanted[e], squares[e]);
    }
    check(distance.worst < 1e-6, "router", context.isa, "");
}

void test_experts(Random& random, const Context& context) {
    const int64_t E = random.whole(1, 4), A = random.whole(1, std::min<int64_t>(E, 2)), T = random.whole(1, random.whole(0, 2) ? 6 : 60);
    const Form form = forms()[static_cast<size_t>(random.whole(0, static_cast<int64_t>(forms().size()) - 1))];
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
    std::vector<int64_t> ids, count(static_cast<size_t>(E), 0);
    for (int64_t t = 0; t < T; ++t) {
        std::vector<int64_t> all(static_cast<size_t>(E));
        std::iota(all.begin(), all.end(), 0);
        std::shuffle(all.begin(), all.end(), random.engine);
        ids.insert(ids.end(), all.begin(), all.begin() + A);
        for (int64_t a = 0; a < A; ++a) ++count[static_cast<size_t>(all[static_cast<size_t>(a)])];
    }
    std::vector<float> out(static_cast<size_t>(T * D));
    mixq_experts(context.at, matrices.data(), E, x.data(), T, A, ids.data(), weights.data(), out.data());
    double off = 0, size = 0;
    std::vector<double> unused;
    for (int64_t t = 0; t < T; ++t) {
        std::vector<double> wanted(static_cast<size_t>(D), 0.0);
        for (int64_t a = 0; a < A; ++a) {
            const size_t e = static_cast<size_t>(ids[static_cast<size_t>(t * A + a)]);
            const Matrix &w1 = w[3 * e], &w2 = w[3 * e + 1], &w3 = w[3 * e + 2];
            const bool bf16 = count[e] > mixq_integer_rows(context.at);
            const Rounding how = context.rounding(count[e], w1.c);
            const std::vector<double> in = rounded(x.data() + t * D, D, how);
            const std::vector<double> gate = product(w1, in, bf16, &unused), up = product(w3, in, bf16, &unused);
            std::vector<float> hidden;
            for (size_t f = 0; f < gate.size(); ++f) hidden.push_back(static_cast<float>(gate[f] / (1 + std::exp(-gate[f])) * up[f]));
            const std::vector<double> answer = product(w2, rounded(hidden.data(), F, how), bf16, &unused);
            for (size_t d = 0; d < wanted.size(); ++d) wanted[d] += static_cast<double>(weights[static_cast<size_t>(t * A + a)]) * answer[d];
        }
        for (size_t d = 0; d < wanted.size(); ++d) {
            const double difference = out[static_cast<size_t>(t * D) + d] - wanted[d];
            off += difference * difference, size += wanted[d] * wanted[d];
        }
    }
    char detail[120];
    std::snprintf(detail, sizeof(detail), "kind %d, group %d, T %d, D %d, F %d: off by %g", form.kind, form.group,
                  static_cast<int>(T), static_cast<int>(D), static_cast<int>(F), std::sqrt(off / size));
    // A hidden value near the middle of two roundings may fall to either side.
    check(off <= 5e-3 * 5e-3 * size, "experts", context.isa, detail);
}

void test_dequantize(Random& random, const Context& context) {
    const Form form = forms()[static_cast<size_t>(random.whole(0, static_cast<int64_t>(forms().size()) - 1))];
    const Matrix w = random_matrix(random, form, random.whole(1, 40), form.group * random.whole(1, 20));
    const int64_t begin = random.whole(0, w.c.rows - 1), end = random.whole(begin + 1, w.c.rows), K = w.c.columns;
    std::vector<uint16_t> out(static_cast<size_t>((end - begin) * K));
    if (mixq_dequantize(context.at, &w.c, begin, end, out.data()) != 0) return;  // not with this instruction set
    bool right = true;
    for (int64_t i = 0; i < (end - begin) * K; ++i) {
        const double wanted = w.at(begin + i / K, i % K);
        right &= std::fabs(of_bf16(out[static_cast<size_t>(i)]) - wanted) <= std::fabs(wanted) * 0x1.01p-8;
    }
    check(right, "dequantize", context.isa, "");
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
        for (int64_t d = 0; d < D; ++d) squares += static_cast<double>(x[static_cast<size_t>(t * D + d)]) * x[static_cast<size_t>(t * D + d)];
        const double factor = 1 / std::sqrt(squares / static_cast<double>(D) + 1e-5f);
        for (int64_t d = 0; d < D; ++d) {
            const double wanted = x[static_cast<size_t>(t * D + d)] * factor * scale[static_cast<size_t>(d)];
            distance.add(out[static_cast<size_t>(t * D + d)], wanted, wanted * wanted);
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

// A layer's cache, filled by mixq_rotary_append, and attention over it.
void test_attention(Random& random, const Context& context) {
    const int kind = static_cast<int>(random.whole(0, 2));
    const int64_t KV = random.whole(1, 3), group = random.whole(1, 5), H = KV * group, C = 8 * random.whole(1, 32);
    const int64_t T = random.whole(1, 20), length = random.whole(0, random.whole(0, 3) ? 40 : 700), L = length + T;
    const int64_t window = random.whole(0, 1) ? 0 : random.whole(1, L + 3), size = kind == MIXQ_KV_BF16 ? 2 : kind == MIXQ_KV_INT8 ? 1 : 4;
    const int64_t capacity = L + random.whole(0, 2);
    Bytes keys(KV * capacity * C * size, 0), values(KV * capacity * C * size, 0);
    std::vector<float> key_scale(static_cast<size_t>(KV * capacity)), value_scale(key_scale.size());
    const MixqKvCache cache{kind, KV, capacity, C, keys.at(), values.at(), key_scale.data(), value_scale.data()};
    const std::vector<float> k = random.normals(L * KV * C), v = random.normals(L * KV * C), start_q = random.normals(L * H * C);
    const std::vector<float> cosine(static_cast<size_t>(L * C / 2), 0.6f), sine(cosine.size(), 0.8f);
    std::vector<float> q = start_q;
    mixq_rotary_append(context.at, &cache, q.data(), k.data(), v.data(), cosine.data(), sine.data(), length, H, 0);
    const size_t later = static_cast<size_t>(length);
    mixq_rotary_append(context.at, &cache, q.data() + length * H * C, k.data() + length * KV * C, v.data() + length * KV * C,
                       cosine.data() + length * C / 2, sine.data() + length * C / 2, T, H, length);
    auto read = [&](const Bytes& from, const std::vector<float>& scale, int64_t head, int64_t position, int64_t c) -> double {
        const int64_t place = head * capacity + position, i = place * C + c;
        if (kind == MIXQ_KV_F32) return static_cast<const float*>(from.at())[i];
        if (kind == MIXQ_KV_BF16) return of_bf16(static_cast<const uint16_t*>(from.at())[i]);
        return static_cast<const int8_t*>(from.at())[i] * static_cast<double>(scale[static_cast<size_t>(place)]);
    };
    auto rotated = [&](const float* x, int64_t c) {
        return c < C / 2 ? x[c] * 0.6 - x[c + C / 2] * 0.8 : x[c] * 0.6 + x[c - C / 2] * 0.8;
    };
    double worst = 0;  // rotation and rounding
    for (int64_t position = 0; position < L; ++position) {
        for (int64_t h = 0; h < H; ++h)
            for (int64_t c = 0; c < C; ++c) {
                const size_t base = static_cast<size_t>((position * H + h) * C);
                worst = std::max(worst, std::fabs(q[base + static_cast<size_t>(c)] - rotated(start_q.data() + base, c)));
            }
        check(worst < 2e-6, "rotary_append", context.isa, "queries");
        for (int64_t head = 0; head < KV; ++head)
            for (int64_t c = 0; c < C; ++c) {
                const int64_t base = (position * KV + head) * C;
                const double allowed = kind == MIXQ_KV_F32 ? 2e-6 : 0.03;
                check(std::fabs(read(keys, key_scale, head, position, c) - rotated(k.data() + base, c)) < allowed, "rotary_append",
                      context.isa, "keys");
                check(std::fabs(read(values, value_scale, head, position, c) - v[static_cast<size_t>(base + c)]) < allowed,
                      "rotary_append", context.isa, "values");
            }
        if (failures) return;
    }
    std::vector<float> out(static_cast<size_t>(T * H * C));
    const float* queries = q.data() + later * static_cast<size_t>(H * C);
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
                for (int64_t p = first; p < end; ++p) wanted += score[static_cast<size_t>(p - first)] / total * read(values, value_scale, head, p, c);
                const double difference = out[static_cast<size_t>((t * H + h) * C + c)] - wanted;
                off += difference * difference, all += wanted * wanted;
            }
        }
    char detail[120];
    std::snprintf(detail, sizeof(detail), "kind %d, C %d, T %d, length %d, window %d: off by %g", kind, static_cast<int>(C),
                  static_cast<int>(T), static_cast<int>(length), static_cast<int>(window), std::sqrt(off / all));
    check(off <= 1e-5 * 1e-5 * all, "attention", context.isa, detail);
}

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
    const MixqSource source{weight.at(), N, K, type, g};
    std::vector<double> errors(static_cast<size_t>(N)), energies(errors.size()), group_errors(errors.size());
    int64_t groups = 0;
    const MixqLoss loss{errors.data(), energies.data(), group_errors.data(), &groups};
    const Matrix table = random_matrix(random, {MIXQ_NIBBLES, 16, MIXQ_SCALE_I8}, 1, 16);
    const bool nl4 = random.whole(0, 1);
    std::vector<uint8_t> codes(static_cast<size_t>(N * K * (nl4 ? 4 : bits) / 8));
    std::vector<int8_t> scale(static_cast<size_t>(N * G));
    std::vector<uint16_t> half_scale(scale.size());
    std::vector<float> row_scale(errors.size(), 1.0f);
    const int status = nl4 ? mixq_search_nl4(isa, &source, table.c.table, codes.data(), scale.data(), row_scale.data(), &loss)
                           : mixq_search_integers(isa, &source, bits, MIXQ_BFLOAT16, codes.data(), half_scale.data(), &loss);
    check(status == MIXQ_SEARCH_DONE, "search", isa, "status");
    if (spoilt) return;  // useless codes, but nothing read or written out of bounds
    for (int64_t n = 0; n < N; ++n) {
        double lost = 0, energy = 0;
        for (int64_t k = 0; k < K; ++k) {
            const size_t i = static_cast<size_t>(n * K + k), group = static_cast<size_t>(n * G + k / g);
            const int code = !nl4 && bits == 8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 15;
            const double decoded = nl4 ? static_cast<double>(table.c.table[code]) * scale[group] * row_scale[static_cast<size_t>(n)]
                                       : (code - (bits == 8 ? 128 : 8)) * static_cast<double>(of_bf16(half_scale[group]));
            lost += (decoded - values[i]) * (decoded - values[i]), energy += values[i] * values[i];
        }
        const double said = errors[static_cast<size_t>(n)];
        check(std::fabs(lost - said) <= 1e-3 * said + 1e-9 * energy, "search", isa, "the loss that it tells");
        check(lost <= 0.05 * energy, "search", isa, "it loses too much");
    }
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
            if (round % 5 == 4) mixq_set_integer_rows(context.at, random.whole(0, 1) ? 3 : 1000);
            test_linear(random, context);
            test_router(random, context);
            test_experts(random, context);
            test_dequantize(random, context);
            test_rms_norm(random, context);
            test_attention(random, context);
            test_search(random, isa);
            if (round % 8 == 0) test_read(random, context);
            check(mixq_busy_ns(context.at) > 0, "the account of time", isa, "");
        }
        std::printf("instruction set %d: %s\n", isa, failures ? "WRONG" : "right");
    }
    return failures ? 1 : 0;
}
