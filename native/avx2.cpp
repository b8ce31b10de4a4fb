// Products with AVX2, FMA and F16C: integer arithmetic at float32's precision.
//
// As in avx512.cpp, activations are 23-bit fixed-point numbers (22 where codes have 8 bits) in
// planes, whose form and order avx2_activations.h explains. Every sum within a lane is an exact
// int32, converted once to float32.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "avx2_activations.h"
#include "dispatch.h"

namespace flashmoe {
namespace {

constexpr std::size_t kAhead = 4096;      // bytes; the hardware prefetcher stops at each page
constexpr std::size_t kRowsTogether = 8;  // outputs whose weights stay in the cache for all rows

constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

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

// The codes of one block in vectors, as avx2_activations.h orders them.
template <int bits>
struct Codes {
    static constexpr std::size_t kVectors = vectors_of(bits), kPlanes = planes_of(bits);
    static constexpr std::size_t kBytes = block_of(bits) * bits / 8;

    explicit Codes(const Byte* from) {
        if constexpr (in_bytes(bits)) {
            const __m256i word = load(from), mask = _mm256_set1_epi8((1 << bits) - 1);
            for (std::size_t v = 0; v < kVectors; ++v)
                vector[v] =
                    _mm256_and_si256(_mm256_srli_epi16(word, static_cast<int>(v) * bits), mask);
        } else {
            // kVectors codes in the highest bits of each 16.
            constexpr int unused = 16 - bits * static_cast<int>(kVectors);
            const __m256i word = bits == 8 ? load(from) : spread(from);
            const __m256i mask = _mm256_set1_epi16((1 << bits) - 1);
            for (std::size_t v = 0; v < kVectors; ++v) {
                vector[v] = _mm256_srli_epi16(word, unused + static_cast<int>(v) * bits);
                if (v + 1 < kVectors) vector[v] = _mm256_and_si256(vector[v], mask);
            }
        }
    }

    // The block's products with its activations, lane by lane.
    __m256i dot(const Byte* x) const {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i sum[kPlanes];
        for (std::size_t plane = 0; plane < kPlanes; ++plane, x += 32 * kVectors) {
            if constexpr (in_bytes(bits)) {
                sum[plane] = _mm256_maddubs_epi16(vector[0], load(x));
                for (std::size_t v = 1; v < kVectors; ++v)
                    sum[plane] = _mm256_add_epi16(
                        sum[plane], _mm256_maddubs_epi16(vector[v], load(x + 32 * v)));
            } else {
                sum[plane] = _mm256_madd_epi16(vector[0], load(x));
                for (std::size_t v = 1; v < kVectors; ++v)
                    sum[plane] = _mm256_add_epi32(sum[plane],
                                                  _mm256_madd_epi16(vector[v], load(x + 32 * v)));
            }
        }
        if constexpr (in_bytes(bits)) {
            const __m256i upper = _mm256_add_epi32(
                _mm256_madd_epi16(sum[0], _mm256_set1_epi16(256)), _mm256_madd_epi16(sum[1], ones));
            return _mm256_add_epi32(_mm256_slli_epi32(upper, 8), _mm256_madd_epi16(sum[2], ones));
        } else {
            return _mm256_add_epi32(_mm256_slli_epi32(sum[0], 8), sum[1]);
        }
    }

    __m256i vector[kVectors];

private:
    // At 3, 5 and 6 bits: the two bytes or fewer with the codes of each 16-bit element, moved to
    // its highest bits. The upper half of the vector is loaded so that it ends where the block
    // does.
    static constexpr unsigned kAheadBytes = kBytes - 16;

    struct alignas(32) Places {
        constexpr Places() {
            for (unsigned e = 0; e < 16; ++e) {
                const unsigned width = bits * kVectors;
                const unsigned bit = width * e - (e < 8 ? 0 : 8 * kAheadBytes);
                const unsigned end = bit + width, first = (end - 1) / 8 - 1;
                bytes[2 * e] = static_cast<Byte>(first);
                bytes[2 * e + 1] = static_cast<Byte>(first + 1);
                multipliers[e] = static_cast<std::uint16_t>(1U << (8 * (first + 2) - end));
            }
        }
        Byte bytes[32] = {};
        std::uint16_t multipliers[16] = {};
    };

