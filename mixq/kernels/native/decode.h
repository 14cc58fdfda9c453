// Matrix times a few rows of activations, from the bytes of the model folder.
//
// Contract: the product of a row of activations does not depend on the other rows, on how the outputs are split into pieces
// or on which thread computes them, or on how weights are fetched: the order in which a dot product is summed depends on K
// and the group size alone. Integer sums of blocks (32 inputs, or 16 with groups of 16) are exact. Float32 accumulator i
// of 16 adds the blocks i, i + 16, i + 32, ... in this order (a row of 16 blocks is a turn); then the accumulators are
// added in pairs: with blocks of 32 those whose numbers differ in bit 1, then 0, 3, 2; with blocks of 16 bit 2, 1, 3, 0.
#pragma once

#include <cstdint>

#include "api.h"
#include "matrix.h"
#include "row.h"

namespace mixq {

constexpr int64_t kRowsTogether = 4;  // rows of activations for which a row of weights is read once

struct DecodeKernels {
    // Fill the forms `forms` of a row's chunks [first, last) from x [K]; inputs from K on are zero.
    void (*prepare)(const float* x, int64_t columns, int64_t first, int64_t last, int forms, const Row& row);

    // out[t][n - begin] = W[n] . row[t] for n in [begin, end), t in [0, count). `next` is what will be read after this
    // (null: unknown), to be prefetched.
    void (*multiply)(const MixqMatrix& w, int64_t begin, int64_t end, const Row* const* rows, int64_t count,
                     float* const* out, const void* next, const MixqFetch& fetch);

    // out = silu(gate) * up, n values.
    void (*silu_mul)(const float* gate, const float* up, float* out, int64_t n);
};

// The kernels for a MixqIsa that the CPU supports.
const DecodeKernels& decode_kernels(int isa);

inline int forms_of(const MixqMatrix& w) {
    return w.kind == MIXQ_NIBBLES ? kSplit : w.kind == MIXQ_BYTES ? kNatural : w.kind == MIXQ_BF16 ? kRounded : kUnrounded;
}

// Bytes from one row of codes to the next.
inline int64_t row_stride(const MixqMatrix& w) {
    return w.kind == MIXQ_NIBBLES ? w.columns / 2 : w.kind == MIXQ_BYTES ? w.columns : w.columns * (w.kind == MIXQ_BF16 ? 2 : 4);
}

}  // namespace mixq
