// Activations in fixed point and weights in panels, as AVX-512 and AMX multiply them.
//
// Included by the files of those two alone, and in their unnamed namespaces, since a file with
// flags of its own may define no other function with external linkage (dispatch.h).
//
// Activations lie in blocks of 16 rows: lines of 64 high bytes of v, in the order below, a line of
// each row for the first 64 inputs, then for the next 64; the low bytes likewise; then a scale a
// group for each row, and a sum. A panel: the codes of kPanelOutputs weight rows for up to
// kStretch inputs, as two halves of 16 rows; a half has a line of 64 bytes for every four codes:
// four of row 0, the same four of row 1, and so on, which is how vpdpbusd and tdpbsud read them.
//
// Order of codes: as they lie, but at 4 bits each eight as 0 2 4 6 1 3 5 7, and at 2 bits each
// sixteen as 0 4 8 12 1 5 9 13 ...: what shifting a word of packed codes gives.

#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "panels.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kStretch = 1024;  // inputs of a panel: its 32 KiB stay in the first cache
constexpr std::size_t kHalf = 16;       // weight rows that lie side by side
constexpr std::size_t kHalfBytes = kHalf * kStretch;
constexpr std::size_t kStretchGroups = kStretch / 32;  // at most
constexpr std::size_t kPanels = 4;  // that all activations meet in turn: 160 KiB of a second cache

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Where the parts of a block of prepared activations lie, in bytes from its start.
struct Block {
    explicit Block(const AffineMatrix& m)
        : group(static_cast<std::size_t>(m.group)),
          groups(m.in / group),
          low(kRows * round_up(m.in, 64)),
          scales(2 * low),
          sums(scales + kRows * 4 * groups),
          size(sums + kRows * 4 * groups) {}

    // The first of `group` high bytes of row t; those of the next 64 inputs are kLines further on.
    static std::size_t at(std::size_t t, std::size_t input) {
        return input / 64 * kLines + t * 64 + input % 64;
    }

    static constexpr std::size_t kRows = 16, kLines = kRows * 64;
    std::size_t group, groups, low, scales, sums, size;
};

// Weights of a stretch, unpacked.
struct alignas(64) Panel {
    Byte codes[2 * kHalfBytes];
    float scales[2][kStretchGroups][kHalf];
    float biases[2][kStretchGroups][kHalf];
};

// Outputs [begin, end), the first of panel i at(i).
struct Span {
    std::size_t begin, end, count;
    std::size_t at(std::size_t i) const { return begin + i * kPanelOutputs; }
};

__mmask16 first_lanes(std::size_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffffU : (1U << count) - 1);
}

// The outputs that there are in each half of a panel, of so many left.
struct Lanes {
    explicit Lanes(std::size_t left)
        : of{first_lanes(left), first_lanes(left > kHalf ? left - kHalf : 0)} {}
    __mmask16 of[2];
};

__mmask64 first_bytes(std::size_t count) { return count >= 64 ? ~0ULL : (1ULL << count) - 1; }

__m512 widen(Scalar type, __m256i half) {
    if (type == Scalar::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Up to 16 numbers as float32, zeros beyond `count`; nothing past them is touched.
__m512 load16(Scalar type, const Byte* from, std::size_t count) {
    const __mmask16 mask = first_lanes(count);
    if (type == Scalar::f32) return _mm512_maskz_loadu_ps(mask, from);
    return widen(type, _mm256_maskz_loadu_epi16(mask, from));
}

// The largest magnitude of a group, or NaN where one of them is infinite or NaN.
float top_of(const float* x, std::size_t count) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 finite = 0xffff;
    for (std::size_t i = 0; i < count; i += 16) {
        const __m512 magnitude = _mm512_abs_ps(_mm512_loadu_ps(x + i));
        finite &= _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
        largest = _mm512_max_ps(largest, magnitude);
    }
    return finite == 0xffff ? _mm512_reduce_max_ps(largest) : __builtin_nanf("");
}

struct alignas(64) Order {
    explicit constexpr Order(unsigned run) {  // codes of a word of packed ones: 8 at 4 bits
        const unsigned step = run / 4;
        for (unsigned i = 0; i < 64; ++i)
            at[i] = static_cast<Byte>(i / run * run + i % 4 * step + i % run / 4);
    }
    Byte at[64] = {};
};
constexpr Order kOrder4{8}, kOrder2{16};

__m512i arranged(__m512i codes, int bits) {
    if (bits == 4) return _mm512_permutexvar_epi8(_mm512_load_si512(kOrder4.at), codes);
    if (bits == 2) return _mm512_permutexvar_epi8(_mm512_load_si512(kOrder2.at), codes);
    return codes;
}

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) {
    return round_up(rows, Block::kRows) / Block::kRows * Block(m).size;
}

