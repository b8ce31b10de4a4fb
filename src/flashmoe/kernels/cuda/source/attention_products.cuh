// Numbers as the tensor cores take them in attention, and their products.
//
// Both products of attention are of floats of 11 bits (round_tf32) with sums in float32: halves,
// bfloat16 and codes are such numbers; what is not (queries, softmax weights, f32 keys and values)
// goes in as two, 22 bits together. Up to 8 query heads, both parts are rows of one product
// (`wide` false); up to 16, each part has a product of its own.

#pragma once

#include "attention_row.cuh"

// A float as the sum of two that the tensor cores take.
struct Parts {
    uint32_t high, low;
};
DEVICE Parts parted(float x) {
    const uint32_t high = round_tf32(x);
    return {high, round_tf32(x - __uint_as_float(high))};
}

// Queries of 16 rows as the lanes will load them: for step s of 8 dimensions, four words a lane.
// Wide: those of the high parts, then those of the low. Else rows from 8 on are the low parts.
// Step s = 4 c + j has dimensions 32 c + 8 t + 2 j and + 1 of lane 4 g + t.
template <int width, bool wide>
DEVICE void place_query(uint32_t* fragments, int row, int dimension, float x) {
    const int step = dimension / 32 * 4 + dimension % 8 / 2, t = dimension % 32 / 8;
    const int at = (step * 32 + row % 8 * 4 + t) * 4 + dimension % 2 * 2;
    const Parts parts = parted(x);
    if constexpr (wide) {
        fragments[at + row / 8] = parts.high;
        fragments[16 * width + at + row / 8] = parts.low;
    } else {
        fragments[at] = parts.high;
        fragments[at + 1] = parts.low;
    }
}

// Eight neighbours of a row, as they are held.
template <int form>
struct Eight {
    static constexpr int kWords = form == kF32 ? 8 : form == kInt8 ? 2 : 4;
    uint32_t words[kWords];

    DEVICE void load(const void* rows, int64_t at) {
        const auto* from = static_cast<const uint32_t*>(rows) + at / 8 * kWords;
        if constexpr (form == kInt8) {
            const uint2 v = load_written_8(from);
            words[0] = v.x ^ 0x80808080U, words[1] = v.y ^ 0x80808080U;
        } else {
#pragma unroll
            for (int i = 0; i < kWords; i += 4) {
                const uint4 v = load_written(from + i);
                words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
            }
        }
    }

    DEVICE float operator[](int i) const {
        if constexpr (form == kF32) {
            return __uint_as_float(words[i]);
        } else if constexpr (form == kF16) {
            return half_to_float(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
        } else if constexpr (form == kBF16) {
            return __uint_as_float(i % 2 ? words[i / 2] & 0xFFFF0000U : words[i / 2] << 16);
        } else {  // 2^23 + 128 + the code
            const uint32_t bits = permute(words[i / 4], 0x4B000000U, 0x7440 + i % 4);
            return __uint_as_float(bits) - 8388736.0F;
        }
    }
};

// d += a b, where b has two numbers of whatever form, and a comes in one piece or two.
template <int form, bool wide>
DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&low)[4], float x,
                     float y) {
    if constexpr (form == kF32) {
        const Parts p = parted(x), q = parted(y);
        const uint32_t highs[2] = {p.high, q.high}, lows[2] = {p.low, q.low};
        multiply_tf32(d, a, lows);
        if constexpr (wide) multiply_tf32(d, low, highs);
        multiply_tf32(d, a, highs);
    } else {
        const uint32_t b[2] = {__float_as_uint(x), __float_as_uint(y)};
        if constexpr (wide) multiply_tf32(d, low, b);
        multiply_tf32(d, a, b);
    }
}
