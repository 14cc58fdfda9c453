// Which instruction sets this CPU, and its operating system, let us use.
#pragma once

// Also the numbers of the C interface and of mixq.kernels.native_library; a larger one of the same architecture includes the
// smaller ones.
enum MixqIsa {
    MIXQ_ISA_PORTABLE = 0,
    MIXQ_ISA_AVX2 = 1,         // with FMA and F16C
    MIXQ_ISA_AVX_VNNI = 2,     // 256 bits wide: laptops from Alder Lake on
    MIXQ_ISA_AVX512 = 3,       // F, BW, VL, DQ and VNNI
    MIXQ_ISA_AVX512_BF16 = 4,  // and bfloat16 dot products
    MIXQ_ISA_NEON = 10,        // ARMv8.2 with dot products
};

namespace mixq {

// The best instruction set that may be used here.
MixqIsa best_isa();

// Whether code for `isa` may run here.
bool supports(int isa);

// Whether the CPU has AMX tiles for bfloat16. mixq leaves them to torch's GEMM.
bool has_amx_bf16();

}  // namespace mixq
