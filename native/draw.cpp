// The draw's work over all scores, split among threads by block.

#include "draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

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

std::size_t highest(const Scores& scores, const double* peaks, double least, std::size_t count,
                    bool ordered, std::int64_t* places, double* values) {
    struct Ranked {
        double value;
        std::int64_t place;
    };
    const auto before = [](const Ranked& a, const Ranked& b) {
        return a.value > b.value || (a.value == b.value && a.place < b.place);
    };
    std::vector<Ranked> best;
    best.reserve(std::min(2 * count + kDrawBlock, scores.count));
    const auto cut = [&] {
        const auto end = best.begin() + static_cast<std::ptrdiff_t>(count);
        std::nth_element(best.begin(), end - 1, best.end(), before);
        best.erase(end, best.end());
        // Of those to come, which have higher places, an equal one is too low.
        least = std::nextafter(best.back().value, std::numeric_limits<double>::infinity());
    };
    double block[kDrawBlock];
    for (std::size_t begin = 0; begin < scores.count; begin += kDrawBlock) {
        if (peaks[begin / kDrawBlock] < least) continue;
        const std::size_t end = std::min(begin + kDrawBlock, scores.count);
        widen(scores, begin, end, block);
        for (std::size_t i = begin; i < end; ++i)
            if (block[i - begin] >= least)
                best.push_back({block[i - begin], static_cast<std::int64_t>(i)});
        if (best.size() > 2 * count) cut();
    }
    if (best.size() >= count) cut();
    if (ordered) std::sort(best.begin(), best.end(), before);
    for (std::size_t i = 0; i < best.size(); ++i) {
        places[i] = best[i].place;
        values[i] = best[i].value;
    }
    return best.size();
}

double lowest(const Scores& scores, double enough) {
    double found = std::numeric_limits<double>::infinity(), block[kDrawBlock];
    for (std::size_t begin = 0; begin < scores.count && !(found < enough); begin += kDrawBlock) {
        const std::size_t end = std::min(begin + kDrawBlock, scores.count);
        widen(scores, begin, end, block);
        constexpr std::size_t kChains = 8;  // each waits for its last
        double least[kChains];
        std::fill_n(least, kChains, found);
        for (std::size_t i = 0; i < end - begin; ++i)
            least[i % kChains] = std::min(block[i], least[i % kChains]);
        found = *std::min_element(least, least + kChains);
    }
    return found;
}

void kept_sums(const InstructionSet& set, const Scores& scores, const double* peaks, double least,
               const Scale& scale, double min_p, double* y) {
    double sum = 0, block[kDrawBlock], weight[kDrawBlock];
    for (std::size_t begin = 0; begin < scores.count; begin += kDrawBlock) {
        if (peaks[begin / kDrawBlock] >= least) {
            const std::size_t end = std::min(begin + kDrawBlock, scores.count);
            widen(scores, begin, end, block);
            set.draw->weights(block, end - begin, scale, weight);
            for (std::size_t i = 0; i < end - begin; ++i)
                sum += weight[i] >= min_p ? weight[i] : 0.0;
        }
        y[begin / kDrawBlock] = sum;
    }
}

double slices(const InstructionSet& set, const Scores& scores, const Slicing& by,
              std::size_t slices, std::uint16_t* numbers, double* y) {
    const double bottom = static_cast<double>(slices - 1);
    const double beyond = std::nextafter(by.least, std::numeric_limits<double>::infinity());
    const std::size_t ties = static_cast<std::size_t>(std::max<std::int64_t>(by.last, -1) + 1);
    double total = 0, block[kDrawBlock] = {}, weight[kDrawBlock] = {};
    std::int32_t number[kDrawBlock];
    constexpr std::size_t kRest =
        8;  // sums of what is left out, as each addition waits for its last
    std::vector<double> sums(slices + kRest);
    for (std::size_t begin = 0; begin < scores.count; begin += kDrawBlock) {
        const std::size_t count = std::min(kDrawBlock, scores.count - begin);
        widen(scores, begin, begin + count, block);
        set.draw->weights(block, count, by.scale, weight);
        // Without branches, and whole blocks always, for compilers to make vectors of. NaN, and a
        // score above the peak, which no caller means, must not leave the sums.
        for (std::size_t i = 0; i < kDrawBlock; ++i) {
            double depth = (block[i] - by.scale.peak) / by.temperature * by.steps;
            depth = depth < bottom ? depth : bottom;
            number[i] = static_cast<std::int32_t>(depth > 0 ? depth : 0.0);
        }
        const std::size_t limit = std::min(ties - std::min(ties, begin), kDrawBlock);
        for (std::size_t i = 0; i < limit; ++i) weight[i] = block[i] >= by.least ? weight[i] : 0.0;
        for (std::size_t i = limit; i < kDrawBlock; ++i)
            weight[i] = block[i] >= beyond ? weight[i] : 0.0;
        for (std::size_t i = 0; i < count; ++i) {
            total += weight[i];
            const bool kept = weight[i] > 0 && weight[i] >= by.min_p;
            sums[kept ? static_cast<std::size_t>(number[i]) : slices + i % kRest] += weight[i];
            numbers[begin + i] = kept ? static_cast<std::uint16_t>(number[i]) : kNoSlice;
        }
    }
    std::copy_n(sums.begin(), slices, y);
    return total;
}

std::size_t members(const Scores& scores, const std::uint16_t* numbers, std::uint16_t slice,
                    std::size_t room, std::int64_t* places, double* values) {
    std::size_t found = 0;
    double block[kDrawBlock];
    for (std::size_t begin = 0; begin < scores.count; begin += kDrawBlock) {
        const std::size_t end = std::min(begin + kDrawBlock, scores.count);
        const std::uint16_t* all = numbers + end;
        const std::uint16_t* next = std::find(numbers + begin, all, slice);
        if (next == all) continue;
        widen(scores, begin, end, block);
        for (; next != all; next = std::find(next + 1, all, slice), ++found) {
            if (found >= room) continue;
            const auto place = static_cast<std::size_t>(next - numbers);
            places[found] = static_cast<std::int64_t>(place);
            values[found] = block[place - begin];
        }
    }
    return found;
}

}  // namespace flashmoe
