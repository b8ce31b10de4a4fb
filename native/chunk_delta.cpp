// The gated delta net of a chunk, split over threads.

#include "chunk_delta.h"

#include <algorithm>
#include <memory>
#include <new>

#include "dispatch.h"
#include "threads.h"

namespace flashmoe {
namespace {

constexpr std::align_val_t kLine{64};

}  // namespace

void gated_delta(const InstructionSet& set, const DeltaChunk& chunk, int threads) {
    const DeltaStep& step = chunk.step;
    const std::size_t work = 4 * step.value_heads * step.key_dim * step.value_dim * chunk.tokens;
    threads = worth(work, threads);
    // What value heads share of their key head is computed once, unless threads would be idle.
    const std::size_t repeat = chunk.repeat(), wanted = static_cast<std::size_t>(threads);
    const std::size_t parts = std::min(repeat, (wanted + step.key_heads - 1) / step.key_heads);
    const std::size_t units = step.key_heads * parts, workers = std::min(units, wanted);
    const std::size_t floats = DeltaChunk::padded(chunk.scratch((repeat + parts - 1) / parts));
    const std::unique_ptr<void, void (*)(void*)> scratch(
        ::operator new(workers * floats * sizeof(float), kLine),
        [](void* held) { ::operator delete(held, kLine); });
    const DeltaChunkKernels& kernels = set.delta == nullptr ? delta_generic : *set.delta;
    parallel_rows(units, threads, [&](std::size_t begin, std::size_t end, int worker) {
        float* own = static_cast<float*>(scratch.get()) + static_cast<std::size_t>(worker) * floats;
        for (std::size_t unit = begin; unit < end; ++unit) {
            const std::size_t part = unit % parts;
            kernels.heads(chunk, unit / parts, part * repeat / parts, (part + 1) * repeat / parts,
                          own);
        }
    });
}

}  // namespace flashmoe
