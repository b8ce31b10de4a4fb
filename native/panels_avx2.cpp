// Products of many rows with AVX2 and FMA: vpmaddwd on codes and activations of 16 bits, or, where
// there is AVX-VNNI, vpdpwssd, which adds them up too.
//
// Activations lie in blocks of kRows rows: for every 32 inputs a line of 64 bytes of v for each
// row, in the order below; then a scale a group for each row, and a sum. A panel: the codes of
// kPanelOutputs weight rows for up to kStretch inputs, as two halves of 16 rows; a half has a line
// of 64 bytes for every two codes: those of row 0 in 16 bits each, of row 1, and so on.
//
// Order of codes: as they lie, but at 4 bits each eight as 0 4 1 5 2 6 3 7, at 2 bits each sixteen
// as 0 8 1 9 ..., and at 8 bits each four as 0 2 1 3: what shifting a word of packed codes gives.

#include <immintrin.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "panels.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kStretch = 512;  // inputs of a panel: half of it, 16 KiB, meets rows in turn
constexpr std::size_t kLane = 8;       // weight rows in a vector
constexpr std::size_t kHalf = 2 * kLane;
constexpr std::size_t kHalfBytes = kHalf * kStretch * 2;
constexpr std::size_t kStretchGroups = kStretch / 32;  // at most
constexpr std::size_t kRows = 6;  // met together: with two vectors of outputs, 12 sums in registers

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Where the parts of a block of prepared activations lie, in bytes from its start.
struct Block {
    explicit Block(const AffineMatrix& m)
        : group(static_cast<std::size_t>(m.group)),
          groups(m.in / group),
          scales(kRows * 2 * m.in),
          sums(scales + kRows * 4 * groups),
          size(round_up(sums + kRows * 4 * groups, 64)) {}

    // That input of row t; the line of its next 32 inputs is kLines further on.
    static std::size_t at(std::size_t t, std::size_t input) {
        return input / 32 * kLines + t * 64 + input % 32 * 2;
    }

    static constexpr std::size_t kLines = kRows * 64;
    std::size_t group, groups, scales, sums, size;
};

// Weights of a stretch, unpacked.
struct alignas(64) Panel {
    Byte codes[2 * kHalfBytes];
    float scales[2][kStretchGroups][kHalf];
    float biases[2][kStretchGroups][kHalf];
};

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

void store(void* at, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(at), v); }

// 8 numbers as float32, zeros beyond `count`; nothing past them is touched.
__m256 load8(Scalar type, const Byte* from, std::size_t count) {
    Byte room[32] = {};
    if (count < kLane) {
        std::memcpy(room, from, count * size_of(type));
        from = room;
    }
    if (type == Scalar::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (type == Scalar::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// The largest magnitude of a group, or NaN where one of them is infinite or NaN.
float top_of(const float* x, std::size_t count) {
    const __m256 sign = _mm256_set1_ps(-0.0F);
    __m256 largest = _mm256_setzero_ps(), finite = _mm256_cmp_ps(sign, sign, _CMP_EQ_OQ);
    for (std::size_t i = 0; i < count; i += 8) {
        const __m256 magnitude = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i));
        finite =
            _mm256_and_ps(finite, _mm256_cmp_ps(magnitude, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
        largest = _mm256_max_ps(largest, magnitude);
    }
    if (_mm256_movemask_ps(finite) != 0xff) return __builtin_nanf("");
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

std::int32_t sum_of(__m256i v) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

// 16 activations from the codes' own order to that of a panel.
__m256i arranged(__m256i v, int bits) {
    if (bits == 2) {
        const __m256i other = _mm256_permute4x64_epi64(v, 0x4e);
        const __m256i low = _mm256_unpacklo_epi16(v, other), high = _mm256_unpackhi_epi16(v, other);
        return _mm256_permute2x128_si256(low, high, 0x20);
    }
    if (bits == 4)
        return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                          0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
    if (bits == 8)
        return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                          0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)));
    return v;
}

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) {
    return round_up(rows, kRows) / kRows * Block(m).size;
}