void prepare(const float* x, const AffineMatrix& m, std::size_t t, void* into) {
    const Block block(m);
    Byte* base = static_cast<Byte*>(into) + t / Block::kRows * block.size;
    t %= Block::kRows;
    float* scales = reinterpret_cast<float*>(base + block.scales) + t;
    float* sums = reinterpret_cast<float*>(base + block.sums) + t;
    for (std::size_t g = 0; g < block.groups; ++g) {
        const float top = top_of(x + g * block.group, block.group);
        const float inverse = top >= kPanelLeast ? kPanelTop / top : 0;
        const __mmask16 keep = top == top ? 0xffff : 0;
        __m512i sum = _mm512_setzero_si512();
        for (std::size_t i = g * block.group; i < (g + 1) * block.group; i += 16) {
            const __m512i v = _mm512_maskz_cvtps_epi32(
                keep, _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
            sum = _mm512_add_epi32(sum, v);
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
            Byte* at = base + Block::at(t, i);
            _mm_store_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(high));
            _mm_store_si128(reinterpret_cast<__m128i*>(at + block.low), _mm512_cvtepi32_epi8(v));
        }
        scales[g * Block::kRows] = top / kPanelTop;
        sums[g * Block::kRows] =
            static_cast<float>(_mm512_reduce_add_epi32(sum)) * scales[g * Block::kRows];
    }
    if (m.bits != 2 && m.bits != 4) return;
    for (Byte* at = base + t * 64; at < base + block.scales; at += Block::kLines)
        _mm512_store_si512(at, arranged(_mm512_load_si512(at), m.bits));
}

// Words [i][j] become [j][i].
inline void transpose(__m512i (&v)[16]) {
    __m512i a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

// At 3, 5 and 6 bits: eight codes lie in `bits` bytes, which go to a lane of eight bytes, where
// each code is shifted to a byte of its own.
template <int bits>
struct Spread {
    struct alignas(64) Index {
        constexpr Index() {
            for (unsigned i = 0; i < 64; ++i)
                at[i] = static_cast<Byte>(i / 8 * bits + i % 8 % bits);
        }
        Byte at[64] = {};
    };
    static constexpr Index kIndex{};

    static __m512i codes(__m512i packed) {
        unsigned long long shifts = 0;
        for (unsigned i = 0; i < 8; ++i)
            shifts |= static_cast<unsigned long long>(bits * i) << 8 * i;
        const __m512i lanes = _mm512_permutexvar_epi8(_mm512_load_si512(kIndex.at), packed);
        return _mm512_and_si512(
            _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(shifts)), lanes),
            _mm512_set1_epi8((1 << bits) - 1));
    }
};

