// Matrix times many rows of activations, in integers: for prompts.
//
// Contract: the results have the bits of decode.h's: the integer sum of a block is exact, and its float32 product is added
// to the same accumulators in the same order. So a row's result does not depend on the number of rows.
//
// Lanes are outputs. A tile is some rows of weights, looked up and transposed; a panel has the activations. Both are
// sequences of blocks, in the order in which they are added: all blocks of accumulator a, then those of the next, so that
// few accumulators are open at a time (`Order`). A micro-kernel multiplies a tile by a few tokens.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace mixq {

// How a matrix's weights are laid out in a tile, and the activations to match.
struct Layout {
    int32_t kind;   // MIXQ_NIBBLES or MIXQ_BYTES
    int32_t block;  // inputs with one scale of the weights and one of the activations: 16 or 32

    static Layout of(const MixqMatrix& w) { return {w.kind, w.group_size < 32 ? w.group_size : 32}; }
    bool operator==(const Layout& other) const { return kind == other.kind && block == other.block; }
};

// The order of the blocks of a row.
struct Order {
    Order(int64_t columns, int block);
    int64_t place(int64_t b) const { return first_[b % 16] + b / 16; }
    int64_t count(int step) const { return (blocks - accumulators[step] + 15) / 16; }  // none: 0 or less

    int64_t blocks;
    int accumulators[16];  // in the order in which they are completed: step i is added to i - 1 if i is odd, and so on

   private:
    int64_t first_[16];  // place of an accumulator's first block
};

// Activations of T tokens for matrices of one layout. Memory: `GemmKernels::panel_bytes`.
struct Panel {
    Layout layout;
    Order order;
    int64_t T, K;
    char* memory;
};

// Weights that are going to be needed, to be fetched meanwhile.
struct Ahead {
    const char* at = nullptr;
    int64_t bytes = 0;
};

struct GemmKernels {
    int64_t outputs;  // of a tile
    int64_t from;     // rows from which this is faster than decode.h

    int64_t (*panel_bytes)(const Layout& layout, int64_t T, int64_t K);
    int64_t (*tile_bytes)(const Layout& layout, int64_t K);

    // Round inputs [first, last) of token t to int8 per 32 (decode.h) and put them into a panel. x points to input
    // `first`; first is a multiple of 32, and so is last, unless it is K.
    void (*pack)(const Panel& panel, int64_t t, const float* x, int64_t first, int64_t last);

    // Put rows [begin, end) of w, at most `outputs`, into `tile`.
    void (*expand)(const MixqMatrix& w, int64_t begin, int64_t end, const Order& order, char* tile);

    // out[t][n - begin] = W[n] . row t, for the rows of the tile.
    void (*multiply)(const MixqMatrix& w, int64_t begin, int64_t end, const char* tile, const Panel& panel, float* const* out,
                     const Ahead& ahead);
};

// Null where the instruction set has none: the kernels of decode.h then take several rows at a time.
const GemmKernels* gemm_kernels(int isa);

inline int64_t padded_tokens(int64_t T, int64_t tokens) { return (T + tokens - 1) / tokens * tokens; }

}  // namespace mixq
