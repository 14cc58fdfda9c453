#include "pool.h"

#include <algorithm>
#include <chrono>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixq {

namespace {

constexpr uint64_t kGrains = 0xffffffffu;

// How long a worker spins before it sleeps: longer than a decode step takes between two calls, because waking a
// sleeping core takes 50 us or more on a virtual machine, and a step makes about 30 calls; short enough not to matter
// afterwards.
constexpr auto kSpin = std::chrono::microseconds(500);

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(sleep_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : workers_) thread.join();
}

void Pool::run(int64_t count, int64_t grain, Work work, void* context) {
    if (count <= 0) return;
    const int64_t grains = (count + grain - 1) / grain;
    if (workers_.empty() || grains == 1) return work(context, 0, count);
    std::lock_guard<std::mutex> one_at_a_time(caller_);
    work_ = work, context_ = context, count_ = count, grain_ = grain;
    unfinished_.store(grains, std::memory_order_relaxed);
    const uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(generation << 32 | static_cast<uint64_t>(grains), std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
        { std::lock_guard<std::mutex> lock(sleep_); }  // a thread that saw no job now sleeps, and will be woken
        wake_.notify_all();
    }
    while (take_and_work()) {
    }
    // Workers run the rest; one that the system has preempted needs the core.
    for (int spins = 0; unfinished_.load(std::memory_order_acquire) > 0; ++spins) {
        if (spins < 2000)
            pause();
        else
            std::this_thread::yield();
    }
    if (no_memory_.exchange(false, std::memory_order_relaxed)) throw std::bad_alloc();
}

// Take a piece and do it; false if none is left.
bool Pool::take_and_work() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    int64_t left, take;
    do {
        left = static_cast<int64_t>(ticket & kGrains);
        if (left == 0) return false;
        take = std::max<int64_t>(1, left / (2 * threads()));
    } while (!ticket_.compare_exchange_weak(ticket, ticket - static_cast<uint64_t>(take), std::memory_order_acq_rel,
                                            std::memory_order_acquire));
    const int64_t grains = (count_ + grain_ - 1) / grain_;
    const int64_t first = (grains - left) * grain_;
    try {
        work_(context_, first, std::min(count_, first + take * grain_));
    } catch (const std::bad_alloc&) {  // rethrown when all are done: the others still use the caller's data
        no_memory_.store(true, std::memory_order_relaxed);
    }
    unfinished_.fetch_sub(take, std::memory_order_release);
    return true;
}

void Pool::worker() {
    while (!stop_.load(std::memory_order_relaxed)) {
        if (!take_and_work()) wait_for_job();
    }
}

void Pool::wait_for_job() {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 32; ++i) {
            if ((ticket_.load(std::memory_order_acquire) & kGrains) != 0) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(sleep_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [this] { return stop_ || (ticket_.load(std::memory_order_seq_cst) & kGrains) != 0; });
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace mixq