void prepare(const float* x, const AffineMatrix& m, std::size_t t, void* into) {
    const Block block(m);
    Byte* base = static_cast<Byte*>(into) + t / kRows * block.size;
    t %= kRows;
    float* scales = reinterpret_cast<float*>(base + block.scales) + t;
    float* sums = reinterpret_cast<float*>(base + block.sums) + t;
    for (std::size_t g = 0; g < block.groups; ++g, scales += kRows, sums += kRows) {
        const float top = top_of(x + g * block.group, block.group);
        const __m256 inverse = _mm256_set1_ps(top >= kPanelLeast ? kPanelTop / top : 0);
        const __m256i keep = _mm256_set1_epi32(top == top ? -1 : 0);
        const auto fixed = [&](std::size_t i) {
            const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
            return _mm256_and_si256(_mm256_cvtps_epi32(scaled), keep);
        };
        __m256i sum = _mm256_setzero_si256();
        for (std::size_t i = g * block.group; i < (g + 1) * block.group; i += 16) {
            const __m256i first = fixed(i), second = fixed(i + 8);
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(first, second));
            const __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
            store(base + Block::at(t, i), arranged(v, m.bits));
        }
        *scales = top / kPanelTop;
        *sums = static_cast<float>(sum_of(sum)) * *scales;
    }
}

// Words [i][j] become [j][i].
inline void transpose(__m256i (&v)[kLane]) {
    __m256i a[kLane];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        a[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) v[i] = a[i];
}

// At 3, 5 and 6 bits: 32 codes are `bits` words, and a code lies in two bytes, which go to an
// element of 16 bits and are shifted to its highest bits.
template <int bits>
struct Spread {
    struct alignas(32) Places {
        constexpr Places() {
            for (unsigned i = 0; i < 32; ++i) {
                const unsigned v = i / 16, first = i / 8 * 8 * bits / 32,
                               bit = i * bits - 32 * first;
                for (unsigned w = 0; w < 4; ++w) words[v][i / 8 % 2 * 4 + w] = first + w;
                bytes[v][i % 16 * 2] = static_cast<Byte>(bit / 8);
                bytes[v][i % 16 * 2 + 1] = static_cast<Byte>(bit / 8 + 1);
                multipliers[v][i % 16] = static_cast<std::uint16_t>(1U << (16 - bits - bit % 8));
            }
            for (unsigned w = 0; w < bits; ++w) present[w] = ~0U;
        }
        std::uint32_t present[8] = {}, words[2][8] = {};
        Byte bytes[2][32] = {};
        std::uint16_t multipliers[2][16] = {};
    };
    static constexpr Places kPlaces{};

    // Codes 16 v to 16 v + 15 of those.
    static __m256i codes(const Byte* from, std::size_t v) {
        const __m256i loaded =
            _mm256_maskload_epi32(reinterpret_cast<const int*>(from), load(kPlaces.present));
        const __m256i words = _mm256_permutevar8x32_epi32(loaded, load(kPlaces.words[v]));
        const __m256i both = _mm256_shuffle_epi8(words, load(kPlaces.bytes[v]));
        return _mm256_srli_epi16(_mm256_mullo_epi16(both, load(kPlaces.multipliers[v])), 16 - bits);
    }
};

