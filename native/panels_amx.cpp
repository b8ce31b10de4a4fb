// Products of many rows with AMX tiles, between which the sums are scaled with AVX-512.
//
// A block of 16 activation rows meets half a panel a group at a time. The integer sums of several
// groups are stored before the first is scaled: what a tile has just stored cannot be loaded at
// once.

#include "dispatch.h"
#include "panels_avx512.h"

namespace flashmoe {
namespace {

struct alignas(64) Config {
    Byte palette = 1, start = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    Byte rows[16] = {};
};

struct alignas(64) Sums {
    std::int32_t high[16][16], low[16][16];
};

constexpr std::size_t kTogether = 4;  // groups; 1 to 8 are as fast, 16 are not
constexpr std::size_t kWorth = 9;     // rows of a block for which tiles are quicker

struct Work {
    Panel panels[kPanels];
    Sums sums[kTogether];
};

static_assert(sizeof(Work) <= kPanelScratch);

std::size_t scratch_bytes(const AffineMatrix&) { return sizeof(Work); }

// Tiles 0 to 3 take sums, 4 and 5 activations (high and low bytes), 6 weights. A tile has at most
// 64 inputs: two follow each other in a group of 128.
void configure(std::size_t group) {
    const std::size_t inputs = least(group, 64);
    Config config;
    for (int i = 0; i < 7; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    for (int i : {4, 5}) config.row_bytes[i] = static_cast<std::uint16_t>(inputs);
    config.rows[6] = static_cast<Byte>(inputs / 4);
    asm volatile("" ::"r"(&config) : "memory");  // GCC 12 takes it that 8 bytes of 64 are read
    _tile_loadconfig(&config);
}

// The integer sums of one group of a block and half a panel. Two sets of tiles take turns.
template <bool odd>
inline void multiply(const Byte* x, const Block& block, const Byte* codes, Sums& sums) {
    const auto load = [&](std::size_t i) {
        _tile_loadd(6, codes + i * kHalf, 64);
        _tile_loadd(4, x + i / 64 * Block::kLines, 64);
        _tile_loadd(5, x + i / 64 * Block::kLines + block.low, 64);
    };
    // The numbers of tiles are part of the instructions, and of their intrinsics' text.
    if constexpr (odd) {
        _tile_zero(0);
        _tile_zero(1);
        for (std::size_t i = 0; i < block.group; i += 64) {
            load(i);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 5, 6);
        }
        _tile_stored(0, sums.high, 64);
        _tile_stored(1, sums.low, 64);
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (std::size_t i = 0; i < block.group; i += 64) {
            load(i);
            _tile_dpbsud(2, 4, 6);
            _tile_dpbsud(3, 5, 6);
        }
        _tile_stored(2, sums.high, 64);
        _tile_stored(3, sums.low, 64);
    }
}

// A block with half a panel, over all of its groups; `rows` of its rows count.
void tile(const Byte* base, const Block& block, std::size_t first, std::size_t count,
          const Panel& panel, Sums* sums, std::size_t half, __mmask16 lanes, std::size_t rows,
          float* y, std::size_t out) {
    const std::size_t groups = count / block.group, from = first / block.group;
    const Byte* codes = panel.codes + half * kHalfBytes;
    const float* scales = reinterpret_cast<const float*>(base + block.scales) + from * 16;
    const float* row_sums = reinterpret_cast<const float*>(base + block.sums) + from * 16;
    __m512 totals[16];
#pragma GCC unroll 16
    for (std::size_t t = 0; t < 16; ++t)
        totals[t] = first == 0 || t >= rows ? _mm512_setzero_ps()
                                            : _mm512_maskz_loadu_ps(lanes, y + t * out);
    asm volatile("" ::: "memory");  // the intrinsics of loads do not say that they read
    for (std::size_t g = 0; g < groups; g += kTogether) {
        const std::size_t some = least(groups - g, kTogether);
        for (std::size_t i = 0; i < some; ++i) {
            const Byte* x = base + Block::at(0, first + (g + i) * block.group);
            const Byte* here = codes + (g + i) * block.group * kHalf;
            i % 2 ? multiply<true>(x, block, here, sums[i])
                  : multiply<false>(x, block, here, sums[i]);
        }
        for (std::size_t i = 0; i < some; ++i) {
            const __m512 unit = _mm512_load_ps(panel.scales[half][g + i]);
            const __m512 bias = _mm512_load_ps(panel.biases[half][g + i]);
#pragma GCC unroll 16
            for (std::size_t t = 0; t < 16; ++t)
                totals[t] = added(totals[t], _mm512_load_si512(sums[i].high[t]),
                                  _mm512_load_si512(sums[i].low[t]), unit, bias,
                                  scales + (g + i) * 16 + t, row_sums + (g + i) * 16 + t);
        }
    }
#pragma GCC unroll 16
    for (std::size_t t = 0; t < 16; ++t)
        if (t < rows) _mm512_mask_storeu_ps(y + t * out, lanes, totals[t]);
}

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Work& work = *static_cast<Work*>(scratch);
    configure(block.group);
    for_panels(m, begin, end, work.panels,
               [&](const Span& span, std::size_t first, std::size_t count) {
                   for (std::size_t t = 0; t < rows; t += Block::kRows) {
                       const Byte* base =
                           static_cast<const Byte*>(prepared) + t / Block::kRows * block.size;
                       const std::size_t some = least(rows - t, Block::kRows);
                       for (std::size_t i = 0; i < span.count; ++i) {
                           const Panel& panel = work.panels[i];
                           const Lanes lanes(span.end - span.at(i));
                           float* into = y + t * m.out + span.at(i);
                           if (some < kWorth)
                               rows_of(base, some, block, first, count, panel, lanes, into, m.out);
                           else
                               for (std::size_t half = 0; half < 2 && lanes.of[half] != 0; ++half)
                                   tile(base, block, first, count, panel, work.sums, half,
                                        lanes.of[half], some, into + half * kHalf, m.out);
                       }
                   }
               });
    _tile_release();
}

}  // namespace

const PanelKernels panels_amx{prepared_bytes, prepare, scratch_bytes, affine};

}  // namespace flashmoe
