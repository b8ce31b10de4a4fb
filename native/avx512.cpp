// Products with AVX-512 (F, BW, VL, VBMI, VNNI): integer arithmetic at float32's precision.
//
// The activations of a group become 23-bit fixed-point numbers under a power of two, split into
// three planes of signed bytes; vpdpbusd multiplies each with the unsigned codes. Every sum
// within a lane is an exact int32, so no precision is lost between the fixed-point rounding,
// 2^-23 of the group's largest activation, and one conversion to float32.
//
// Sixteen lanes of four bytes a vector; a block is as many codes as one load gives (kVectors
// vectors of 64). Vector v of a block holds codes v, v + kVectors, v + 2 kVectors, ...; at 3 bits
// the words of four codes are dealt out in turn instead.

#include <immintrin.h>

#include <cfloat>
#include <cstdint>

#include "dispatch.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kPlanes = 3;
// Bytes ahead of the current load that are asked for. The hardware prefetcher stops at each page
// of 4 KiB; asking one page ahead keeps the memory busy across them.
constexpr std::size_t kAhead = 4096;
constexpr std::size_t kRowsTogether = 8;  // outputs whose weights stay in the cache for all rows

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

// The codes of one block, a byte each, in vectors as the head of this file says.
template <int bits>
struct Codes {
    static constexpr std::size_t kVectors = vectors_of(bits);
    static constexpr std::size_t kBytes = 8 * bits * kVectors;

    // `left` bytes of the row remain; none beyond them are touched.
    void load(const Byte* from, std::size_t left) {
        const __m512i word = _mm512_maskz_loadu_epi8(first_bytes(least(left, kBytes)), from);
        const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
        if constexpr (bits == 8) {
            vector[0] = word;
        } else if constexpr (bits == 2 || bits == 4) {
            for (std::size_t v = 0; v < kVectors; ++v)
                vector[v] = _mm512_and_si512(
                    _mm512_srli_epi32(word, static_cast<unsigned>(v) * bits), mask);
        } else {
            // Whole bytes of codes go to each 64-bit lane, then each code to a byte of its own.
            const __m512i spread = _mm512_permutexvar_epi8(_mm512_load_si512(kSpread.at), word);
            for (std::size_t v = 0; v < kVectors; ++v) {
                const __m512i fields =
                    _mm512_multishift_epi64_epi8(_mm512_set1_epi64(shifts(v)), spread);
                vector[v] = _mm512_and_si512(fields, mask);
            }
        }
    }

    __m512i vector[kVectors];

private:
    static constexpr unsigned kLaneBytes = kBytes / 8;  // of packed codes a 64-bit lane

    struct alignas(64) Index {
        constexpr Index() {
            for (unsigned i = 0; i < 64; ++i)
                at[i] = static_cast<Byte>(i / 8 * kLaneBytes + (i % 8) % kLaneBytes);
        }
        Byte at[64] = {};
    };
    static constexpr Index kSpread{};

    // Where in its 64-bit lane each code of vector v begins: four of every 4 * kVectors.
    static constexpr long long shifts(std::size_t v) {
        unsigned long long all = 0;
        for (unsigned i = 0; i < 8; ++i) {
            const std::size_t code = 4 * (i / 4 * kVectors + v) + i % 4;
            all |= static_cast<unsigned long long>(bits * code) << (8 * i);
        }
        return static_cast<long long>(all);
    }
};

