#include "context.h"

#include <cmath>
#include <cstring>

#include "api.h"
#include "cpu.h"
#include "target.h"

namespace mixq {
namespace {
#include "math.inc"
}  // namespace
}  // namespace mixq

int mixq_abi_version() { return MIXQ_ABI_VERSION; }

const char* mixq_compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

int mixq_best_isa() { return mixq::best_isa(); }
int mixq_supports(int isa) { return mixq::supports(isa); }
int mixq_has_bf16() { return mixq::has_bf16(); }

MixqContext* mixq_open(int threads, int isa) {
    if (threads < 1 || !mixq::supports(isa)) return nullptr;
    try {
        return new MixqContext(threads, isa);
    } catch (...) {  // no memory, or no thread: the caller says which setting to change
        return nullptr;
    }
}

void mixq_close(MixqContext* context) { delete context; }

int64_t mixq_busy_ns(const MixqContext* context) { return context->busy_ns; }

void mixq_rms_norm(MixqContext* context, const float* x, const void* weight, float eps, int64_t T, int64_t D, float* out) {
    mixq::timed(context, [&](MixqContext&) {
        for (int64_t t = 0; t < T; ++t, x += D, out += D) {
            float lanes[16] = {};  // sums of every 16th element: independent, so that they share a register
            int64_t d = 0;
            for (; d + 16 <= D; d += 16)
                for (int i = 0; i < 16; ++i) lanes[i] += x[d + i] * x[d + i];
            for (int i = 0; d < D; ++d, ++i) lanes[i] += x[d] * x[d];
            for (int half = 8; half > 0; half /= 2)
                for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
            const float factor = 1.0f / std::sqrt(lanes[0] / static_cast<float>(D) + eps);
            for (d = 0; d < D; ++d) out[d] = x[d] * factor * mixq::bf16_to_float(mixq::number_at<uint16_t>(weight, d));
        }
    });
}
