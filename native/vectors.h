// Vectors of floats, written once and compiled for each instruction set.
//
// Included by the vector code of decode_rows.h and chunk_delta_rows.h, after FLASHMOE_LANES (floats
// a vector) is defined. Everything has internal linkage, and nothing of the standard library is
// instantiated: see RowKernels in dispatch.h.

#pragma once

#if FLASHMOE_LANES > 4
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>

namespace flashmoe {
namespace {

constexpr std::size_t kLanes = FLASHMOE_LANES;

typedef float Vec __attribute__((vector_size(4 * FLASHMOE_LANES)));
typedef std::int32_t Ints __attribute__((vector_size(4 * FLASHMOE_LANES)));
typedef std::uint32_t Words __attribute__((vector_size(4 * FLASHMOE_LANES)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * FLASHMOE_LANES)));
typedef std::int16_t Shorts __attribute__((vector_size(2 * FLASHMOE_LANES)));
typedef std::int8_t Codes __attribute__((vector_size(FLASHMOE_LANES)));

constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }
constexpr float larger(float a, float b) { return a > b ? a : b; }

// A part of a vector takes another way than a whole one, which so never passes through memory.
template <class Type>
inline __attribute__((always_inline)) Type take(const void* from, std::size_t count) {
    if (count >= kLanes) {
        Type whole;
        __builtin_memcpy(&whole, from, sizeof whole);
        return whole;
    }
    Type part{};
    __builtin_memcpy(&part, from, count * sizeof part / kLanes);
    return part;
}

// Up to kLanes floats, zeros beyond; nothing past them is touched.
inline __attribute__((always_inline)) Vec load(const float* from, std::size_t count = kLanes) {
    return take<Vec>(from, count);
}

inline __attribute__((always_inline)) void store(float* to, Vec v, std::size_t count = kLanes) {
    if (count >= kLanes)
        __builtin_memcpy(to, &v, sizeof v);
    else
        __builtin_memcpy(to, &v, count * 4);
}

// Less zero, since that is x itself and a broadcast from memory; zero more is a sum first, for -0.
inline Vec splat(float x) { return x - Vec{}; }

typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec16 __attribute__((vector_size(64)));

inline float sum(Vec4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline float sum(Vec8 v) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
               __builtin_shufflevector(v, v, 4, 5, 6, 7));
}

inline float sum(Vec16 v) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

template <class To, class From>
inline To cast(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// e^(y - n ln(2)), where that is at most ln(2) / 2 from 0, by Cephes' polynomial (Moshier, expf).
inline __attribute__((always_inline)) Vec exp_rest(Vec y, Vec n) {
    Vec r = y - n * splat(0.693359375F);
    r = r - n * splat(-2.12194440e-4F);
    Vec p = splat(1.9875691500e-4F);
    p = p * r + splat(1.3981999507e-3F);
    p = p * r + splat(8.3334519073e-3F);
    p = p * r + splat(4.1665795894e-2F);
    p = p * r + splat(1.6666665459e-1F);
    p = p * r + splat(5.0000001201e-1F);
    return p * (r * r) + r + splat(1.0F);
}

// 2^n e^r; 2^n in two factors, so that it overflows and underflows where it should.
inline Vec exp_of(Vec x) {
    const Vec low = splat(-104.0F), high = splat(89.0F), round = splat(0x1.8p23F);
    Vec y = x < low ? low : x;
    y = y > high ? high : y;
    y = x != x ? Vec{} : y;
    const Vec n = (y * splat(1.44269504088896341F) + round) - round;
    const Vec e = exp_rest(y, n);
    const Ints i = __builtin_convertvector(n, Ints), half = i >> 1;
    const Vec first = cast<Vec>((half + 127) << 23), second = cast<Vec>((i - half + 127) << 23);
    return x != x ? x : e * first * second;
}

// The same of what is not above 0, but 0 below -87, before 2^n is subnormal: half the operations.
inline Vec exp_below(Vec x) {
    const auto tiny = x < splat(-87.0F);
    const Vec y = tiny ? splat(-87.0F) : x;
    const Vec shifted = y * splat(1.44269504088896341F) + splat(0x1.8p23F);
    const Vec e = exp_rest(y, shifted - splat(0x1.8p23F));
    // The lowest bits of `shifted` are n.
    const Vec power = cast<Vec>((cast<Ints>(shifted) + 127) << 23);
    return tiny ? Vec{} : e * power;
}

inline Vec sigmoid(Vec x) { return splat(1.0F) / (splat(1.0F) + exp_of(-x)); }

inline float sigmoid(float x) { return 1.0F / (1.0F + __builtin_expf(-x)); }

inline float sum_of_squares(const float* x, std::size_t count) {
    Vec total{};
    for (std::size_t i = 0; i < count; i += kLanes) {
        const Vec v = load(x + i, count - i);
        total += v * v;
    }
    return sum(total);
}

inline void multiply(float* x, std::size_t count, float factor) {
    for (std::size_t i = 0; i < count; i += kLanes)
        store(x + i, load(x + i, count - i) * splat(factor), count - i);
}

inline float inverse_rms(const float* x, std::size_t count, float eps) {
    return 1.0F / __builtin_sqrtf(sum_of_squares(x, count) / static_cast<float>(count) + eps);
}

}  // namespace
}  // namespace flashmoe
