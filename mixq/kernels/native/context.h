// What the calls of one model share: threads, kernels of the chosen instruction set, working memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>

#include "decode.h"
#include "gemm.h"
#include "pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mixq {

// Memory that grows on demand, on huge pages where the system has them. Its content does not outlive a call.
class Workspace {
   public:
    ~Workspace() { release(); }

    // At least `bytes`, aligned to a page. Throws std::bad_alloc.
    char* get(int64_t bytes) {
        if (bytes > size_) {
            release();
            constexpr int64_t kHuge = int64_t{2} << 20;
            const int64_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
            data_ = static_cast<char*>(::operator new(static_cast<size_t>(rounded), std::align_val_t{kHuge}));
            size_ = rounded;
#if defined(__linux__)
            madvise(data_, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
        }
        return data_;
    }

   private:
    void release() {
        if (data_) ::operator delete(data_, std::align_val_t{size_t{2} << 20});
        data_ = nullptr, size_ = 0;
    }

    char* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace mixq

struct MixqContext {
    MixqContext(int threads, int chosen)
        : pool(threads), isa(chosen), decode(mixq::decode_kernels(chosen)), gemm(mixq::gemm_kernels(chosen)) {}

    mixq::Pool pool;
    const int isa;
    const mixq::DecodeKernels& decode;
    const mixq::GemmKernels* const gemm;  // null: the decode kernels compute many rows too
    MixqFetch fetch = {MIXQ_FETCH_TWICE, 1, 8192, 1024};
    mixq::Workspace workspace, outputs, step;
    int64_t busy_ns = 0;
    bool in_call = false;  // by `timed`
};

namespace mixq {

// Do the work of a call and add its time to context->busy_ns; a call within that work is not added again. Returns 0, or 1
// without memory.
template <class Work>
int timed(MixqContext* context, const Work& work) {
    using Clock = std::chrono::steady_clock;
    const bool within = context->in_call;
    const Clock::time_point start = within ? Clock::time_point() : Clock::now();
    context->in_call = true;
    int code = 0;
    try {
        work(*context);
    } catch (const std::bad_alloc&) {
        code = 1;
    }
    if (within) return code;
    context->in_call = false;
    const auto spent = Clock::now() - start;
    context->busy_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    return code;
}

// Cuts a workspace into parts aligned to cache lines.
class Cutter {
   public:
    explicit Cutter(char* memory) : memory_(memory) {}
    static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    char* cut(int64_t bytes) {
        char* part = memory_;
        memory_ += aligned(bytes);
        return part;
    }
    float* floats(int64_t count) { return reinterpret_cast<float*>(cut(count * 4)); }

   private:
    char* memory_;
};

}  // namespace mixq
