// A weight matrix in the layout of the model folder. Part of the C interface: mixq/kernels/native_library.py has the
// same fields.
#pragma once

#include <cstdint>

enum MixqKind {
    MIXQ_BF16 = 0,     // bfloat16, row by row
    MIXQ_NIBBLES = 1,  // nl4 and w4: byte j of a row holds weight 2j in its low half, 2j+1 in its high half
    MIXQ_BYTES = 2,    // w8: the weight's integer plus 128
    MIXQ_F32 = 3,
};

enum MixqScaleType { MIXQ_SCALE_I8 = 0, MIXQ_SCALE_BF16 = 1, MIXQ_SCALE_F16 = 2, MIXQ_SCALE_F32 = 3 };

// W[n, k] = value(code[n, k]) * scale[n, k / group_size] * row_scale[n], N rows (outputs) by K columns (inputs).
struct MixqMatrix {
    int32_t kind;
    int32_t group_size;  // 16, 32, 64 or 128; K is a multiple of it
    int64_t rows;
    int64_t columns;
    const void* codes;
    const void* scales;
    const float* row_scale;  // null: ones
    int32_t scale_type;
    int8_t table[16];  // the value of each nibble: nl4's table, or -8..7
};
