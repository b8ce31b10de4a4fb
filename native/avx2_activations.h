// The activations as avx2.cpp multiplies them: 23-bit fixed point, in planes.
//
// Included by avx2.cpp alone, and in its unnamed namespace, since a file with flags of its own may
// define no other function with external linkage (dispatch.h).
//
// A group's activations become integers under a power of two. At 2 and 4 bits they are three
// planes of signed bytes, which vpmaddubsw multiplies with codes in bytes; at the others, two
// planes of 16 bits, which vpmaddwd multiplies with codes in 16 bits, since to unpack to bytes
// would cost more.
//
// Eight lanes of four bytes a vector; a block is as many codes as one load gives. Element e of
// vector v holds code kVectors * e + v of the block, so a lane holds consecutive codes.

#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

constexpr bool in_bytes(int bits) { return bits == 2 || bits == 4; }
constexpr std::size_t planes_of(int bits) { return in_bytes(bits) ? 3 : 2; }
constexpr std::size_t vectors_of(int bits) { return bits <= 3 ? 4 : 2; }
constexpr std::size_t block_of(int bits) { return vectors_of(bits) * (in_bytes(bits) ? 32 : 16); }
constexpr std::size_t lane_codes(int bits) { return block_of(bits) / 8; }

// Bits of an activation's magnitude, so that no lane's sum leaves 32 bits.
constexpr std::uint32_t width_of(int bits) { return bits == 8 ? 21 : 22; }

// Where the parts of one prepared activation row lie, in bytes from its start. A block is its
// planes, one after the other.
struct Layout {
    explicit Layout(const AffineMatrix& m)
        : block(block_of(m.bits)),
          blocks(round_up(m.in, block) / block),
          block_bytes(32 * vectors_of(m.bits) * planes_of(m.bits)),
          groups(m.in / static_cast<std::size_t>(m.group)),
          scales(blocks * block_bytes),
          sums(scales + round_up(groups, 8) * 4),
          size(sums + round_up(groups, 8) * 4) {}
    std::size_t block, blocks, block_bytes, groups;
    std::size_t scales, sums, size;
};

float as_float(std::uint32_t bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(static_cast<int>(bits))));
}

std::uint32_t largest_lane(__m256 v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    half = _mm_max_ss(half, _mm_movehdup_ps(half));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_castps_si128(half)));
}

// The power of two under which a group's activations become integers below 2^width in magnitude;
// NaN when one of them is infinite or NaN, so that the result is.
float fixed_point(const float* x, std::size_t count, std::uint32_t width, float* inverse) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 largest = _mm256_setzero_ps(), wrong = _mm256_setzero_ps();
    for (std::size_t i = 0; i < count; i += 8) {
        const __m256 v = _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude);
        wrong = _mm256_or_ps(wrong, _mm256_cmp_ps(v, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ));
        largest = _mm256_max_ps(largest, v);
    }
    *inverse = 0;
    if (_mm256_movemask_ps(wrong) != 0) return as_float(0x7fc00000);
    const std::uint32_t top = largest_lane(largest) >> 23;
    // Below 2^-100 an activation is as good as zero, and the inverse would overflow.
    const std::uint32_t exponent = top < 27 ? 27 : top;
    *inverse = as_float((127 + width - 1 - (exponent - 127)) << 23);
    return as_float((127 + (exponent - 127) - (width - 1)) << 23);
}

__m256i load(const Byte* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

void store(Byte* into, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(into), v); }

int total(__m256i v) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}