// Inputs [first, first + count) of 16 weight rows as half a panel. Rows beyond the last stand for
// it. Asks for the next 16 rows' bytes on the way.
template <int bits>
void unpack_half(const AffineMatrix& m, std::size_t o, std::size_t first, std::size_t count,
                 Byte* into) {
    constexpr bool whole = bits == 2 || bits == 4 || bits == 8;  // codes cross no word
    constexpr std::size_t kWords = whole ? 32 / bits : 4;        // codes of a transposed word
    constexpr std::size_t kStep = 16 * kWords, kStepBytes = kStep * bits / 8;
    const std::size_t stride = m.in / 8 * bits, start = first / 8 * bits, bytes = count / 8 * bits;
    const Byte* weight = static_cast<const Byte*>(m.weight) + start;
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
    for (std::size_t at = 0, done = 0; done < count; at += kStepBytes, done += kStep) {
        const __mmask64 valid = first_bytes(least(bytes - at, kStepBytes));
        __m512i v[16];
        for (std::size_t r = 0; r < kHalf; ++r) {
            const Byte* from = weight + least(o + r, m.out - 1) * stride + at;
            v[r] = _mm512_maskz_loadu_epi8(valid, from);
            _mm_prefetch(reinterpret_cast<const char*>(from + kHalf * stride), _MM_HINT_T1);
            if constexpr (!whole) v[r] = Spread<bits>::codes(v[r]);
        }
        transpose(v);
        const std::size_t words = least(count - done, kStep) / kWords;
        for (std::size_t w = 0; w < words; ++w) {
            if constexpr (!whole || bits == 8) {
                _mm512_store_si512(into, v[w]);
                into += 64;
            } else {
                for (unsigned s = 0; s < 8; s += bits, into += 64)
                    _mm512_store_si512(into, _mm512_and_si512(_mm512_srli_epi32(v[w], s), mask));
            }
        }
    }
}

void unpack_scales(const AffineMatrix& m, const void* array, std::size_t o, std::size_t first,
                   std::size_t count, float (*into)[kHalf]) {
    const std::size_t groups = m.in / static_cast<std::size_t>(m.group), step = size_of(m.scalar);
    const Byte* from = static_cast<const Byte*>(array) + first * step;
    for (std::size_t g = 0; g < count; g += 16) {
        __m512i v[16];
        for (std::size_t r = 0; r < kHalf; ++r)
            v[r] = _mm512_castps_si512(
                load16(m.scalar, from + (least(o + r, m.out - 1) * groups + g) * step, count - g));
        transpose(v);
        for (std::size_t i = 0; i < least(count - g, 16); ++i)
            _mm512_store_si512(into[g + i], v[i]);
    }
}

void unpack(const AffineMatrix& m, std::size_t o, std::size_t first, std::size_t count,
            Panel& panel) {
    const std::size_t group = static_cast<std::size_t>(m.group);
    for (std::size_t half = 0; half < 2; ++half) {
        const std::size_t row = o + half * kHalf;
        if (row >= m.out) break;
        Byte* into = panel.codes + half * kHalfBytes;
        switch (m.bits) {
            case 2: unpack_half<2>(m, row, first, count, into); break;
            case 3: unpack_half<3>(m, row, first, count, into); break;
            case 4: unpack_half<4>(m, row, first, count, into); break;
            case 5: unpack_half<5>(m, row, first, count, into); break;
            case 6: unpack_half<6>(m, row, first, count, into); break;
            default: unpack_half<8>(m, row, first, count, into); break;
        }
        unpack_scales(m, m.scales, row, first / group, count / group, panel.scales[half]);
        unpack_scales(m, m.biases, row, first / group, count / group, panel.biases[half]);
    }
}

