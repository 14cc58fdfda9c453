// The quantizer's search for scales and codes, over a block of rows.
//
// Contract: bit-identical to mixq.quantize.scale_search.reference_search: every sum is the same tree of float32
// additions, nothing is multiplied and added in one rounding, and every comparison breaks ties the same way. A row's
// result depends on that row alone. The caller has checked pointers and sizes; weights are finite (others give useless
// codes, but nothing is read or written out of bounds). One thread; call it for other rows on other threads.
//
// Axes: N rows, K columns, g weights in a group, G = K / g groups in a row. All arrays are contiguous, row by row.
#pragma once

#include <cstdint>

#include "api.h"

enum MixqFloat { MIXQ_FLOAT32 = 0, MIXQ_BFLOAT16 = 1, MIXQ_FLOAT16 = 2 };

// The matrix to quantize.
struct MixqSource {
    const void* weight;  // [rows, columns]
    int64_t rows;
    int64_t columns;  // a multiple of group_size
    int32_t type;     // MixqFloat
    int32_t group_size;  // 16, 32, 64 or 128
    const float* importance;  // [columns], positive: weight of each column's error; null: all equal
};

// The errors of a block of rows: sums for each row, and the number of groups that are not all zero.
struct MixqLoss {
    double* errors;        // [rows] sum of squared errors
    double* energies;      // [rows] sum of squared weights
    double* group_errors;  // [rows] sum over groups of error / energy
    int64_t* groups;       // [1]
};

enum MixqSearchResult { MIXQ_SEARCH_DONE = 0, MIXQ_SEARCH_BAD_ARGUMENT = 1, MIXQ_SEARCH_NO_MEMORY = 2 };

// nl4: codes u8 [N, K/2] (nibbles), scale i8 [N, G], row_scale f32 [N]; `table` 16 ascending values.
MIXQ_EXPORT int mixq_search_nl4(int isa, const MixqSource* source, const int8_t* table, uint8_t* codes, int8_t* scale,
                                float* row_scale, const MixqLoss* loss);

// w4 (bits 4) and w8 (bits 8): codes u8 [N, K * bits / 8], the integers plus 2**(bits-1); scale [N, G] of type
// `scale_type`, bfloat16 or float16.
MIXQ_EXPORT int mixq_search_integers(int isa, const MixqSource* source, int bits, int scale_type, uint8_t* codes,
                                     uint16_t* scale, const MixqLoss* loss);