// 32 integers into one plane, in the codes' own order, and what is left of them for the next:
// balanced digits, each in [-128, 127]. The last plane of two takes all that is left.
void split_bytes(__m256i v[4], Byte* into) {
    const __m256i half = _mm256_set1_epi32(128), low = _mm256_set1_epi32(255);
    __m256i digit[4];
    for (int i = 0; i < 4; ++i) {
        digit[i] = _mm256_and_si256(v[i], low);
        v[i] = _mm256_srai_epi32(_mm256_add_epi32(v[i], half), 8);
    }
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(digit[0], digit[1]),
                                               _mm256_packus_epi32(digit[2], digit[3]));
    store(into, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

void split_words(__m256i v[4], Byte* into, bool last) {
    const __m256i half = _mm256_set1_epi32(128);
    __m256i digit[4];
    for (int i = 0; i < 4; ++i) {
        const __m256i upper = _mm256_srai_epi32(_mm256_add_epi32(v[i], half), 8);
        digit[i] = last ? v[i] : _mm256_sub_epi32(v[i], _mm256_slli_epi32(upper, 8));
        v[i] = upper;
    }
    for (int i = 0; i < 2; ++i)
        store(into + 32 * i,
              _mm256_permute4x64_epi64(_mm256_packs_epi32(digit[2 * i], digit[2 * i + 1]), 0xd8));
}

// Elements of every other place: the even ones of a and b, then the odd ones.
void deinterleave(bool bytes, __m256i* a, __m256i* b) {
    __m256i even, odd;
    if (bytes) {
        const __m256i low = _mm256_set1_epi16(0xff);
        even = _mm256_packus_epi16(_mm256_and_si256(*a, low), _mm256_and_si256(*b, low));
        odd = _mm256_packus_epi16(_mm256_srli_epi16(*a, 8), _mm256_srli_epi16(*b, 8));
    } else {
        const __m256i low = _mm256_set1_epi32(0xffff);
        even = _mm256_packus_epi32(_mm256_and_si256(*a, low), _mm256_and_si256(*b, low));
        odd = _mm256_packus_epi32(_mm256_srli_epi32(*a, 16), _mm256_srli_epi32(*b, 16));
    }
    *a = _mm256_permute4x64_epi64(even, 0xd8);
    *b = _mm256_permute4x64_epi64(odd, 0xd8);
}

// One plane of a block from the codes' own order to the order of its vectors.
void arrange(Byte* plane, int bits) {
    const bool bytes = in_bytes(bits);
    __m256i v[4];
    const std::size_t vectors = vectors_of(bits);
    for (std::size_t i = 0; i < vectors; ++i) v[i] = load(plane + 32 * i);
    deinterleave(bytes, &v[0], &v[1]);
    if (vectors == 4) {
        deinterleave(bytes, &v[2], &v[3]);
        deinterleave(bytes, &v[0], &v[2]);
        deinterleave(bytes, &v[1], &v[3]);
    }
    for (std::size_t i = 0; i < vectors; ++i) store(plane + 32 * i, v[i]);
}

// The inputs [begin, begin + count) as integers into the planes, in the codes' own order; their
// sum.
int fill(const float* x, int bits, std::size_t begin, std::size_t count, float inverse,
         const Layout& layout, Byte* into) {
    const bool bytes = in_bytes(bits);
    const std::size_t planes = planes_of(bits), plane_bytes = layout.block_bytes / planes;
    const __m256i most = _mm256_set1_epi32((1 << width_of(bits)) - 1);
    __m256i sum = _mm256_setzero_si256();
    for (std::size_t i = begin; i < begin + count; i += 32) {
        __m256i v[4];
        for (std::size_t j = 0; j < 4; ++j) {
            const __m256 each = _mm256_loadu_ps(x + i + 8 * j);
            v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(each, _mm256_set1_ps(inverse)));
            v[j] = _mm256_max_epi32(_mm256_min_epi32(v[j], most),
                                    _mm256_sub_epi32(_mm256_setzero_si256(), most));
            sum = _mm256_add_epi32(sum, v[j]);
        }
        // The lowest digits are in the last plane.
        Byte* at =
            into + i / layout.block * layout.block_bytes + i % layout.block * (bytes ? 1 : 2);
        for (std::size_t plane = planes; plane-- > 0;) {
            if (bytes)
                split_bytes(v, at + plane * plane_bytes);
            else
                split_words(v, at + plane * plane_bytes, plane == 0);
        }
    }
    return total(sum);
}

void prepare_row(const float* x, const AffineMatrix& m, const Layout& layout, Byte* into) {
    const std::size_t group = static_cast<std::size_t>(m.group), planes = planes_of(m.bits);
    float* scales = reinterpret_cast<float*>(into + layout.scales);
    float* sums = reinterpret_cast<float*>(into + layout.sums);
    if (layout.blocks * layout.block > m.in)  // the last block is whole all the same
        std::memset(into + (layout.blocks - 1) * layout.block_bytes, 0, layout.block_bytes);
    std::memset(scales, 0, layout.size - layout.scales);
    for (std::size_t g = 0; g < layout.groups; ++g) {
        float inverse;
        const float scale = fixed_point(x + g * group, group, width_of(m.bits), &inverse);
        sums[g] =
            scale * static_cast<float>(fill(x, m.bits, g * group, group, inverse, layout, into));
        scales[g] = scale;
    }
    for (std::size_t plane = 0; plane < layout.blocks * planes; ++plane)
        arrange(into + plane * (layout.block_bytes / planes), m.bits);
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
