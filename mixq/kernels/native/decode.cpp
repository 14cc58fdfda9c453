#include "decode.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "target.h"

namespace mixq {

namespace portable {
namespace {
#include "math.inc"
#include "simd_portable.inc"
#include "decode.inc"
}  // namespace
}  // namespace portable

#if MIXQ_X86
namespace avx2 {
namespace {
MIXQ_BEGIN_AVX2
#define MIXQ_VNNI 0
#include "math.inc"
#include "simd_avx2.inc"
#include "decode.inc"
#undef MIXQ_VNNI
MIXQ_END
}  // namespace
}  // namespace avx2

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

namespace avx512 {
namespace {
MIXQ_BEGIN_AVX512
#include "math.inc"
#include "simd_avx512.inc"
#include "decode.inc"
MIXQ_END
}  // namespace
}  // namespace avx512
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
    switch (isa) {
#if MIXQ_X86
        case MIXQ_ISA_AVX512_BF16:
        case MIXQ_ISA_AVX512: return avx512::kDecode;
        case MIXQ_ISA_AVX_VNNI: return avx_vnni::kDecode;
        case MIXQ_ISA_AVX2: return avx2::kDecode;
#elif MIXQ_ARM64
        case MIXQ_ISA_NEON: return neon::kDecode;
#endif
        default: return portable::kDecode;
    }
}

}  // namespace mixq