    static __m256i spread(const Byte* from) {
        static constexpr Places places{};
        const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + kAheadBytes));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(places.bytes));
        return _mm256_mullo_epi16(
            _mm256_shuffle_epi8(both, index),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(places.multipliers)));
    }
};

// One weight row with `kRows` activation rows. Whatever kRows is, each sum takes the same steps.
template <int bits, int kRows>
void affine_row(const Byte* prepared, const Layout& layout, const AffineMatrix& m, std::size_t o,
                const __m256i* groups, float* y) {
    constexpr std::size_t kBytes = Codes<bits>::kBytes;
    const std::size_t row_bytes = m.in / 8 * bits, step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * row_bytes;
    const Byte* scales = static_cast<const Byte*>(m.scales) + o * layout.groups * step;
    const Byte* biases = static_cast<const Byte*>(m.biases) + o * layout.groups * step;
    const std::size_t lanes = static_cast<std::size_t>(m.group) / lane_codes(bits);  // of one group
    __m256 products[kRows], offsets[kRows];
    for (int t = 0; t < kRows; ++t) products[t] = offsets[t] = _mm256_setzero_ps();

    for (std::size_t g = 0, b = 0; g < layout.groups; g += 8) {
        const std::size_t count = layout.groups - g;
        const __m256 scale = load8(m.scalar, scales + g * step, count);
        const __m256 bias = load8(m.scalar, biases + g * step, count);
        _mm_prefetch(reinterpret_cast<const char*>(scales + g * step + kAhead / 8), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(biases + g * step + kAhead / 8), _MM_HINT_T1);
        __m256 unit[kRows];
        for (int t = 0; t < kRows; ++t) {
            const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size + g * 4;
            unit[t] = _mm256_mul_ps(scale, load8(Scalar::f32, row + layout.scales));
            offsets[t] = _mm256_fmadd_ps(bias, load8(Scalar::f32, row + layout.sums), offsets[t]);
        }
        for (std::size_t i = 0; i < lanes && b < layout.blocks; ++i, ++b) {
            const Byte* at = weight + b * kBytes;
            Byte room[kBytes];
            _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T1);
            if (const std::size_t left = row_bytes - b * kBytes; left < kBytes) {
                std::memset(room, 0, kBytes);
                std::memcpy(room, at, left);
                at = room;
            }
            const Codes<bits> codes(at);
            const __m256i group = _mm256_load_si256(groups + i);
            for (int t = 0; t < kRows; ++t) {
                const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size;
                const __m256 block = _mm256_cvtepi32_ps(codes.dot(row + b * layout.block_bytes));
                products[t] =
                    _mm256_fmadd_ps(block, _mm256_permutevar8x32_ps(unit[t], group), products[t]);
            }
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] = sum(_mm256_add_ps(products[t], offsets[t]));
}

template <int bits>
void affine_rows(const Byte* x, std::size_t rows, const AffineMatrix& m, std::size_t begin,
                 std::size_t end, float* y) {
    const Layout layout(m);
    // Of each lane of a block, the place of its group among eight; the same in every eight groups.
    __m256i groups[32];
    const std::size_t lanes = static_cast<std::size_t>(m.group) / lane_codes(bits);
    for (std::size_t i = 0; i < lanes; ++i)
        groups[i] = _mm256_srl_epi32(_mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(8 * i)),
                                                      _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                                     _mm_cvtsi32_si128(__builtin_ctzll(lanes)));
    for (std::size_t first = begin; first < end; first += kRowsTogether) {
        const std::size_t last = least(first + kRowsTogether, end);
        std::size_t t = 0;
        for (; t + 4 <= rows; t += 4)
            for (std::size_t o = first; o < last; ++o)
                affine_row<bits, 4>(x + t * layout.size, layout, m, o, groups, y + t * m.out);
        for (; t < rows; ++t)
            for (std::size_t o = first; o < last; ++o)
                affine_row<bits, 1>(x + t * layout.size, layout, m, o, groups, y + t * m.out);
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
    __m256 even[kRows], odd[kRows];
    for (int t = 0; t < kRows; ++t) even[t] = odd[t] = _mm256_setzero_ps();
    for (std::size_t i = 0; i < m.in; i += 16) {
        const Byte* at = weight + i * step;
        _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T1);
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
