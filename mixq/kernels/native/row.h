// Activations of one token, ready for the integer kernels.
//
// Values are rounded to int8 per 32 inputs: scale = absmax / 127, half to even. Everything is laid out in chunks of 128
// inputs, padded with zeros, so that a kernel multiplies what it loads, with no shuffle:
//
//   split      the chunk's 64 even inputs, then its 64 odd ones: what the low and high halves of 64 bytes of nibbles meet
//   natural    the inputs in order, for bytes
//   *_scale    the scale of each group of adjacent bytes that one 32-bit lane sums: 16 lanes a chunk for nibbles (8 inputs
//              each), 32 for bytes (4 inputs each)
//   *_bias     -128 times the lane's sum of integers: takes back the 128 by which unsigned operands are offset
#pragma once

#include <cstdint>

namespace mixq {

constexpr int64_t kChunk = 128;
constexpr int64_t kBlock = 32;  // inputs with one scale

struct Row {
    int8_t* split;
    float* split_scale;
    int32_t* split_bias;
    int8_t* natural;
    float* natural_scale;
    int32_t* natural_bias;
    float* plain;  // float32 in order, rounded to bfloat16 or not: for weights that are not quantized
};

// Which of these a matrix asks for.
enum RowForms { kSplit = 1, kNatural = 2, kRounded = 4, kUnrounded = 8 };

inline int64_t padded(int64_t columns) { return (columns + kChunk - 1) / kChunk * kChunk; }

// Bytes of all forms of a row.
inline int64_t row_bytes(int64_t columns) { return padded(columns) * 9; }

// Cut `memory` (64-byte aligned, row_bytes long) into a row's parts.
inline Row lay_out_row(char* memory, int64_t columns) {
    const int64_t K = padded(columns);
    Row row;
    auto cut = [&memory](int64_t bytes) {
        char* part = memory;
        memory += bytes;
        return part;
    };
    row.split = reinterpret_cast<int8_t*>(cut(K));
    row.natural = reinterpret_cast<int8_t*>(cut(K));
    row.split_scale = reinterpret_cast<float*>(cut(K / 8 * 4));
    row.split_bias = reinterpret_cast<int32_t*>(cut(K / 8 * 4));
    row.natural_scale = reinterpret_cast<float*>(cut(K / 4 * 4));
    row.natural_bias = reinterpret_cast<int32_t*>(cut(K / 4 * 4));
    row.plain = reinterpret_cast<float*>(cut(K * 4));
    return row;
}

}  // namespace mixq