// One weight row with `kRows` activation rows. Whatever kRows is, each sum takes the same steps.
template <int bits, int kRows>
void affine_row(const Byte* prepared, const Layout& layout, const AffineMatrix& m, std::size_t o,
                float* y) {
    constexpr std::size_t kLaneCodes = 4 * Codes<bits>::kVectors;
    const std::size_t row_bytes = m.in / 8 * bits, step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * row_bytes;
    const Byte* scales = static_cast<const Byte*>(m.scales) + o * layout.groups * step;
    const Byte* biases = static_cast<const Byte*>(m.biases) + o * layout.groups * step;
    // Lane i of block b belongs to group (16 b + i) * kLaneCodes / group, a power of two apart.
    const std::size_t lanes = static_cast<std::size_t>(m.group) / kLaneCodes;
    const __m128i shift = _mm_cvtsi32_si128(__builtin_ctzll(lanes));
    __m512 products[kRows], offsets[kRows];
    for (int t = 0; t < kRows; ++t) products[t] = offsets[t] = _mm512_setzero_ps();

    for (std::size_t g = 0, b = 0; g < layout.groups; g += 16) {
        const std::size_t count = layout.groups - g;
        const __m512 scale = load16(m.scalar, scales + g * step, count);
        const __m512 bias = load16(m.scalar, biases + g * step, count);
        _mm_prefetch(reinterpret_cast<const char*>(scales + g * step + kAhead / 8), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(biases + g * step + kAhead / 8), _MM_HINT_T0);
        // The codes are taken from the middle of their range, so the bias moves there too.
        const __m512 middle = _mm512_fmadd_ps(scale, _mm512_set1_ps(1 << (bits - 1)), bias);
        __m512 unit[kRows];
        for (int t = 0; t < kRows; ++t) {
            const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size + g * 4;
            unit[t] = _mm512_mul_ps(scale, _mm512_load_ps(row + layout.scales));
            offsets[t] = _mm512_fmadd_ps(middle, _mm512_load_ps(row + layout.sums), offsets[t]);
        }
        __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (std::size_t i = 0; i < lanes && b * layout.block < m.in; ++i, ++b) {
            const Byte* at = weight + b * Codes<bits>::kBytes;
            _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
            Codes<bits> codes;
            codes.load(at, row_bytes - b * Codes<bits>::kBytes);
            const __m512i group = _mm512_srl_epi32(lane, shift);
            for (int t = 0; t < kRows; ++t) {
                const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size;
                __m512i sum[kPlanes];
                for (std::size_t plane = 0; plane < kPlanes; ++plane) {
                    const Byte* x = row + plane * layout.padded + b * layout.block;
                    sum[plane] = _mm512_setzero_si512();
                    for (std::size_t v = 0; v < Codes<bits>::kVectors; ++v)
                        sum[plane] = _mm512_dpbusd_epi32(sum[plane], codes.vector[v],
                                                         _mm512_load_si512(x + 64 * v));
                }
                const __m512i centered = _mm512_add_epi32(
                    join(sum[0], sum[1], sum[2]), _mm512_load_si512(row + layout.centers + 64 * b));
                products[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(centered),
                                              _mm512_permutexvar_ps(group, unit[t]), products[t]);
            }
            lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] =
            _mm512_reduce_add_ps(_mm512_add_ps(products[t], offsets[t]));
}

template <int bits>
void affine_rows(const Byte* x, std::size_t rows, const AffineMatrix& m, std::size_t begin,
                 std::size_t end, float* y) {
    const Layout layout(m);
    for (std::size_t first = begin; first < end; first += kRowsTogether) {
        const std::size_t last = least(first + kRowsTogether, end);
        std::size_t t = 0;
        for (; t + 4 <= rows; t += 4)
            for (std::size_t o = first; o < last; ++o)
                affine_row<bits, 4>(x + t * layout.size, layout, m, o, y + t * m.out);
        for (; t < rows; ++t)
            for (std::size_t o = first; o < last; ++o)
                affine_row<bits, 1>(x + t * layout.size, layout, m, o, y + t * m.out);
    }
}

void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y) {
    const Byte* x = static_cast<const Byte*>(prepared);
    switch (m.bits) {
        case 2: return affine_rows<2>(x, rows, m, begin, end, y);
        case 3: return affine_rows<3>(x, rows, m, begin, end, y);
        case 4: return affine_rows<4>(x, rows, m, begin, end, y);
        case 5: return affine_rows<5>(x, rows, m, begin, end, y);
        case 6: return affine_rows<6>(x, rows, m, begin, end, y);
        default: return affine_rows<8>(x, rows, m, begin, end, y);
    }
}

template <int kRows>
void plain_row(const float* x, const PlainMatrix& m, std::size_t o, float* y) {
    const std::size_t step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * m.in * step;
    __m512 even[kRows], odd[kRows];
    for (int t = 0; t < kRows; ++t) even[t] = odd[t] = _mm512_setzero_ps();
    for (std::size_t i = 0; i < m.in; i += 32) {
        const Byte* at = weight + i * step;
        _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
        const std::size_t first = least(m.in - i, 16), second = least(m.in - i - first, 16);
        const __m512 w0 = load16(m.scalar, at, first);
        const __m512 w1 = load16(m.scalar, at + first * step, second);
        for (int t = 0; t < kRows; ++t) {
            const float* from = x + static_cast<std::size_t>(t) * m.in + i;
            const Byte* row = reinterpret_cast<const Byte*>(from);
            even[t] = _mm512_fmadd_ps(w0, load16(Scalar::f32, row, first), even[t]);
            odd[t] = _mm512_fmadd_ps(w1, load16(Scalar::f32, row + 4 * first, second), odd[t]);
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] =
            _mm512_reduce_add_ps(_mm512_add_ps(even[t], odd[t]));
}

void plain(const float* x, std::size_t rows, const PlainMatrix& m, std::size_t begin,
           std::size_t end, float* y) {
    for (std::size_t first = begin; first < end; first += kRowsTogether) {
        const std::size_t last = least(first + kRowsTogether, end);
        std::size_t t = 0;
        for (; t + 4 <= rows; t += 4)
            for (std::size_t o = first; o < last; ++o)
                plain_row<4>(x + t * m.in, m, o, y + t * m.out);
        for (; t < rows; ++t)
            for (std::size_t o = first; o < last; ++o)
                plain_row<1>(x + t * m.in, m, o, y + t * m.out);
    }
}

}  // namespace

const RowKernels avx512_kernels{prepared_bytes, prepare, affine, plain};

}  // namespace flashmoe
