// Products with AVX2, FMA and F16C, in float32.
//
// A vector has eight 32-bit lanes; a lane holds kLaneCodes consecutive codes in its low bits, so
// that a shift brings the next code of each lane down. The activations are laid out likewise:
// for block b and place k, eight floats x[(8 b + lane) * kLaneCodes + k].

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "dispatch.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kAhead = 4096;      // bytes; the hardware prefetcher stops at each page
constexpr std::size_t kRowsTogether = 8;  // outputs whose weights stay in the cache for all rows

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }
constexpr std::size_t lane_codes(int bits) { return bits == 2 ? 16 : bits <= 4 ? 8 : 4; }

// Where the parts of one prepared activation row lie, in floats from its start.
struct Layout {
    explicit Layout(const AffineMatrix& m)
        : block(8 * lane_codes(m.bits)),
          padded(round_up(m.in, block)),
          groups(m.in / static_cast<std::size_t>(m.group)),
          size(padded + round_up(groups, 8)) {}
    std::size_t block, padded, groups, size;  // the sums of the groups follow the activations
};

__m256 load8(Scalar type, const Byte* from) {
    if (type == Scalar::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (type == Scalar::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// As load8, zeros beyond `count`; nothing past them is touched.
__m256 load8(Scalar type, const Byte* from, std::size_t count) {
    if (count >= 8) return load8(type, from);
    Byte room[32] = {};
    std::memcpy(room, from, count * size_of(type));
    return load8(type, room);
}

float sum(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) {
    return rows * Layout(m).size * sizeof(float);
}

void prepare(const float* x, std::size_t rows, const AffineMatrix& m, void* into) {
    const Layout layout(m);
    const std::size_t codes = lane_codes(m.bits), group = static_cast<std::size_t>(m.group);
    for (std::size_t t = 0; t < rows; ++t, x += m.in) {
        float* row = static_cast<float*>(into) + t * layout.size;
        for (std::size_t i = 0; i < layout.size; ++i) row[i] = 0;
        for (std::size_t i = 0; i < m.in; ++i)
            row[i / layout.block * layout.block + i % codes * 8 + i % layout.block / codes] = x[i];
        for (std::size_t g = 0; g < layout.groups; ++g) {
            __m256 total = _mm256_setzero_ps();
            for (std::size_t i = 0; i < group; i += 8)
                total = _mm256_add_ps(total, _mm256_loadu_ps(x + g * group + i));
            row[layout.padded + g] = sum(total);
        }
    }
}

// The codes of a block, lane by lane; reads bits * kLaneCodes bytes, no more.
template <int bits>
__m256i lanes_of(const Byte* from) {
    if constexpr (bits == 2 || bits == 4 || bits == 8) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    } else {
        // A lane takes 3 bytes (24 bits) or, at 5 bits, 2 1/2. The upper half of the vector is
        // loaded so that it ends where the block does.
        constexpr bool five = bits == 5;
        constexpr int ahead = five ? 4 : 8;
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + ahead));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        if constexpr (five) {
            const __m256i index =
                _mm256_setr_epi8(0, 1, 2, -1, 2, 3, 4, -1, 5, 6, 7, -1, 7, 8, 9, -1, 6, 7, 8, -1, 8,
                                 9, 10, -1, 11, 12, 13, -1, 13, 14, 15, -1);
            return _mm256_srlv_epi32(_mm256_shuffle_epi8(both, index),
                                     _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
        }
        const __m256i index =
            _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, 4, 5, 6, -1, 7,
                             8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1);
        return _mm256_shuffle_epi8(both, index);
    }
}

