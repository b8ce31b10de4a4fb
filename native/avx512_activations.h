// The activations as avx512.cpp multiplies them: 23-bit fixed point, in three planes of bytes.
//
// Included by avx512.cpp alone, and in its unnamed namespace, since a file with flags of its own
// may define no other function with external linkage (dispatch.h).

#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kPlanes = 3;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

constexpr std::size_t vectors_of(int bits) { return bits == 2 ? 4 : bits <= 4 ? 2 : 1; }

// Where the parts of one prepared activation row lie, in bytes from its start.
struct Layout {
    explicit Layout(const AffineMatrix& m)
        : block(64 * vectors_of(m.bits)),
          padded(round_up(m.in, block)),
          groups(m.in / static_cast<std::size_t>(m.group)),
          centers(kPlanes * padded),
          scales(centers + padded / block * 64),
          sums(scales + round_up(groups, 16) * 4),
          size(sums + round_up(groups, 16) * 4) {}
    std::size_t block, padded, groups;
    std::size_t centers, scales, sums, size;
};

__mmask16 first_lanes(std::size_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffffU : (1U << count) - 1);
}

__mmask64 first_bytes(std::size_t count) { return count >= 64 ? ~0ULL : (1ULL << count) - 1; }

__m512 widen(Scalar type, __m256i half) {
    if (type == Scalar::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Up to 16 numbers as float32, zeros beyond `count`; nothing past them is touched.
__m512 load16(Scalar type, const Byte* from, std::size_t count) {
    if (count < 16) {
        const __mmask16 mask = first_lanes(count);
        if (type == Scalar::f32) return _mm512_maskz_loadu_ps(mask, from);
        return widen(type, _mm256_maskz_loadu_epi16(mask, from));
    }
    if (type == Scalar::f32) return _mm512_loadu_ps(from);
    return widen(type, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// The power of two under which a group's activations become integers below 2^22 in magnitude;
// NaN when one of them is infinite or NaN, so that the result is.
float fixed_point(const float* x, std::size_t count, float* inverse) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 finite = 0xffff;
    for (std::size_t i = 0; i < count; i += 16) {
        const __m512 magnitude = _mm512_abs_ps(_mm512_loadu_ps(x + i));
        finite &= _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
        largest = _mm512_max_ps(largest, magnitude);
    }
    *inverse = 0;
    if (finite != 0xffff) return _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(0x7fc00000)));
    const std::uint32_t top = static_cast<std::uint32_t>(
        _mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(_mm512_reduce_max_ps(largest)))));
    // Below 2^-100 an activation is as good as zero, and the inverse would overflow.
    const std::uint32_t exponent = top >> 23 < 27 ? 27 : top >> 23;
    const auto power = [](std::uint32_t biased) {
        return _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(static_cast<int>(biased << 23))));
    };
    *inverse = power(127 + 21 - (exponent - 127));
    return power(127 + (exponent - 127) - 21);
}

// Codes of every other place: the even ones of a and b, then the odd ones.
void deinterleave(__m512i* a, __m512i* b) {
    alignas(64) static const Byte even[64] = {
        0,  2,  4,   6,   8,   10,  12,  14,  16,  18,  20,  22,  24,  26,  28,  30,
        32, 34, 36,  38,  40,  42,  44,  46,  48,  50,  52,  54,  56,  58,  60,  62,
        64, 66, 68,  70,  72,  74,  76,  78,  80,  82,  84,  86,  88,  90,  92,  94,
        96, 98, 100, 102, 104, 106, 108, 110, 112, 114, 116, 118, 120, 122, 124, 126};
    const __m512i index = _mm512_load_si512(even);
    const __m512i odd =
        _mm512_permutex2var_epi8(*a, _mm512_add_epi8(index, _mm512_set1_epi8(1)), *b);
    *a = _mm512_permutex2var_epi8(*a, index, *b);
    *b = odd;
}

// The same with words of four bytes.
void deinterleave_words(__m512i* a, __m512i* b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd =
        _mm512_permutex2var_epi32(*a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), *b);
    *a = _mm512_permutex2var_epi32(*a, even, *b);
    *b = odd;
}