// sum += a . b, by fours of bytes. Written out, since GCC moves the sums of many intrinsics to and
// from the stack: half as quick.
inline void multiply_add(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// One group more of a sum: `high` and `low` are the integer sums of the two planes.
inline __m512 added(__m512 sum, __m512i high, __m512i low, __m512 scale, __m512 bias,
                    const float* row_scale, const float* row_sum) {
    const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    sum = _mm512_fmadd_ps(whole, _mm512_mul_ps(_mm512_set1_ps(*row_scale), scale), sum);
    return _mm512_fmadd_ps(bias, _mm512_set1_ps(*row_sum), sum);
}

// Calls task(span, first, count) for up to kPanels panels of inputs [first, first + count) at a
// time, unpacked, which cover outputs [begin, end) of all inputs, the first of each output first.
template <class Task>
inline void for_panels(const AffineMatrix& m, std::size_t begin, std::size_t end, Panel* panels,
                       Task task) {
    constexpr std::size_t kOutputs = kPanels * kPanelOutputs;
    for (std::size_t o = begin; o < end; o += kOutputs) {
        const std::size_t last = least(o + kOutputs, end);
        const Span span{o, last, (last - o + kPanelOutputs - 1) / kPanelOutputs};
        for (std::size_t first = 0; first < m.in; first += kStretch) {
            const std::size_t count = least(m.in - first, kStretch);
            for (std::size_t i = 0; i < span.count; ++i)
                unpack(m, span.at(i), first, count, panels[i]);
            task(span, first, count);
        }
    }
}

// kCount activation rows of a block with both halves of a panel, over all of its groups; y points
// to the first output of the first row.
template <int kCount>
void rows_tile(const Byte* base, std::size_t row, const Block& block, std::size_t first,
               std::size_t count, const Panel& panel, const Lanes& lanes, float* y,
               std::size_t out) {
    const std::size_t from = first / block.group;
    const float* scales = reinterpret_cast<const float*>(base + block.scales) + row;
    const float* row_sums = reinterpret_cast<const float*>(base + block.sums) + row;
    __m512 sums[kCount][2];
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            sums[t][h] = first == 0 ? _mm512_setzero_ps()
                                    : _mm512_maskz_loadu_ps(lanes.of[h], y + t * out + h * kHalf);
    const Byte* codes = panel.codes;
    for (std::size_t g = 0; g < count / block.group; ++g) {
        __m512i high[kCount][2], low[kCount][2];
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h) high[t][h] = low[t][h] = _mm512_setzero_si512();
        for (std::size_t i = 0; i < block.group; i += 64) {
            const Byte* x = base + Block::at(row, first + g * block.group + i);
            const std::size_t words = least(block.group, 64) / 4;
            for (std::size_t w = 0; w < words; ++w, codes += 64, x += 4) {
                const __m512i w0 = _mm512_load_si512(codes);
                const __m512i w1 = _mm512_load_si512(codes + kHalfBytes);
                for (int t = 0; t < kCount; ++t) {
                    int four;
                    __builtin_memcpy(&four, x + 64 * t, 4);
                    const __m512i upper = _mm512_set1_epi32(four);
                    multiply_add(high[t][0], w0, upper);
                    multiply_add(high[t][1], w1, upper);
                    __builtin_memcpy(&four, x + 64 * t + block.low, 4);
                    const __m512i lower = _mm512_set1_epi32(four);
                    multiply_add(low[t][0], w0, lower);
                    multiply_add(low[t][1], w1, lower);
                }
            }
        }
        for (int t = 0; t < kCount; ++t)
            for (int h = 0; h < 2; ++h)
                sums[t][h] = added(
                    sums[t][h], high[t][h], low[t][h], _mm512_load_ps(panel.scales[h][g]),
                    _mm512_load_ps(panel.biases[h][g]), scales + (from + g) * Block::kRows + t,
                    row_sums + (from + g) * Block::kRows + t);
    }
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            _mm512_mask_storeu_ps(y + t * out + h * kHalf, lanes.of[h], sums[t][h]);
}

// The first rows of a block with a panel, with VNNI; y points to the first output of row 0.
void rows_of(const Byte* base, std::size_t rows, const Block& block, std::size_t first,
             std::size_t count, const Panel& panel, const Lanes& lanes, float* y, std::size_t out) {
    for (std::size_t t = 0; t < rows;) {
        float* into = y + t * out;
        if (t + 4 <= rows) {
            rows_tile<4>(base, t, block, first, count, panel, lanes, into, out);
            t += 4;
        } else {
            rows_tile<1>(base, t, block, first, count, panel, lanes, into, out);
            t += 1;
        }
    }
}

}  // namespace
}  // namespace flashmoe
