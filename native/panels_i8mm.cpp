// Products of many rows with ARMv8.6's i8mm: smmla, which multiplies two weight rows with two
// activation rows at once, on codes in bytes and on the two bytes of v.

#include "dispatch.h"
#include "panels_neon.h"

namespace flashmoe {
namespace {

// The integer sums of a group: of two rows, r and s, each vector has output 2 n with r and s, then
// output 2 n + 1 with both.
struct Sums {
    explicit Sums(const std::int32_t* starts) {
        const int32x2_t both = vld1_s32(starts);
        for (int n = 0; n < 4; ++n) high[n] = vdupq_n_s32(0), low[n] = vcombine_s32(both, both);
    }

    int32x4_t high[4], low[4];
};

// Rows in pairs: one that is not there is zeros.
template <std::size_t kCount>
void tile(const Byte* base, const Block& block, const Panel& panel, const Stretch& stretch,
          std::size_t lanes, float* y, std::size_t out) {
    constexpr std::size_t kPairs = (kCount + 1) / 2;
    const auto* x = reinterpret_cast<const std::int8_t*>(base) + stretch.first / 8 * Block::kLines;
    const auto* codes = reinterpret_cast<const std::int8_t*>(panel.codes);
    float32x4_t totals[2 * kPairs][2];
    for (auto& each : totals) each[0] = each[1] = vdupq_n_f32(0);
    for (std::size_t t = 0; t < kCount && stretch.first > 0; ++t)
        fetch(y + t * out, totals[t], lanes);
    for (std::size_t g = 0; g < stretch.count / block.group; ++g) {
        const Group group(base, block, panel, stretch.first / block.group, g);
        Sums sums[2] = {Sums(group.starts), Sums(group.starts + 2)};
        for (std::size_t i = 0; i < block.group; i += 8, x += Block::kLines, codes += 64)
            for (int n = 0; n < 4; ++n) {
                const int8x16_t w = vld1q_s8(codes + 16 * n);
                for (std::size_t pair = 0; pair < kPairs; ++pair) {
                    Sums& sum = sums[pair];
                    sum.high[n] = vmmlaq_s32(sum.high[n], w, vld1q_s8(x + 32 * pair));
                    sum.low[n] = vmmlaq_s32(sum.low[n], w, vld1q_s8(x + 32 * pair + 16));
                }
            }
        for (std::size_t pair = 0; pair < kPairs; ++pair)
            for (std::size_t h = 0; h < 2; ++h) {
                const Sums& sum = sums[pair];
                const std::size_t r = 2 * pair, s = r + 1, n = 2 * h;
                totals[r][h] = group.added(totals[r][h], vuzp1q_s32(sum.high[n], sum.high[n + 1]),
                                           vuzp1q_s32(sum.low[n], sum.low[n + 1]), r, h);
                totals[s][h] = group.added(totals[s][h], vuzp2q_s32(sum.high[n], sum.high[n + 1]),
                                           vuzp2q_s32(sum.low[n], sum.low[n + 1]), s, h);
            }
    }
    for (std::size_t t = 0; t < kCount; ++t) store(y + t * out, totals[t], lanes);
}

constexpr Tile kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>};

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    meet<true>(kTiles, prepared, rows, m, begin, end, y, scratch);
}

}  // namespace

const PanelKernels panels_i8mm{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
