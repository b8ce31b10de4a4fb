// The draw's work over all scores, split among threads by block.

#include "draw.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "threads.h"

namespace flashmoe {
namespace {

// Blocks of this many scores are some 30 us of work at 0.1 ns a score, and 500 us at 2.
constexpr std::size_t kWorthPeaks = 1 << 20, kWorthMasses = 1 << 14;
constexpr std::size_t kManyChanged = 256;  // most blocks have to be written out

// The numbers of the first and of the first later changed score of [begin, end).
struct Changed {
    std::size_t first, last;
    Changed(const Scores& scores, std::size_t begin, std::size_t end) {
        const std::int64_t* all = scores.places + scores.changed;
        const std::int64_t* from =
            std::lower_bound(scores.places, all, static_cast<std::int64_t>(begin));
        first = static_cast<std::size_t>(from - scores.places);
        last = static_cast<std::size_t>(
            std::lower_bound(from, all, static_cast<std::int64_t>(end)) - scores.places);
    }
    bool none() const { return first == last; }
};

double plain_highest(const double* x, std::size_t count) { return *std::max_element(x, x + count); }

double peak_of(const DrawKernels& kernels, const Scores& scores, std::size_t begin,
               std::size_t end) {
    const std::size_t count = end - begin;
    const double given = scores.narrow != nullptr ? kernels.highest32(scores.narrow + begin, count)
                                                  : kernels.highest64(scores.wide + begin, count);
    if (std::isnan(given) || Changed(scores, begin, end).none()) return given;
    double block[kDrawBlock];
    widen(scores, begin, end, block);
    const double changed = kernels.highest64(block, count);
    return std::isnan(changed) ? plain_highest(block, count) : changed;  // a penalty made infinity
}

double mass_of(const DrawKernels& kernels, const Scores& scores, const Scale& scale,
               std::size_t begin, std::size_t end) {
    const std::size_t count = end - begin;
    if (Changed(scores, begin, end).none())
        return scores.narrow != nullptr ? kernels.mass32(scores.narrow + begin, count, scale)
                                        : kernels.mass64(scores.wide + begin, count, scale);
    double block[kDrawBlock];
    widen(scores, begin, end, block);
    return kernels.mass64(block, count, scale);
}

template <class Work>
void each_block(const Scores& scores, int threads, const Work& work) {
    parallel_rows(scores.blocks(), threads, [&](std::size_t first, std::size_t last, int) {
        for (std::size_t block = first; block < last; ++block) {
            const std::size_t begin = block * kDrawBlock;
            work(block, begin, std::min(begin + kDrawBlock, scores.count));
        }
    });
}

}  // namespace

void peaks(const InstructionSet& set, const Scores& scores, double* y, int threads) {
    const DrawKernels& kernels = *set.draw;
    const bool quick = scores.count < kWorthPeaks && scores.changed < kManyChanged;
    each_block(scores, quick ? 1 : threads,
               [&](std::size_t block, std::size_t begin, std::size_t end) {
                   y[block] = peak_of(kernels, scores, begin, end);
               });
}

void masses(const InstructionSet& set, const Scores& scores, const Scale& scale, double* y,
            int threads) {
    const DrawKernels& kernels = *set.draw;
    each_block(scores, scores.count < kWorthMasses ? 1 : threads,
               [&](std::size_t block, std::size_t begin, std::size_t end) {
                   y[block] = mass_of(kernels, scores, scale, begin, end);
               });
}

void guesses(const InstructionSet& set, const Scores& scores, const Scale& scale, double* y,
             int threads) {
    const DrawKernels& kernels = *set.draw;
    each_block(scores, scores.count < kWorthMasses ? 1 : threads,
               [&](std::size_t block, std::size_t begin, std::size_t end) {
                   y[block] = kernels.guess32(scores.narrow + begin, end - begin, scale);
               });
}

void widen(const Scores& scores, std::size_t begin, std::size_t end, double* y) {
    if (scores.narrow != nullptr)
        std::copy(scores.narrow + begin, scores.narrow + end, y);
    else
        std::copy(scores.wide + begin, scores.wide + end, y);
    const Changed changed(scores, begin, end);
    for (std::size_t i = changed.first; i < changed.last; ++i)
        y[static_cast<std::size_t>(scores.places[i]) - begin] = scores.values[i];
}

std::size_t above(const Scores& scores, const double* peaks, double least, std::size_t room,
                  std::int64_t* places, double* values) {
    std::size_t found = 0;
    double block[kDrawBlock];
    for (std::size_t begin = 0; begin < scores.count; begin += kDrawBlock) {
        if (peaks[begin / kDrawBlock] < least) continue;
        const std::size_t end = std::min(begin + kDrawBlock, scores.count);
        widen(scores, begin, end, block);
        for (std::size_t i = begin; i < end; ++i) {
            if (!(block[i - begin] >= least)) continue;
            if (found < room) {
                places[found] = static_cast<std::int64_t>(i);
                values[found] = block[i - begin];
            }
            ++found;
        }
    }
    return found;
}

}  // namespace flashmoe
