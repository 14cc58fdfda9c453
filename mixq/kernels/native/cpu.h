// The instruction sets that the CPU and the operating system support.
#pragma once

// The C interface and mixq.kernels.native_library use the same numbers. A larger one of the same architecture includes
// the smaller ones.
enum MixqIsa {
    MIXQ_ISA_PORTABLE = 0,
    MIXQ_ISA_AVX2 = 1,         // with FMA and F16C
    MIXQ_ISA_AVX_VNNI = 2,     // 256 bits wide: laptops since Alder Lake
    MIXQ_ISA_AVX512 = 3,       // F, BW, VL, DQ and VNNI
    MIXQ_ISA_AVX512_BF16 = 4,  // and bfloat16 dot products
    MIXQ_ISA_NEON = 10,        // ARMv8.2 with dot products
};

namespace mixq {

// The best supported instruction set.
MixqIsa best_isa();

// Whether code for `isa` can run on this CPU.
bool supports(int isa);

// Whether the CPU has AMX tiles for bfloat16. mixq leaves them to torch's GEMM.
bool has_amx_bf16();

}  // namespace mixq