// One weight row with `kRows` activation rows. Whatever kRows is, each sum takes the same steps.
template <int bits, int kRows>
void affine_row(const float* x, const Layout& layout, const AffineMatrix& m, std::size_t o,
                float* y) {
    constexpr std::size_t kLaneCodes = lane_codes(bits), kBytes = kLaneCodes * bits;
    const std::size_t row_bytes = m.in / 8 * bits, step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * row_bytes;
    const Byte* scales = static_cast<const Byte*>(m.scales) + o * layout.groups * step;
    const Byte* biases = static_cast<const Byte*>(m.biases) + o * layout.groups * step;
    const std::size_t lanes = static_cast<std::size_t>(m.group) / kLaneCodes;  // of one group
    const __m128i shift = _mm_cvtsi32_si128(__builtin_ctzll(lanes));
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
    __m256 products[kRows], offsets[kRows];
    for (int t = 0; t < kRows; ++t) products[t] = offsets[t] = _mm256_setzero_ps();

    for (std::size_t g = 0, b = 0; g < layout.groups; g += 8) {
        const std::size_t count = layout.groups - g;
        const __m256 scale = load8(m.scalar, scales + g * step, count);
        const __m256 bias = load8(m.scalar, biases + g * step, count);
        _mm_prefetch(reinterpret_cast<const char*>(scales + g * step + kAhead / 8), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(biases + g * step + kAhead / 8), _MM_HINT_T0);
        for (int t = 0; t < kRows; ++t) {
            const float* sums = x + static_cast<std::size_t>(t) * layout.size + layout.padded + g;
            offsets[t] = _mm256_fmadd_ps(bias, _mm256_loadu_ps(sums), offsets[t]);
        }
        __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        for (std::size_t i = 0; i < lanes && b * layout.block < m.in; ++i, ++b) {
            const Byte* at = weight + b * kBytes;
            Byte room[kBytes];
            _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
            if (const std::size_t left = row_bytes - b * kBytes; left < kBytes) {
                std::memset(room, 0, kBytes);
                std::memcpy(room, at, left);
                at = room;
            }
            __m256i codes = lanes_of<bits>(at);
            __m256 block[kRows];
            for (int t = 0; t < kRows; ++t) block[t] = _mm256_setzero_ps();
            for (std::size_t k = 0; k < kLaneCodes; ++k) {
                const __m256 q = _mm256_cvtepi32_ps(_mm256_and_si256(codes, mask));
                codes = _mm256_srli_epi32(codes, bits);
                for (int t = 0; t < kRows; ++t) {
                    const float* row = x + static_cast<std::size_t>(t) * layout.size;
                    block[t] = _mm256_fmadd_ps(q, _mm256_loadu_ps(row + b * layout.block + 8 * k),
                                               block[t]);
                }
            }
            const __m256 mine = _mm256_permutevar8x32_ps(scale, _mm256_srl_epi32(lane, shift));
            for (int t = 0; t < kRows; ++t)
                products[t] = _mm256_fmadd_ps(block[t], mine, products[t]);
            lane = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] = sum(_mm256_add_ps(products[t], offsets[t]));
}

template <int bits>
void affine_rows(const float* x, std::size_t rows, const AffineMatrix& m, std::size_t begin,
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
    const float* x = static_cast<const float*>(prepared);
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
    __m256 even[kRows], odd[kRows];
    for (int t = 0; t < kRows; ++t) even[t] = odd[t] = _mm256_setzero_ps();
    for (std::size_t i = 0; i < m.in; i += 16) {
        const Byte* at = weight + i * step;
        _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
        const std::size_t first = least(m.in - i, 8), second = least(m.in - i - first, 8);
        const __m256 w0 = load8(m.scalar, at, first);
        const __m256 w1 = load8(m.scalar, at + first * step, second);
        for (int t = 0; t < kRows; ++t) {
            const auto* row =
                reinterpret_cast<const Byte*>(x + static_cast<std::size_t>(t) * m.in + i);
            even[t] = _mm256_fmadd_ps(w0, load8(Scalar::f32, row, first), even[t]);
            odd[t] = _mm256_fmadd_ps(w1, load8(Scalar::f32, row + 4 * first, second), odd[t]);
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] = sum(_mm256_add_ps(even[t], odd[t]));
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

const RowKernels avx2_kernels{prepared_bytes, prepare, affine, plain};

}  // namespace flashmoe
