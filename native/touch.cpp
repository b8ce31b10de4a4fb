// The plain read, split among threads like a kernel's rows.

#include "touch.h"

#include <atomic>
#include <cstring>

#include "threads.h"

namespace flashmoe {
namespace {

constexpr std::size_t kLine = 64, kWords = kLine / 8;
constexpr std::size_t kAhead = 4096;  // bytes; as far as the kernels ask for theirs

}  // namespace

std::uint64_t touch(const void* data, std::size_t bytes, int threads) {
    std::atomic<std::uint64_t> all{0};
    parallel_rows(bytes / kLine, threads, [&](std::size_t begin, std::size_t end, int) {
        std::uint64_t seen[kWords] = {};
        const char* at = static_cast<const char*>(data) + begin * kLine;
        for (std::size_t line = begin; line < end; ++line, at += kLine) {
            std::uint64_t words[kWords];
            std::memcpy(words, at, kLine);
            __builtin_prefetch(at + kAhead);
            for (std::size_t i = 0; i < kWords; ++i) seen[i] |= words[i];
        }
        for (const std::uint64_t word : seen) all.fetch_or(word, std::memory_order_relaxed);
    });
    return all.load();
}

}  // namespace flashmoe
