#include "decode.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu.h"
#include "target.h"

namespace mixq {

#define MIXQ_KERNELS "decode.inc"
#define MIXQ_PORTABLE "simd_portable.inc"
#include "every_isa.inc"

#if MIXQ_X86
namespace avx_vnni {
namespace {
MIXQ_BEGIN_AVX_VNNI
#define MIXQ_VNNI 1
#include "math.inc"
#include "simd_avx2.inc"
#include "decode.inc"
#undef MIXQ_VNNI
MIXQ_END
}  // namespace
}  // namespace avx_vnni
#elif MIXQ_ARM64
namespace neon {
namespace {
MIXQ_BEGIN_NEON
#include "math.inc"
#include "simd_neon.inc"
#include "decode.inc"
MIXQ_END
}  // namespace
}  // namespace neon
#endif

const DecodeKernels& decode_kernels(int isa) {
#if MIXQ_X86
    if (isa == MIXQ_ISA_AVX_VNNI) return avx_vnni::kKernels;
#elif MIXQ_ARM64
    if (isa == MIXQ_ISA_NEON) return neon::kKernels;
#endif
    return kernels_of(isa);
}

}  // namespace mixq
