// What all parts of the driver share: counting what is wrong, distances, a context of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "random_matrix.h"

namespace driver {

inline int failures = 0;

inline void check(bool right, const char* what, int isa, const char* detail) {
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
    Rounding rounding(const MixqMatrix& w) const {
        if (w.kind == MIXQ_BF16) return Rounding::kBf16;
        return w.kind == MIXQ_F32 ? Rounding::kNone : Rounding::kInt8;
    }
    int isa;
    MixqContext* at;
};

void test_attention(Random& random, const Context& context);
void test_choose(Random& random, const Context& context);
void test_step(Random& random, const Context& context);
void test_search(Random& random, int isa);

}  // namespace driver
