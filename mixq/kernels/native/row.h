// Activations of one token, ready for the integer kernels.
//
// Values are rounded to int8 per 32 inputs: scale = absmax / 127, half to even. Inputs are padded with zeros to whole
// turns of 512, and laid out so that a kernel multiplies what it loads without a shuffle:
//
//   split    for nibbles, 128 bytes for every 128 inputs: the 64 even ones, then the 64 odd ones (for the low and the
//            high halves of 64 bytes of codes)
//   sizes    the magnitudes of `split`, where the instruction set multiplies unsigned by signed bytes only
//   natural  for bytes: the inputs in order
//   scale32, bias32   of every block of 32 inputs
//   scale16, bias16   of every block of 16 inputs, for weights with groups of 16
//
// A bias is -128 times the sum of the block's integers: it cancels the 128 by which unsigned weights are offset. Scales
// and biases are in the order of the lanes in which a kernel sums blocks (`block_of_lane` in decode.inc).
#pragma once

#include <cstdint>

namespace mixq {

constexpr int64_t kChunk = 128;
constexpr int64_t kBlock = 32;  // inputs with one scale
constexpr int64_t kTurn = 512;  // inputs; a float32 accumulator sums one of its blocks of 32 (see decode.h)

struct Row {
    int8_t* split;
    int8_t* sizes;
    int8_t* natural;
    float *scale16, *scale32;
    int32_t *bias16, *bias32;
    float* plain;  // float32 in order, rounded to bfloat16 or not: for weights that are not quantized
};

// Which of these a matrix needs.
enum RowForms { kSplit = 1, kNatural = 2, kRounded = 4, kUnrounded = 8 };

// Chunks of a row, padded to whole turns.
inline int64_t chunks_of(int64_t columns) { return (columns + kTurn - 1) / kTurn * (kTurn / kChunk); }

// Bytes of a row in the requested forms; a multiple of 64.
inline int64_t row_bytes(int64_t columns, int forms) {
    const int64_t inputs = chunks_of(columns) * kChunk;
    return ((forms & kSplit) ? 2 * inputs : 0) + ((forms & kNatural) ? inputs : 0) +
           ((forms & (kSplit | kNatural)) ? inputs / 16 * 8 + inputs / 32 * 8 : 0) +
           ((forms & (kRounded | kUnrounded)) ? inputs * 4 : 0);
}

// Split `memory` (64-byte aligned, row_bytes long) into a row's parts; forms that were not requested must not be used.
inline Row lay_out_row(char* memory, int64_t columns, int forms) {
    const int64_t inputs = chunks_of(columns) * kChunk;
    auto cut = [&](int64_t bytes) {
        char* part = memory;
        memory += bytes;
        return part;
    };
    Row row = {};
    if (forms & kSplit) {
        row.split = reinterpret_cast<int8_t*>(cut(inputs));
        row.sizes = reinterpret_cast<int8_t*>(cut(inputs));
    }
    if (forms & kNatural) row.natural = reinterpret_cast<int8_t*>(cut(inputs));
    if (forms & (kSplit | kNatural)) {
        row.scale16 = reinterpret_cast<float*>(cut(inputs / 16 * 4));
        row.scale32 = reinterpret_cast<float*>(cut(inputs / 32 * 4));
        row.bias16 = reinterpret_cast<int32_t*>(cut(inputs / 16 * 4));
        row.bias32 = reinterpret_cast<int32_t*>(cut(inputs / 32 * 4));
    }
    if (forms & (kRounded | kUnrounded)) row.plain = reinterpret_cast<float*>(cut(inputs * 4));
    return row;
}

}  // namespace mixq
