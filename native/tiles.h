// Small products of floats, whose sums stay in registers.
//
// Included after vectors.h's rules by the vector code of chunk_delta_rows.h: everything has
// internal linkage. A tile is kRows rows of up to kWide vectors.

#pragma once

#include <cstddef>

#include "vectors.h"

#define FLASHMOE_INLINE inline __attribute__((always_inline))

namespace flashmoe {
namespace {

constexpr std::size_t kRows = 4;
constexpr std::size_t kWide = FLASHMOE_LANES == 16 ? 4 : 2;

template <std::size_t kValue>
struct Count {
    static constexpr std::size_t value = kValue;
};

// Calls task with the count, at most kWide, as a constant.
template <class Task>
FLASHMOE_INLINE void with_vectors(std::size_t count, Task task) {
    static_assert(kWide <= 4);
    if (count == kWide) return task(Count<kWide>{});
    if (count == 1) return task(Count<1>{});
    if constexpr (kWide > 2) {
        if (count == 2) return task(Count<2>{});
        return task(Count<3>{});
    }
}

template <std::size_t kCount>
struct Tile {
    Vec at[kRows][kCount];
};

// The tile from or to rows `stride` floats apart.
template <std::size_t kCount>
FLASHMOE_INLINE Tile<kCount> tile_at(const float* from, std::size_t stride) {
    Tile<kCount> tile;
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kCount; ++j)
            tile.at[r][j] = load(from + r * stride + j * kLanes);
    return tile;
}

template <std::size_t kCount>
FLASHMOE_INLINE void put(const Tile<kCount>& tile, float* to, std::size_t stride) {
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kCount; ++j) store(to + r * stride + j * kLanes, tile.at[r][j]);
}

// Row r times factors[r].
template <std::size_t kCount>
FLASHMOE_INLINE void scale_rows(Tile<kCount>& tile, const float* factors) {
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kCount; ++j) tile.at[r][j] *= splat(factors[r]);
}

// tile += a b, or -= where kMinus: a (kRows, depth) with rows a_stride apart, b (depth, kCount
// vectors) with rows b_stride apart.
template <bool kMinus, std::size_t kCount>
FLASHMOE_INLINE void accumulate(Tile<kCount>& tile, const float* a, std::size_t a_stride,
                                const float* b, std::size_t b_stride, std::size_t depth) {
    for (std::size_t i = 0; i < depth; ++i, b += b_stride) {
        Vec row[kCount];
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kCount; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 4
        for (std::size_t r = 0; r < kRows; ++r) {
            const Vec factor = splat(a[r * a_stride + i]);
#pragma GCC unroll 4
            for (std::size_t j = 0; j < kCount; ++j) {
                if constexpr (kMinus)
                    tile.at[r][j] -= factor * row[j];
                else
                    tile.at[r][j] += factor * row[j];
            }
        }
    }
}

}  // namespace
}  // namespace flashmoe
