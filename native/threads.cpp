// The pool behind parallel_rows.

#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace flashmoe {
namespace {

constexpr std::size_t kRangesPerThread = 8;  // small enough to even out a core that is taken away

class Pool {
public:
    void run(std::size_t rows, int threads, const RowTask& task) {
        const std::lock_guard turn(turn_);  // one job at a time
        const std::size_t helpers = static_cast<std::size_t>(threads) - 1;
        while (workers_.size() < helpers) {
            const std::size_t index = workers_.size();
            workers_.emplace_back([this, index] { work(index); });
        }
        {
            const std::lock_guard lock(mutex_);
            task_ = &task;
            rows_ = rows;
            range_ = std::max<std::size_t>(
                1, rows / (static_cast<std::size_t>(threads) * kRangesPerThread));
            next_.store(0, std::memory_order_relaxed);
            wanted_ = running_ = helpers;
            ++job_;
        }
        wake_.notify_all();
        drain(0);
        // `task` is the caller's: no worker may still hold it when run() returns.
        std::unique_lock lock(mutex_);
        idle_.wait(lock, [this] { return running_ == 0; });
    }

private:
    // Takes ranges until none is left. next_ hands each row to exactly one thread; everything
    // else a job consists of was published under mutex_ before the workers woke.
    void drain(int worker) {
        for (;;) {
            const std::size_t begin = next_.fetch_add(range_, std::memory_order_relaxed);
            if (begin >= rows_) return;
            (*task_)(begin, std::min(begin + range_, rows_), worker);
        }
    }

    // A worker below wanted_ takes part in every job, and a job ends only when all of them have
    // reported: none of them can miss one. A worker above it may sleep through any number.
    void work(std::size_t index) {
        std::uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return job_ != seen; });
            seen = job_;
            if (index >= wanted_) continue;
            lock.unlock();
            drain(static_cast<int>(index) + 1);
            lock.lock();
            if (--running_ == 0) idle_.notify_one();
        }
    }

    std::mutex turn_;
    std::mutex mutex_;  // guards all below but next_
    std::condition_variable wake_, idle_;
    std::vector<std::thread> workers_;
    const RowTask* task_ = nullptr;
    std::size_t rows_ = 0, range_ = 1;
    std::size_t wanted_ = 0, running_ = 0;
    std::uint64_t job_ = 0;
    std::atomic<std::size_t> next_{0};
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
