// Activations of one token, ready for the integer kernels.
//
// Values are rounded to int8 per 32 inputs: scale = absmax / 127, half to even. They are laid out in chunks of 128 inputs,
// continued by zeros, so that a kernel multiplies what it loads, with no shuffle, and finds all of a chunk side by side:
//
//   split    for nibbles:  64 even inputs, 64 odd ones (what the low and high halves of 64 bytes meet); then for each of the
//            16 lanes of 32 bits, which sum 8 adjacent inputs, the float32 scale; then the lanes' int32 bias
//   natural  for bytes:  128 inputs in order; scales of the 32 lanes, which sum 4 inputs each; their biases
//
// A bias is -128 times the lane's sum of integers: it takes back the 128 by which unsigned weights are offset.
#pragma once

#include <cstdint>

namespace mixq {

constexpr int64_t kChunk = 128;
constexpr int64_t kBlock = 32;  // inputs with one scale

constexpr int64_t kSplitLanes = kChunk / 8, kNaturalLanes = kChunk / 4;
constexpr int64_t kSplitBytes = kChunk + kSplitLanes * 8, kNaturalBytes = kChunk + kNaturalLanes * 8;

struct Row {
    int8_t* split;
    int8_t* natural;
    float* plain;  // float32 in order, rounded to bfloat16 or not: for weights that are not quantized
};

// Which of these a matrix asks for.
enum RowForms { kSplit = 1, kNatural = 2, kRounded = 4, kUnrounded = 8 };

inline int64_t chunks_of(int64_t columns) { return (columns + kChunk - 1) / kChunk; }

// Bytes of a row in the forms asked for; a multiple of 64.
inline int64_t row_bytes(int64_t columns, int forms) {
    return chunks_of(columns) * (((forms & kSplit) ? kSplitBytes : 0) + ((forms & kNatural) ? kNaturalBytes : 0) +
                                 ((forms & (kRounded | kUnrounded)) ? kChunk * 4 : 0));
}

// Cut `memory` (64-byte aligned, row_bytes long) into a row's parts; the forms not asked for must not be touched.
inline Row lay_out_row(char* memory, int64_t columns, int forms) {
    char* natural = memory + row_bytes(columns, forms & kSplit);
    char* plain = natural + row_bytes(columns, forms & kNatural);
    return {reinterpret_cast<int8_t*>(memory), reinterpret_cast<int8_t*>(natural), reinterpret_cast<float*>(plain)};
}

}  // namespace mixq
