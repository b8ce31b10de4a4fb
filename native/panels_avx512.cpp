// Products of many rows with AVX-512 VNNI.

#include "panels_avx512.h"

#include "dispatch.h"

namespace flashmoe {
namespace {

// kCount activation rows of a block, the first of them `x`, with both halves of a panel, over all
// of its groups; y points to the first output of the first row. `lanes` are the outputs that there
// are in each half.
template <int kCount>
void tile(const Byte* base, std::size_t row, const Block& block, std::size_t first,
          std::size_t count, const Panel& panel, const __mmask16 (&lanes)[2], float* y,
          std::size_t out) {
    const std::size_t from = first / block.group;
    const float* scales = reinterpret_cast<const float*>(base + block.scales) + row;
    const float* row_sums = reinterpret_cast<const float*>(base + block.sums) + row;
    __m512 sums[kCount][2];
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            sums[t][h] = first == 0 ? _mm512_setzero_ps()
                                    : _mm512_maskz_loadu_ps(lanes[h], y + t * out + h * kHalf);
    const Byte* codes = panel.codes;
    for (std::size_t g = 0; g < count / block.group; ++g) {
        __m512i high[kCount][2], low[kCount][2];
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h) high[t][h] = low[t][h] = _mm512_setzero_si512();
        for (std::size_t i = 0; i < block.group; i += 64) {
            const Byte* x = base + Block::at(row, first + g * block.group + i);
            const std::size_t words = least(block.group, 64) / 4;
            for (std::size_t w = 0; w < words; ++w, codes += 64, x += 4) {
                const __m512i w0 = _mm512_load_si512(codes);
                const __m512i w1 = _mm512_load_si512(codes + kHalfBytes);
                for (int t = 0; t < kCount; ++t) {
                    int four;
                    __builtin_memcpy(&four, x + 64 * t, 4);
                    const __m512i upper = _mm512_set1_epi32(four);
                    high[t][0] = _mm512_dpbusd_epi32(high[t][0], w0, upper);
                    high[t][1] = _mm512_dpbusd_epi32(high[t][1], w1, upper);
                    __builtin_memcpy(&four, x + 64 * t + block.low, 4);
                    const __m512i lower = _mm512_set1_epi32(four);
                    low[t][0] = _mm512_dpbusd_epi32(low[t][0], w0, lower);
                    low[t][1] = _mm512_dpbusd_epi32(low[t][1], w1, lower);
                }
            }
        }
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h)
                sums[t][h] = added(
                    sums[t][h], high[t][h], low[t][h], _mm512_load_ps(panel.scales[h][g]),
                    _mm512_load_ps(panel.biases[h][g]), scales + (from + g) * Block::kRows + t,
                    row_sums + (from + g) * Block::kRows + t);
    }
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            _mm512_mask_storeu_ps(y + t * out + h * kHalf, lanes[h], sums[t][h]);
}

std::size_t scratch_bytes(const AffineMatrix&) { return sizeof(Panel); }

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Panel& panel = *static_cast<Panel*>(scratch);
    for (std::size_t o = begin; o < end; o += kPanelOutputs) {
        const std::size_t left = end - o;
        const __mmask16 lanes[2] = {first_lanes(left), first_lanes(left > 16 ? left - 16 : 0)};
        for (std::size_t first = 0; first < m.in; first += kStretch) {
            const std::size_t count = least(m.in - first, kStretch);
            unpack(m, o, first, count, panel);
            for (std::size_t t = 0; t < rows;) {
                const Byte* base =
                    static_cast<const Byte*>(prepared) + t / Block::kRows * block.size;
                const std::size_t row = t % Block::kRows;
                float* into = y + t * m.out + o;
                if (t + 4 <= rows) {
                    tile<4>(base, row, block, first, count, panel, lanes, into, m.out);
                    t += 4;
                } else {
                    tile<1>(base, row, block, first, count, panel, lanes, into, m.out);
                    t += 1;
                }
            }
        }
    }
}

}  // namespace

const PanelKernels panels_avx512{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