// Inputs [first, first + count) of 8 weight rows to one vector of each line. Rows beyond the last
// stand for it. Asks for the next panel's bytes on the way.
template <int bits>
void unpack_rows(const AffineMatrix& m, std::size_t o, std::size_t first, std::size_t count,
                 Byte* into) {
    constexpr bool whole = bits == 2 || bits == 4 || bits == 8;  // codes cross no word
    constexpr std::size_t kStep = whole ? 256 / bits : 16;       // codes of a vector
    const std::size_t stride = m.in / 8 * bits;
    const Byte* weight = static_cast<const Byte*>(m.weight) + first / 8 * bits;
    const Byte* rows[kLane];
    for (std::size_t r = 0; r < kLane; ++r) rows[r] = weight + least(o + r, m.out - 1) * stride;
    for (std::size_t done = 0; done < count; done += kStep) {
        const std::size_t words = least(count - done, kStep) / (kStep / 8);
        const __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(words)),
                                                   _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        __m256i v[kLane];
        for (std::size_t r = 0; r < kLane; ++r) {
            const Byte* from = rows[r] + done / 32 * 32 / 8 * bits;
            if constexpr (whole)
                v[r] = _mm256_maskload_epi32(reinterpret_cast<const int*>(from), present);
            else
                v[r] = Spread<bits>::codes(from, done / 16 % 2);
            _mm_prefetch(reinterpret_cast<const char*>(from + kPanelOutputs * stride), _MM_HINT_T1);
        }
        transpose(v);
        for (std::size_t w = 0; w < words; ++w) {
            if constexpr (!whole) {
                store(into, v[w]);
                into += 64;
            } else {
                const __m256i mask = _mm256_set1_epi32(((1 << bits) - 1) * 0x10001);
                for (int s = 0; s < 16; s += bits, into += 64)
                    store(into, _mm256_and_si256(_mm256_srli_epi32(v[w], s), mask));
            }
        }
    }
}

// Of 8 weight rows, the scales or biases of `count` groups; `into` has a line for each group.
void unpack_scales(const AffineMatrix& m, const void* array, std::size_t o, std::size_t first,
                   std::size_t count, float* into) {
    const std::size_t groups = m.in / static_cast<std::size_t>(m.group), step = size_of(m.scalar);
    for (std::size_t g = first; g < first + count; g += kLane) {
        __m256i v[kLane];
        for (std::size_t r = 0; r < kLane; ++r)
            v[r] = _mm256_castps_si256(load8(
                m.scalar,
                static_cast<const Byte*>(array) + (least(o + r, m.out - 1) * groups + g) * step,
                groups - g));
        transpose(v);
        for (std::size_t i = 0; i < least(first + count - g, kLane); ++i, into += kHalf)
            store(into, v[i]);
    }
}

void unpack(const AffineMatrix& m, std::size_t o, std::size_t end, std::size_t first,
            std::size_t count, Panel& panel) {
    const std::size_t group = static_cast<std::size_t>(m.group);
    for (std::size_t i = 0; i < kPanelOutputs && o + i < end; i += kLane) {
        const std::size_t half = i / kHalf, row = o + i, lane = i % kHalf;
        Byte* into = panel.codes + half * kHalfBytes + lane * 4;
        switch (m.bits) {
            case 2: unpack_rows<2>(m, row, first, count, into); break;
            case 3: unpack_rows<3>(m, row, first, count, into); break;
            case 4: unpack_rows<4>(m, row, first, count, into); break;
            case 5: unpack_rows<5>(m, row, first, count, into); break;
            case 6: unpack_rows<6>(m, row, first, count, into); break;
            default: unpack_rows<8>(m, row, first, count, into); break;
        }
        unpack_scales(m, m.scales, row, first / group, count / group, panel.scales[half][0] + lane);
        unpack_scales(m, m.biases, row, first / group, count / group, panel.biases[half][0] + lane);
    }
}

// Half a panel as a tile takes it, and where the outputs of one row go.
struct Half {
    const Byte* codes;
    const float (*scales)[kHalf];
    const float (*biases)[kHalf];
    std::size_t lanes;  // of 16 outputs, those that there are
};

__m256i first_lanes(std::size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// sum + the products of two codes each and two activations, at this place among others: GCC would
// load the activations of all rows first, and then lack registers for the sums.
template <bool vnni>
inline __m256i added(__m256i sum, __m256i codes, __m256i v) {
    if constexpr (vnni) {
        asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(v));
    } else {
        const __m256i products = _mm256_madd_epi16(codes, v);
        asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
    }
    return sum;
}

