// The pool under more threads than cores and jobs of all sizes: each row done exactly once, what was written seen by the
// caller, and nothing of one job seen in the next. Meant for ThreadSanitizer.
//
//   stress_pool [JOBS]

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "../../mixq/kernels/native/pool.h"

namespace {

std::atomic<int> failures{0};

void fail(const char* what, int threads, int64_t count, int64_t grain) {
    if (failures++ < 10)
        std::fprintf(stderr, "stress_pool: %s with %d threads, %lld rows in grains of %lld\n", what, threads,
                     static_cast<long long>(count), static_cast<long long>(grain));
}

// Sizes from one row to many grains for each thread, most of them small.
int64_t random_count(std::mt19937& random) {
    const int bits = static_cast<int>(random() % 13);
    return static_cast<int64_t>(random() % (1u << bits)) + 1;
}

// Plain ints on purpose: ThreadSanitizer tells when two threads touch a row, or the caller reads too early.
void each_row_once(mixq::Pool& pool, std::mt19937& random, std::vector<int>& done) {
    const int64_t count = random_count(random), grain = random_count(random) / 4 + 1;
    std::fill(done.begin(), done.begin() + count, 0);
    bool whole_grains = true;
    std::atomic<bool> seen_broken{false};
    pool.run(count, grain, [&](int64_t begin, int64_t end) {
        if (begin < 0 || end > count || begin >= end || begin % grain || (end % grain && end != count)) seen_broken = true;
        for (int64_t i = std::max<int64_t>(0, begin); i < std::min(end, count); ++i) ++done[i];
    });
    whole_grains = !seen_broken;
    if (!whole_grains) fail("a piece that is not whole grains", pool.threads(), count, grain);
    if (std::any_of(done.begin(), done.begin() + count, [](int times) { return times != 1; }))
        fail("a row not done exactly once", pool.threads(), count, grain);
}

// Jobs that follow at once and whose data lives on the caller's stack, as a decode step's do.
void chained_jobs(mixq::Pool& pool, std::mt19937& random) {
    const int64_t count = random_count(random);
    std::vector<int64_t> first(count), second(first.size());
    pool.run(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) first[i] = i;
    });
    pool.run(count, 3, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) second[i] = first[count - 1 - i];
    });
    for (int64_t i = 0; i < count; ++i)
        if (second[i] != count - 1 - i) return fail("a job that does not see the one before", pool.threads(), count, 3);
}

// A worker that finds no memory: the caller hears of it once all are done, and the next job is as usual.
void no_memory(mixq::Pool& pool, std::mt19937& random, std::vector<int>& done) {
    const int64_t count = random_count(random);
    const int64_t bad = static_cast<int64_t>(random()) % count;
    bool told = false;
    try {
        pool.run(count, 1, [&](int64_t begin, int64_t end) {
            if (begin <= bad && bad < end) throw std::bad_alloc();
        });
    } catch (const std::bad_alloc&) {
        told = true;
    }
    if (!told) fail("no word of the missing memory", pool.threads(), count, 1);
    each_row_once(pool, random, done);
}

// Pools open and close beside others, workers asleep or not; several callers take turns.
void open_and_close(int threads, std::mt19937& random, std::vector<int>& done) {
    mixq::Pool pool(threads);
    if (random() % 2) each_row_once(pool, random, done);
    if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
}

void several_callers(mixq::Pool& pool, int jobs) {
    std::vector<std::thread> callers;
    for (unsigned seed = 0; seed < 3; ++seed)
        callers.emplace_back([&pool, seed, jobs] {
            std::mt19937 random(seed);
            std::vector<int> done(1 << 13);
            for (int job = 0; job < jobs; ++job) each_row_once(pool, random, done);
        });
    for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main(int count, char** arguments) {
    const int jobs = count > 1 ? std::atoi(arguments[1]) : 3000;
    std::mt19937 random(1);
    std::vector<int> done(1 << 13);
    for (int threads : {1, 2, 3, 4, 8, 16}) {
        mixq::Pool pool(threads);
        for (int job = 0; job < jobs && !failures; ++job) {
            each_row_once(pool, random, done);
            if (job % 4 == 0) chained_jobs(pool, random);
            if (job % 16 == 0) no_memory(pool, random, done);
            if (job % 128 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));  // workers fall asleep
        }
        several_callers(pool, jobs / 10);
        for (int i = 0; i < 20 && !failures; ++i) open_and_close(threads, random, done);
        std::printf("%d threads: %s\n", threads, failures ? "WRONG" : "right");
    }
    return failures ? 1 : 0;
}
