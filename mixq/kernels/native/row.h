// Activations of one token, ready for the integer kernels.
//
// Values are rounded to int8 per 32 inputs: scale = absmax / 127, half to even. They are laid out in chunks of 128
// inputs, padded with zeros, so that a kernel multiplies what it loads without a shuffle, and all of a chunk is
// contiguous:
//
//   split    for nibbles:  64 even inputs, 64 odd ones (for the low and high halves of 64 bytes); then either the
//            int32 biases of the 16 lanes of 32 bits that sum 8 adjacent inputs each, or the inputs' magnitudes
//   natural  for bytes:  128 inputs in order; then the biases of the 32 lanes that sum 4 inputs each
//   scale16, scale32  one scale for every 16 or 32 inputs, as the weights' groups need them
//
// A bias is -128 times the lane's sum of integers: it cancels the 128 by which unsigned weights are offset. Magnitudes
// are for AVX2, where two signed factors must become an unsigned and a signed one.
#pragma once

#include <cstdint>

namespace mixq {

constexpr int64_t kChunk = 128;
constexpr int64_t kBlock = 32;  // inputs with one scale

constexpr int64_t kSplitLanes = kChunk / 8, kNaturalLanes = kChunk / 4;
constexpr int64_t kRowChunk = 2 * kChunk;  // bytes of a chunk, split or natural
constexpr int64_t kScalesBeyond = 16;      // a vector of scales may begin at the last one

struct Row {
    int8_t* split;
    int8_t* natural;
    float* scale16;
    float* scale32;
    float* plain;  // float32 in order, rounded to bfloat16 or not: for weights that are not quantized
};

// Which of these a matrix needs.
enum RowForms { kSplit = 1, kNatural = 2, kRounded = 4, kUnrounded = 8 };

inline int64_t chunks_of(int64_t columns) { return (columns + kChunk - 1) / kChunk; }

inline int64_t scale_bytes(int64_t columns, int64_t inputs) {
    return (chunks_of(columns) * (kChunk / inputs) + kScalesBeyond + 15) / 16 * 64;
}

// Bytes of a row in the requested forms; a multiple of 64.
inline int64_t row_bytes(int64_t columns, int forms) {
    const int64_t chunks = chunks_of(columns);
    return ((forms & kSplit) ? chunks * kRowChunk : 0) + ((forms & kNatural) ? chunks * kRowChunk : 0) +
           ((forms & (kSplit | kNatural)) ? scale_bytes(columns, 16) + scale_bytes(columns, 32) : 0) +
           ((forms & (kRounded | kUnrounded)) ? chunks * kChunk * 4 : 0);
}

// Split `memory` (64-byte aligned, row_bytes long) into a row's parts; forms that were not requested must not be used.
inline Row lay_out_row(char* memory, int64_t columns, int forms) {
    const int64_t chunks = chunks_of(columns);
    char* natural = memory + ((forms & kSplit) ? chunks * kRowChunk : 0);
    char* scale16 = natural + ((forms & kNatural) ? chunks * kRowChunk : 0);
    char* scale32 = scale16 + scale_bytes(columns, 16);
    char* plain = memory + row_bytes(columns, forms & (kSplit | kNatural));
    return {reinterpret_cast<int8_t*>(memory), reinterpret_cast<int8_t*>(natural), reinterpret_cast<float*>(scale16),
            reinterpret_cast<float*>(scale32), reinterpret_cast<float*>(plain)};
}

}  // namespace mixq