// The first kCount rows of a block with half a panel, over all of its groups; y points to the
// first output of the first row.
template <int kCount, bool vnni>
void tile(const Byte* base, const Block& block, std::size_t first, std::size_t count,
          const Half& half, float* y, std::size_t out) {
    const std::size_t groups = count / block.group, from = first / block.group;
    const float* scales = reinterpret_cast<const float*>(base + block.scales) + from * kRows;
    const float* row_sums = reinterpret_cast<const float*>(base + block.sums) + from * kRows;
    const __m256i lanes[2] = {first_lanes(half.lanes),
                              first_lanes(half.lanes > kLane ? half.lanes - kLane : 0)};
    __m256 totals[kCount][2];
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            totals[t][h] = first == 0 ? _mm256_setzero_ps()
                                      : _mm256_maskload_ps(y + t * out + h * kLane, lanes[h]);
    const Byte* codes = half.codes;
    const Byte* x = base + Block::at(0, first);
    for (std::size_t g = 0; g < groups; ++g, scales += kRows, row_sums += kRows) {
        __m256i sums[kCount][2];
        for (int t = 0; t < kCount; ++t) sums[t][0] = sums[t][1] = _mm256_setzero_si256();
        for (std::size_t i = 0; i < block.group; i += 32, x += Block::kLines - 64)
            for (std::size_t pair = 0; pair < 16; ++pair, codes += 64, x += 4) {
                const __m256i w0 = load(codes), w1 = load(codes + 32);
                for (int t = 0; t < kCount; ++t) {
                    int two;
                    std::memcpy(&two, x + 64 * t, 4);
                    const __m256i v = _mm256_set1_epi32(two);
                    sums[t][0] = added<vnni>(sums[t][0], w0, v);
                    sums[t][1] = added<vnni>(sums[t][1], w1, v);
                }
            }
        for (int h = 0; h < 2; ++h) {
            const __m256 scale = _mm256_load_ps(half.scales[g] + h * kLane);
            const __m256 bias = _mm256_load_ps(half.biases[g] + h * kLane);
            for (int t = 0; t < kCount; ++t) {
                const __m256 unit = _mm256_mul_ps(_mm256_set1_ps(scales[t]), scale);
                totals[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[t][h]), unit, totals[t][h]);
                totals[t][h] = _mm256_fmadd_ps(bias, _mm256_set1_ps(row_sums[t]), totals[t][h]);
            }
        }
    }
    for (int t = 0; t < kCount; ++t)
        for (int h = 0; h < 2; ++h)
            _mm256_maskstore_ps(y + t * out + h * kLane, lanes[h], totals[t][h]);
}

using Tile = void (*)(const Byte* base, const Block&, std::size_t first, std::size_t count,
                      const Half&, float* y, std::size_t out);

template <bool vnni>
constexpr Tile kTiles[kRows] = {tile<1, vnni>, tile<2, vnni>, tile<3, vnni>,
                                tile<4, vnni>, tile<5, vnni>, tile<6, vnni>};

std::size_t scratch_bytes(const AffineMatrix&) { return sizeof(Panel); }

template <bool vnni>
void affine(const void* prepared, std::size_t rows, const AffineMatrix& m, std::size_t begin,
            std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Panel& panel = *static_cast<Panel*>(scratch);
    for (std::size_t o = begin; o < end; o += kPanelOutputs)
        for (std::size_t first = 0; first < m.in; first += kStretch) {
            const std::size_t count = least(m.in - first, kStretch);
            unpack(m, o, end, first, count, panel);
            for (std::size_t h = 0; h < 2 && o + h * kHalf < end; ++h) {
                const std::size_t at = o + h * kHalf;
                const Half half{panel.codes + h * kHalfBytes, panel.scales[h], panel.biases[h],
                                least(end - at, kHalf)};
                for (std::size_t t = 0; t < rows; t += kRows)
                    kTiles<vnni>[least(rows - t, kRows) - 1](
                        static_cast<const Byte*>(prepared) + t / kRows* block.size, block, first,
                        count, half, y + t* m.out + at, m.out);
            }
        }
}

}  // namespace

const PanelKernels panels_avx2{prepared_bytes, prepare, scratch_bytes, affine<false>};
const PanelKernels panels_avxvnni{prepared_bytes, prepare, scratch_bytes, affine<true>};

}  // namespace flashmoe
