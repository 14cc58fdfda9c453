#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "target.h"

namespace mixq {

#if MIXQ_X86
namespace avx512_bf16 {
namespace {
MIXQ_BEGIN_AVX512_BF16
#include "math.inc"
#include "gemm.inc"
MIXQ_END
}  // namespace
}  // namespace avx512_bf16
#endif

const GemmKernels* gemm_kernels(int isa) {
#if MIXQ_X86
    if (isa == MIXQ_ISA_AVX512_BF16) return &avx512_bf16::kGemm;
#endif
    (void)isa;
    return nullptr;
}

}  // namespace mixq
