// Matrix times many rows of activations: bfloat16 products with float32 sums, for prefill.
//
// Contract: weights and activations are rounded to bfloat16; a sum runs over the inputs in order, two at a time, in one
// float32 accumulator, so it depends neither on the other rows nor on how the work is split. Only for MIXQ_ISA_AVX512_BF16;
// elsewhere the integer kernels compute many rows too, and with AMX torch's GEMM is faster still.
//
// Activations are packed into panels: tiles of up to 64 tokens, each [K / 2][width] pairs of bfloat16, where width is the
// tile's tokens rounded up to 16. So 16 tokens are the lanes of a register, and a pair of weights is broadcast to them.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace mixq {

constexpr int64_t kTile = 64;       // tokens
constexpr int64_t kGemmRows = 48;   // weight rows of a piece: a multiple of those of every micro-kernel
constexpr int64_t kGemmDepth = 1024;  // inputs dequantized at once: 96 KiB for a piece, in the L2 cache with a panel
constexpr int64_t kGemmStride = kGemmDepth + 32;  // one more cache line: rows 2 KiB apart would share two sets of the L1 cache

inline int64_t padded_tokens(int64_t T) { return (T + 15) / 16 * 16; }

// Pairs (4 bytes each) of a packed panel for T tokens of K inputs.
inline int64_t panel_pairs(int64_t T, int64_t K) { return padded_tokens(T) * ((K + 1) / 2); }

struct GemmKernels {
    // Pack inputs [2 * first, 2 * last) of T rows; x[t] points to K floats.
    void (*pack)(const float* const* x, int64_t T, int64_t K, int64_t first, int64_t last, uint32_t* panel);

    // sums[n * padded_tokens(T) + t] = W[begin + n] . row[t] for n in [0, end - begin), at most kGemmRows.
    // `weights` is a buffer of kGemmRows * kGemmStride numbers.
    void (*multiply)(const MixqMatrix& w, int64_t begin, int64_t end, const uint32_t* panel, int64_t T, uint16_t* weights,
                     float* sums);

    // The panel rows [begin / 2, end / 2) of silu(gate) * up, where both are [end - begin][padded_tokens(T)] and the
    // panel has T tokens of F inputs.
    void (*silu_mul)(const float* gate, const float* up, int64_t begin, int64_t end, int64_t T, int64_t F, uint32_t* panel);
    // Row n as K numbers in bfloat16.
    void (*dequantize)(const MixqMatrix& w, int64_t n, uint16_t* out);
};

// Null where the instruction set has no bfloat16 products.
const GemmKernels* gemm_kernels(int isa);

}  // namespace mixq
