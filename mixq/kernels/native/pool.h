// The threads that share a kernel's work.
//
// Contract: `run` splits the rows [0, count) into pieces and calls `work(context, begin, end)` for each, on the calling
// thread and the threads of the pool; it returns when all are done. The next free thread takes the next piece, large
// ones first and small ones last, so a slow core (an efficiency core, or one that another program uses) takes fewer.
// After its work a worker spins for some microseconds, because the next call of a decode step follows at once, and then
// sleeps.
//
// One caller at a time: others wait. The sums of a kernel do not depend on how rows are split.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mixq {

class Pool {
   public:
    using Work = void (*)(void* context, int64_t begin, int64_t end);

    // `threads` counts the caller; 1 starts none.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Share [0, count) in multiples of `grain` rows (the last piece may be smaller). If `work` throws
    // std::bad_alloc, so does `run`, when all pieces are done.
    void run(int64_t count, int64_t grain, Work work, void* context);

    template <class F>
    void run(int64_t count, int64_t grain, F&& work) {
        run(count, grain, [](void* f, int64_t begin, int64_t end) { (*static_cast<F*>(f))(begin, end); }, &work);
    }

   private:
    void worker();
    bool take_and_work();
    void wait_for_job();

    // The job: written while no ticket is open, read only after a ticket of this generation was taken.
    Work work_ = nullptr;
    void* context_ = nullptr;
    int64_t count_ = 0, grain_ = 1;

    // Generation of the job (upper half) and grains not yet taken (lower half): no thread can take from a finished
    // job, or from the next one with the fields of the old one.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> unfinished_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false}, no_memory_{false};
    std::mutex caller_, sleep_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace mixq
