#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "cpu.h"
#include "row.h"
#include "target.h"

namespace mixq {

// Pairs of accumulators are added in this order of the bits in which their numbers differ (decode.h).
Order::Order(int64_t columns, int block) : blocks(columns / block) {
    static constexpr int kBits32[4] = {1, 0, 3, 2}, kBits16[4] = {2, 1, 3, 0};
    int64_t place = 0;
    for (int step = 0; step < 16; ++step) {
        int number = 0;
        for (int level = 0; level < 4; ++level) number |= (step >> level & 1) << (block == 16 ? kBits16 : kBits32)[level];
        accumulators[step] = number;
        first_[number] = place;
        place += std::max<int64_t>(0, count(step));
    }
}

#if MIXQ_X86
#define MIXQ_AMX 0
namespace avx2 {
namespace {
MIXQ_BEGIN_AVX2
#define MIXQ_VNNI 0
#include "math.inc"
#include "simd_avx2.inc"
// Weights are widened to 16 bits: their products with activations of 16 bits need neither magnitudes nor signs.
constexpr int kTokens = 4, kWiden = 2, kFrom = 8;
inline Ints add_dot(Ints sum, Bytes w, Bytes x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
#include "gemm.inc"
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
constexpr int kTokens = 4, kWiden = 1, kFrom = 8;
inline Ints add_dot(Ints sum, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#include "gemm.inc"
#undef MIXQ_VNNI
MIXQ_END
}  // namespace
}  // namespace avx_vnni

namespace avx512 {
namespace {
MIXQ_BEGIN_AVX512
#define MIXQ_OFFSET 128
#include "math.inc"
#include "simd_avx512.inc"
constexpr int kTokens = 6, kWiden = 1, kFrom = 6;
inline Ints add_dot(Ints sum, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
#include "gemm.inc"
#undef MIXQ_OFFSET
MIXQ_END
}  // namespace
}  // namespace avx512

#undef MIXQ_AMX
#define MIXQ_AMX 1
namespace amx {
namespace {
MIXQ_BEGIN_AMX
#define MIXQ_OFFSET 0
#include "math.inc"
#include "simd_avx512.inc"
constexpr int kTokens = 16, kWiden = 1, kFrom = 8;
#include "gemm.inc"
#undef MIXQ_OFFSET
MIXQ_END
}  // namespace
}  // namespace amx
#endif

const GemmKernels* gemm_kernels([[maybe_unused]] int isa) {
#if MIXQ_X86
    if (isa == MIXQ_ISA_AMX) return &amx::kGemm;
    if (isa == MIXQ_ISA_AVX512) return &avx512::kGemm;
    if (isa == MIXQ_ISA_AVX_VNNI) return &avx_vnni::kGemm;
    if (isa == MIXQ_ISA_AVX2) return &avx2::kGemm;
#endif
    return nullptr;
}

}  // namespace mixq