// One plane of a block from the codes' own order to the order of its vectors.
void arrange(Byte* plane, int bits) {
    const std::size_t vectors = vectors_of(bits);
    __m512i v[4];
    for (std::size_t i = 0; i < vectors; ++i) v[i] = _mm512_load_si512(plane + 64 * i);
    if (bits == 3) deinterleave_words(&v[0], &v[1]);
    if (bits == 4) deinterleave(&v[0], &v[1]);
    if (bits == 2) {
        deinterleave(&v[0], &v[1]);
        deinterleave(&v[2], &v[3]);
        deinterleave(&v[0], &v[2]);
        deinterleave(&v[1], &v[3]);
    }
    for (std::size_t i = 0; i < vectors; ++i) _mm512_store_si512(plane + 64 * i, v[i]);
}

__m512i join(__m512i high, __m512i middle, __m512i low) {
    const __m512i upper =
        _mm512_add_epi32(_mm512_slli_epi32(high, 16), _mm512_slli_epi32(middle, 8));
    return _mm512_add_epi32(upper, low);
}

// 16 integers into the three planes, in the codes' own order. Balanced digits: each is in
// [-128, 127], and high * 65536 + middle * 256 + low is the integer.
void split(__m512i v, Byte* at, std::size_t plane) {
    const __m512i half = _mm512_set1_epi32(128);
    const __m512i v1 = _mm512_srai_epi32(_mm512_add_epi32(v, half), 8);
    const __m512i v2 = _mm512_srai_epi32(_mm512_add_epi32(v1, half), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(v2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + plane), _mm512_cvtepi32_epi8(v1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 2 * plane), _mm512_cvtepi32_epi8(v));
}

void prepare_row(const float* x, const AffineMatrix& m, const Layout& layout, Byte* into) {
    const std::size_t group = static_cast<std::size_t>(m.group), vectors = layout.block / 64;
    float* scales = reinterpret_cast<float*>(into + layout.scales);
    float* sums = reinterpret_cast<float*>(into + layout.sums);
    const __m512i most = _mm512_set1_epi32((1 << 22) - 1);
    for (std::size_t g = 0; g < round_up(layout.groups, 16); ++g) scales[g] = sums[g] = 0;
    for (std::size_t g = 0; g < layout.groups; ++g) {
        float inverse;
        const float scale = fixed_point(x + g * group, group, &inverse);
        __m512i sum = _mm512_setzero_si512();
        for (std::size_t i = g * group; i < (g + 1) * group; i += 16) {
            const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
            __m512i v = _mm512_cvtps_epi32(scaled);
            v = _mm512_max_epi32(_mm512_min_epi32(v, most),
                                 _mm512_sub_epi32(_mm512_setzero_si512(), most));
            sum = _mm512_add_epi32(sum, v);
            split(v, into + i, layout.padded);
        }
        scales[g] = scale;
        sums[g] = scale * static_cast<float>(_mm512_reduce_add_epi32(sum));
    }
    for (std::size_t plane = 0; plane < kPlanes; ++plane)
        for (std::size_t i = m.in; i < layout.padded; i += 16)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(into + plane * layout.padded + i),
                             _mm_setzero_si128());
    const __m512i ones = _mm512_set1_epi8(1), center = _mm512_set1_epi32(-(1 << (m.bits - 1)));
    for (std::size_t b = 0; b < layout.padded / layout.block; ++b) {
        __m512i sum[kPlanes];
        for (std::size_t plane = 0; plane < kPlanes; ++plane) {
            Byte* at = into + plane * layout.padded + b * layout.block;
            arrange(at, m.bits);
            sum[plane] = _mm512_setzero_si512();
            for (std::size_t v = 0; v < vectors; ++v)
                sum[plane] = _mm512_dpbusd_epi32(sum[plane], ones, _mm512_load_si512(at + 64 * v));
        }
        _mm512_store_si512(into + layout.centers + 64 * b,
                           _mm512_mullo_epi32(join(sum[0], sum[1], sum[2]), center));
    }
}

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) {
    return rows * Layout(m).size;
}

void prepare(const float* x, std::size_t rows, const AffineMatrix& m, void* into) {
    const Layout layout(m);
    for (std::size_t t = 0; t < rows; ++t)
        prepare_row(x + t * m.in, m, layout, static_cast<Byte*>(into) + t * layout.size);
}

}  // namespace
}  // namespace flashmoe
