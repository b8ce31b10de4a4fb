// Attention of several tokens, split over threads.

#include "chunk_attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "dispatch.h"
#include "threads.h"

namespace flashmoe {
namespace {

constexpr std::align_val_t kLine{64};

struct Free {
    void operator()(float* memory) const { ::operator delete(memory, kLine); }
};

// As many tokens as there may be, but some units for each thread.
std::size_t together(AttendChunk chunk, int threads) {
    constexpr std::size_t kUnits = 3;
    chunk.together = AttendChunk::most_together(chunk.first.group());
    const std::size_t wanted = kUnits * static_cast<std::size_t>(threads);
    while (chunk.together > 1 && chunk.units() < wanted &&
           chunk.together * chunk.first.group() > 4 * AttendChunk::kTile)
        chunk.together /= 2;
    return chunk.together;
}

}  // namespace

void attend(const InstructionSet& set, AttendChunk chunk, int threads) {
    const DecodeKernels& kernels = decode_of(set);
    const AttendStep& s = chunk.first;
    threads = worth(2 * chunk.tokens * s.heads * s.kv.dim * (s.position + chunk.tokens), threads);
    chunk.together = together(chunk, threads);
    const std::size_t units = chunk.units(), stretches = chunk.stretches();
    const std::size_t workers = std::min(static_cast<std::size_t>(threads), units);
    const std::size_t own = (chunk.scratch() + 15) / 16 * 16;
    const std::unique_ptr<float, Free> scratch(
        static_cast<float*>(::operator new(workers * own * sizeof(float), kLine)));
    const int many = static_cast<int>(workers);
    parallel_rows(chunk.tokens, many, [&](std::size_t begin, std::size_t end, int worker) {
        float* mine = scratch.get() + static_cast<std::size_t>(worker) * own;
        kernels.append_chunk(chunk, begin, end, mine);
    });
    // One by one, the longest first, so that all threads end together.
    std::atomic<std::size_t> next{0};
    parallel_rows(workers, many, [&](std::size_t, std::size_t, int worker) {
        float* mine = scratch.get() + static_cast<std::size_t>(worker) * own;
        for (std::size_t i = next++; i < units; i = next++) {
            const std::size_t stretch = stretches - 1 - i / s.kv.heads, head = i % s.kv.heads;
            kernels.attend_chunk(chunk, head * stretches + stretch, mine);
        }
    });
}

}  // namespace flashmoe
