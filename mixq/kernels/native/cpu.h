// The instruction sets that the CPU and the operating system support.
#pragma once

// The C interface and mixq.kernels.native_library use the same numbers. A larger one of the same architecture includes
// the smaller ones.
enum MixqIsa {
    MIXQ_ISA_PORTABLE = 0,
    MIXQ_ISA_AVX2 = 1,         // with FMA and F16C
    MIXQ_ISA_AVX_VNNI = 2,     // 256 bits wide: laptops since Alder Lake
    MIXQ_ISA_AVX512 = 3,       // F, BW, VL, DQ and VNNI
    MIXQ_ISA_AMX = 4,          // and tiles of bytes
    MIXQ_ISA_NEON = 10,        // ARMv8.2 with dot products
};

namespace mixq {

// The best supported instruction set.
MixqIsa best_isa();

// Whether code for `isa` can run on this CPU.
bool supports(int isa);

// Whether torch multiplies bfloat16 matrices fast: with AMX tiles or dot products of AVX-512.
bool has_bf16();

}  // namespace mixq
