// The pool behind parallel_rows.

#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace flashmoe {
namespace {

// A range is a thread's share of the rows that are left: the first ones are long, since memory is
// slow where one begins, and the last ones short, so that all threads end together.
constexpr std::size_t kShortest = 64;  // of a thread's share of all rows
constexpr std::size_t kRound = 8;      // rows that kernels compute together

// How long a thread watches for work before it sleeps. Waking a sleeper takes 5 to 50 us, more
// than a small product; between the products of one token there are 10 to 50 us of other work.
constexpr std::chrono::microseconds kWatch{50};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether `done` came true while it was watched.
template <class Condition>
bool watch(Condition done) {
    const auto until = std::chrono::steady_clock::now() + kWatch;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    return false;
}

class Pool {
public:
    void run(std::size_t rows, int threads, const RowTask& task) {
        const std::lock_guard turn(turn_);  // one job at a time
        const std::size_t helpers = static_cast<std::size_t>(threads) - 1;
        while (workers_.size() < helpers) {
            const std::size_t index = workers_.size();
            workers_.emplace_back([this, index] { work(index); });
        }
        task_ = &task;
        rows_ = rows;
        threads_ = static_cast<std::size_t>(threads);
        next_.store(0, std::memory_order_relaxed);
        running_.store(helpers, std::memory_order_relaxed);
        bool wake;
        {
            const std::lock_guard lock(mutex_);
            // The number of workers wanted travels with the job: see work().
            job_.store(((job_.load() >> kWantedBits) + 1) << kWantedBits | helpers);
            wake = sleepers_ > 0;
        }
        if (wake) wake_.notify_all();
        drain(0);
        // `task` is the caller's: no worker may still hold it when run() returns.
        const auto idle = [this] { return running_.load(std::memory_order_acquire) == 0; };
        if (watch(idle)) return;
        std::unique_lock lock(mutex_);
        idle_.wait(lock, idle);
    }

private:
    static constexpr unsigned kWantedBits = 16;

    // Takes ranges until none is left. next_ hands each row to exactly one thread; everything
    // else a job consists of was published with job_.
    void drain(int worker) {
        std::size_t begin = next_.load(std::memory_order_relaxed);
        while (begin < rows_) {
            const std::size_t end = std::min(begin + range_at(begin), rows_);
            if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
            (*task_)(begin, end, worker);
            begin = next_.load(std::memory_order_relaxed);
        }
    }

    std::size_t range_at(std::size_t begin) const {
        const std::size_t range =
            std::max((rows_ - begin) / threads_, rows_ / (threads_ * kShortest));
        return range < kRound ? std::max<std::size_t>(range, 1) : range / kRound * kRound;
    }

    // A wanted worker takes part in every job, and a job ends only when all of them have
    // reported: none of them can miss one, nor see the next one's fields. One that is not wanted
    // learns so from job_ itself, reads nothing else, and may sleep through any number of jobs.
    void work(std::size_t index) {
        std::uint64_t seen = 0;
        const auto called = [&] { return job_.load(std::memory_order_acquire) != seen; };
        for (;;) {
            if (!watch(called)) {
                std::unique_lock lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, called);
                --sleepers_;
            }
            seen = job_.load(std::memory_order_acquire);
            if (index >= (seen & ((1U << kWantedBits) - 1))) continue;
            drain(static_cast<int>(index) + 1);
            if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                const std::lock_guard lock(mutex_);
                idle_.notify_one();
            }
        }
    }

    std::mutex turn_;
    std::mutex mutex_;  // for sleeping: whoever changes what a sleeper waits for holds it
    std::condition_variable wake_, idle_;
    std::vector<std::thread> workers_;
    std::size_t sleepers_ = 0;  // guarded by mutex_
    // One job's fields: written by run() before it changes job_.
    const RowTask* task_ = nullptr;
    std::size_t rows_ = 0, threads_ = 1;
    std::atomic<std::size_t> next_{0}, running_{0};
    std::atomic<std::uint64_t> job_{0};  // a count of jobs, then the workers wanted
};

// Never destroyed: its threads sleep until the process ends, and joining them from a static
// destructor would race with whatever else is being torn down.
std::mutex making;
Pool* current = nullptr;  // guarded by `making`

// A forked child has the pool's memory without its threads, and perhaps a locked mutex: it
// leaves that pool behind and makes its own.
void before_fork() { making.lock(); }
void after_fork_in_parent() { making.unlock(); }
void after_fork_in_child() {
    current = nullptr;
    making.unlock();
}

Pool& pool() {
    const std::lock_guard lock(making);
    static const int registered =
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    if (registered != 0) throw std::bad_alloc();  // ENOMEM is its only error
    if (current == nullptr) current = new Pool;
    return *current;
}

}  // namespace

void parallel_rows(std::size_t rows, int threads, const RowTask& task) {
    threads = static_cast<int>(std::min(static_cast<std::size_t>(std::max(threads, 1)), rows));
    if (rows == 0) return;
    if (threads == 1) return task(0, rows, 0);
    pool().run(rows, threads, task);
}

}  // namespace flashmoe
