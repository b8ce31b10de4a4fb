// Work split by output row over a persistent pool of threads.
//
// Owns the threads and the split; knows nothing of what a row is. A row is computed whole, by one
// thread, in one fixed order, so no result depends on how many threads there are.

#pragma once

#include <cstddef>
#include <functional>

namespace flashmoe {

// Computes rows [begin, end). `worker` is in [0, threads) and belongs to one thread while the
// task runs: it selects a scratch buffer. Must not throw, and must not call parallel_rows.
using RowTask = std::function<void(std::size_t begin, std::size_t end, int worker)>;

// Calls `task` over disjoint ranges that cover [0, rows), on at most `threads` threads, the
// caller's own among them, and returns when all are done. Safe to call from several threads at
// once (they take turns) and after fork(). Throws std::system_error when a thread cannot start.
void parallel_rows(std::size_t rows, int threads, const RowTask& task);

}  // namespace flashmoe
