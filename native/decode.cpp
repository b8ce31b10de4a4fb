// The mixers of a decode step, and what is done to each number, split over threads.

#include "decode.h"

#include <algorithm>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace flashmoe {

void rms_norm(const InstructionSet& set, const float* x, std::size_t rows, std::size_t width,
              const float* weight, float eps, float* y, int threads) {
    parallel_rows(rows, worth(4 * rows * width, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      decode_of(set).rms_norm(x + begin * width, end - begin, width, weight, eps,
                                              y + begin * width);
                  });
}

void add(const float* x, std::size_t count, float* y, int threads) {
    constexpr std::size_t kStretch = 1024;
    parallel_rows((count + kStretch - 1) / kStretch, worth(4 * count, threads),
                  [&](std::size_t begin, std::size_t end, int) {
                      const std::size_t last = std::min(end * kStretch, count);
                      for (std::size_t i = begin * kStretch; i < last; ++i) y[i] += x[i];
                  });
}

void gated_delta(const InstructionSet& set, const DeltaStep& step, int threads) {
    const std::size_t work = 4 * step.value_heads * step.key_dim * step.value_dim;
    threads = worth(work, threads);
    std::vector<float> scratch(static_cast<std::size_t>(threads) * step.scratch());
    parallel_rows(step.key_heads, threads, [&](std::size_t begin, std::size_t end, int worker) {
        float* own = scratch.data() + static_cast<std::size_t>(worker) * step.scratch();
        decode_of(set).delta(step, begin, end, own);
    });
}

void attend(const InstructionSet& set, const AttendStep& step, int threads) {
    const DecodeKernels& kernels = decode_of(set);
    const std::size_t units = step.kv.heads * step.blocks();
    const int many = worth(2 * step.heads * step.kv.dim * (step.position + 1), threads);
    const std::size_t scores = kContextBlock * step.group();
    std::vector<float> queries(step.heads * step.padded());
    std::vector<float> partials(units * step.partial());
    std::vector<float> scratch(static_cast<std::size_t>(many) * scores);
    kernels.append(step, queries.data());
    parallel_rows(units, many, [&](std::size_t begin, std::size_t end, int worker) {
        float* own = scratch.data() + static_cast<std::size_t>(worker) * scores;
        kernels.attend(step, queries.data(), begin, end, partials.data(), own);
    });
    const int few = worth(step.heads * step.kv.dim * step.blocks() * 4, threads);
    parallel_rows(step.heads, few, [&](std::size_t begin, std::size_t end, int) {
        kernels.merge(step, partials.data(), begin, end);
    });
}

}  // namespace flashmoe
