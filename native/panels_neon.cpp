// Products of many rows with NEON's dot product (ARMv8.2's asimddp): sdot on codes in bytes and on
// the two bytes of v.

#include "panels_neon.h"

#include "dispatch.h"

namespace flashmoe {
namespace {

// The integer sums of a group, of each row with two vectors of outputs.
template <int kCount>
struct Sums {
    explicit Sums(const std::int32_t* starts) {
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h)
                high[t][h] = vdupq_n_s32(0), low[t][h] = vdupq_n_s32(starts[t]);
    }

    // Those of four inputs; their activations are words k and k + 2 of each two rows'.
    template <int k>
    void add(const std::int8_t* codes, const int8x16_t (&x)[2][2]) {
        const int8x16_t w[2] = {vld1q_s8(codes + 32 * k), vld1q_s8(codes + 32 * k + 16)};
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h) {
                const int8x16_t upper = x[t / 2][0], lower = x[t / 2][1];
                high[t][h] = t % 2 ? vdotq_laneq_s32(high[t][h], w[h], upper, k + 2)
                                   : vdotq_laneq_s32(high[t][h], w[h], upper, k);
                low[t][h] = t % 2 ? vdotq_laneq_s32(low[t][h], w[h], lower, k + 2)
                                  : vdotq_laneq_s32(low[t][h], w[h], lower, k);
            }
    }

    int32x4_t high[kCount][2], low[kCount][2];
};

template <int kCount>
void tile(const Byte* base, const Block& block, const Panel& panel, const Stretch& stretch,
          std::size_t lanes, float* y, std::size_t out) {
    const auto* x = reinterpret_cast<const std::int8_t*>(base) + stretch.first / 8 * Block::kLines;
    const auto* codes = reinterpret_cast<const std::int8_t*>(panel.codes);
    float32x4_t totals[kCount][2];
    for (int t = 0; t < kCount; ++t) {
        totals[t][0] = totals[t][1] = vdupq_n_f32(0);
        if (stretch.first > 0) fetch(y + static_cast<std::size_t>(t) * out, totals[t], lanes);
    }
    for (std::size_t g = 0; g < stretch.count / block.group; ++g) {
        const Group group(base, block, panel, stretch.first / block.group, g);
        Sums<kCount> sums(group.starts);
        for (std::size_t i = 0; i < block.group; i += 8, x += Block::kLines, codes += 64) {
            int8x16_t both[2][2];
            for (int pair = 0; pair < (kCount + 1) / 2; ++pair)
                for (int plane = 0; plane < 2; ++plane)
                    both[pair][plane] = vld1q_s8(x + 32 * pair + 16 * plane);
            sums.template add<0>(codes, both);
            sums.template add<1>(codes, both);
        }
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h)
                totals[t][h] =
                    group.added(totals[t][h], sums.high[t][h], sums.low[t][h],
                                static_cast<std::size_t>(t), static_cast<std::size_t>(h));
    }
    for (int t = 0; t < kCount; ++t) store(y + static_cast<std::size_t>(t) * out, totals[t], lanes);
}

constexpr Tile kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>};

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    meet<false>(kTiles, prepared, rows, m, begin, end, y, scratch);
}

}  // namespace

const PanelKernels panels_neon{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
