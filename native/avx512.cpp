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

#include <cstdint>

#include "avx512_activations.h"
#include "dispatch.h"

namespace flashmoe {
namespace {

// Bytes ahead of the current load that are asked for. The hardware prefetcher stops at each page
// of 4 KiB; asking one page ahead keeps the memory busy across them.
constexpr std::size_t kAhead = 4096;
constexpr std::size_t kRowsTogether = 8;  // outputs whose weights stay in the cache for all rows
constexpr int kTogether = 4;              // weight rows that share the loads of one activation row

// The codes of one block, a byte each, in vectors as the head of this file says.
template <int bits>
struct Codes {
    static constexpr std::size_t kVectors = vectors_of(bits);
    static constexpr std::size_t kBytes = 8 * bits * kVectors;

    // `left` bytes of the row remain; none beyond them are touched.
    void load(const Byte* from, std::size_t left) {
        const __m512i word = kBytes == 64 && left >= 64
                                 ? _mm512_loadu_si512(from)
                                 : _mm512_maskz_loadu_epi8(first_bytes(least(left, kBytes)), from);
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

// Codes less `center` times the planes of the activations at x: by Horner's rule, but the low plane
// apart, which is quicker. Exact, modulo 2^32.
template <int bits>
inline __m512i dot(const Codes<bits>& codes, const Byte* x, std::size_t plane_bytes,
                   __m512i center) {
    const auto plane = [&](__m512i sum, std::size_t which) {
        for (std::size_t v = 0; v < Codes<bits>::kVectors; ++v)
            sum = _mm512_dpbusd_epi32(sum, codes.vector[v],
                                      _mm512_load_si512(x + which * plane_bytes + 64 * v));
        return sum;
    };
    const __m512i high = _mm512_slli_epi32(plane(_mm512_setzero_si512(), 0), 8);
    return _mm512_add_epi32(_mm512_slli_epi32(plane(high, 1), 8), plane(center, kPlanes - 1));
}

// kOuts weight rows with kRows activation rows. Whatever these are, each sum takes the same steps.
template <int bits, int kRows, int kOuts>
void affine_tile(const Byte* prepared, const Layout& layout, const AffineMatrix& m, std::size_t o,
                 float* y) {
    constexpr std::size_t kLaneCodes = 4 * Codes<bits>::kVectors;
    const std::size_t row_bytes = m.in / 8 * bits, step = size_of(m.scalar);
    const std::size_t scale_bytes = layout.groups * step;
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * row_bytes;
    const Byte* scales = static_cast<const Byte*>(m.scales) + o * scale_bytes;
    const Byte* biases = static_cast<const Byte*>(m.biases) + o * scale_bytes;
    // Lane i of block b belongs to group (16 b + i) * kLaneCodes / group, a power of two apart.
    const std::size_t lanes = static_cast<std::size_t>(m.group) / kLaneCodes;
    const __m128i shift = _mm_cvtsi32_si128(__builtin_ctzll(lanes));
    // Asked for in the order of memory, so the last row's line is needed soonest.
    const std::size_t ahead = kAhead + (kOuts - 1) * row_bytes;
    __m512 products[kOuts][kRows], offsets[kOuts][kRows];
    for (int j = 0; j < kOuts; ++j)
        for (int t = 0; t < kRows; ++t) products[j][t] = offsets[j][t] = _mm512_setzero_ps();

    for (std::size_t g = 0, b = 0; g < layout.groups; g += 16) {
        const std::size_t count = layout.groups - g;
        __m512 unit[kOuts][kRows];
        for (int j = 0; j < kOuts; ++j) {
            const std::size_t at = static_cast<std::size_t>(j) * scale_bytes + g * step;
            const __m512 scale = load16(m.scalar, scales + at, count);
            const __m512 bias = load16(m.scalar, biases + at, count);
            _mm_prefetch(reinterpret_cast<const char*>(scales + at + kAhead / 8), _MM_HINT_T1);
            _mm_prefetch(reinterpret_cast<const char*>(biases + at + kAhead / 8), _MM_HINT_T1);
            // The codes are taken from the middle of their range, so the bias moves there too.
            const __m512 middle = _mm512_fmadd_ps(scale, _mm512_set1_ps(1 << (bits - 1)), bias);
            for (int t = 0; t < kRows; ++t) {
                const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size + g * 4;
                unit[j][t] = _mm512_mul_ps(scale, _mm512_load_ps(row + layout.scales));
                offsets[j][t] =
                    _mm512_fmadd_ps(middle, _mm512_load_ps(row + layout.sums), offsets[j][t]);
            }
        }
        __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (std::size_t i = 0; i < lanes && b * layout.block < m.in; ++i, ++b) {
            constexpr std::size_t kBytes = Codes<bits>::kBytes;
            Codes<bits> codes[kOuts];
            for (std::size_t j = 0; j < kOuts; ++j) {
                _mm_prefetch(
                    reinterpret_cast<const char*>(weight + (b * kOuts + j) * kBytes + ahead),
                    _MM_HINT_T1);
                codes[j].load(weight + j * row_bytes + b * kBytes, row_bytes - b * kBytes);
            }
            const __m512i group = _mm512_srl_epi32(lane, shift);
            for (int t = 0; t < kRows; ++t) {
                const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size;
                const Byte* x = row + b * layout.block;
                const __m512i center = _mm512_load_si512(row + layout.centers + 64 * b);
                for (int j = 0; j < kOuts; ++j)
                    products[j][t] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot(codes[j], x, layout.padded, center)),
                                        _mm512_permutexvar_ps(group, unit[j][t]), products[j][t]);
            }
            lane = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
        }
    }
    for (int j = 0; j < kOuts; ++j)
        for (int t = 0; t < kRows; ++t)
            y[static_cast<std::size_t>(t) * m.out + o + static_cast<std::size_t>(j)] =
                _mm512_reduce_add_ps(_mm512_add_ps(products[j][t], offsets[j][t]));
}

// The first bytes of rows [begin, end), since the rows ask for what lies ahead of them only.
template <int bits>
void ask_for_first(const Layout& layout, const AffineMatrix& m, std::size_t begin,
                   std::size_t end) {
    const std::size_t row_bytes = m.in / 8 * bits, scale_bytes = layout.groups * size_of(m.scalar);
    const auto ask = [&](const void* all, std::size_t each, std::size_t most) {
        const char* from = static_cast<const char*>(all) + begin * each;
        for (std::size_t i = 0; i < least((end - begin) * each, most); i += 64)
            _mm_prefetch(from + i, _MM_HINT_T1);
    };
    ask(m.weight, row_bytes, kAhead);
    ask(m.scales, scale_bytes, kAhead / 8);
    ask(m.biases, scale_bytes, kAhead / 8);
}

template <int bits>
void affine_rows(const Byte* x, std::size_t rows, const AffineMatrix& m, std::size_t begin,
                 std::size_t end, float* y) {
    const Layout layout(m);
    ask_for_first<bits>(layout, m, begin, end);
    for (std::size_t first = begin; first < end; first += kRowsTogether) {
        const std::size_t last = least(first + kRowsTogether, end);
        std::size_t t = 0;
        for (; t + 4 <= rows; t += 4)
            for (std::size_t o = first; o < last; ++o)
                affine_tile<bits, 4, 1>(x + t * layout.size, layout, m, o, y + t * m.out);
        for (; t < rows; ++t) {
            std::size_t o = first;
            for (; o + kTogether <= last; o += kTogether)
                affine_tile<bits, 1, kTogether>(x + t * layout.size, layout, m, o, y + t * m.out);
            for (; o < last; ++o)
                affine_tile<bits, 1, 1>(x + t * layout.size, layout, m, o, y + t * m.out);
        }
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
        _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T1);
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
