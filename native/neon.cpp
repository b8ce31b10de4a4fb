// Products with NEON and its dot product (ARMv8.2's asimddp): integer arithmetic at float32's
// precision.
//
// As in avx512.cpp, the activations of a group become 23-bit fixed-point numbers under a power of
// two, split into three planes of signed bytes; sdot multiplies each with the codes, taken from
// the middle of their range. Every sum of a group is an exact int32, and is exact as float32 but
// for the last bits of the two lower planes together.
//
// A unit is 32 codes, two vectors of bytes: no group ends inside one, and no load passes its end.

#include <arm_neon.h>

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "dispatch.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kPlanes = 3;
constexpr std::size_t kUnit = 32;
constexpr std::size_t kAhead = 2048;      // bytes beyond the current load that are asked for
constexpr std::size_t kRowsTogether = 8;  // outputs whose weights stay in the cache for all rows

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Where the parts of one prepared activation row lie, in bytes from its start.
struct Layout {
    explicit Layout(const AffineMatrix& m)
        : groups(m.in / static_cast<std::size_t>(m.group)),
          scales(kPlanes * m.in),
          sums(scales + round_up(groups, 4) * 4),
          size(sums + round_up(groups, 4) * 4) {}
    std::size_t groups;
    std::size_t scales, sums, size;
};

float32x4_t widen(Scalar type, uint16x4_t half) {
    if (type == Scalar::f16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

float32x4_t load4(Scalar type, const Byte* from) {
    if (type == Scalar::f32) return vreinterpretq_f32_u8(vld1q_u8(from));
    return widen(type, vreinterpret_u16_u8(vld1_u8(from)));
}

// As load4, zeros beyond `count`; nothing past them is touched.
float32x4_t load4(Scalar type, const Byte* from, std::size_t count) {
    if (count >= 4) return load4(type, from);
    Byte room[16] = {};
    std::memcpy(room, from, count * size_of(type));
    return load4(type, room);
}

float power_of_two(std::uint32_t biased) {
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(biased << 23)), 0);
}

// The power of two under which a group's activations become integers below 2^22 in magnitude;
// NaN when one of them is infinite or NaN, so that the result is.
float fixed_point(const float* x, std::size_t count, float* inverse) {
    float32x4_t largest = vdupq_n_f32(0);
    uint32x4_t finite = vdupq_n_u32(~0U);
    for (std::size_t i = 0; i < count; i += 4) {
        const float32x4_t magnitude = vabsq_f32(vld1q_f32(x + i));
        finite = vandq_u32(finite, vcleq_f32(magnitude, vdupq_n_f32(FLT_MAX)));
        largest = vmaxq_f32(largest, magnitude);
    }
    *inverse = 0;
    if (vminvq_u32(finite) == 0)
        return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000)), 0);
    const std::uint32_t top = vmaxvq_u32(vreinterpretq_u32_f32(largest));
    // Below 2^-100 an activation is as good as zero, and the inverse would overflow.
    const std::uint32_t exponent = top >> 23 < 27 ? 27 : top >> 23;
    *inverse = power_of_two(127 + 21 - (exponent - 127));
    return power_of_two(127 + (exponent - 127) - 21);
}

// The low byte of each of 16 integers.
int8x16_t narrow(const int32x4_t v[4]) {
    const auto words = [](int32x4_t a) { return vreinterpretq_s16_s32(a); };
    const int16x8_t low = vuzp1q_s16(words(v[0]), words(v[1]));
    const int16x8_t high = vuzp1q_s16(words(v[2]), words(v[3]));
    return vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
}

// 16 integers into the three planes. Balanced digits: each is in [-128, 127], and
// high * 65536 + middle * 256 + low is the integer.
void split(int32x4_t v[4], std::int8_t* at, std::size_t plane) {
    for (std::size_t p = kPlanes; p-- > 0;) {
        vst1q_s8(at + p * plane, narrow(v));
        for (std::size_t i = 0; i < 4; ++i)
            v[i] = vshrq_n_s32(vaddq_s32(v[i], vdupq_n_s32(128)), 8);
    }
}

// One plane of a unit from the codes' own order to the order in which Codes unpacks them.
template <int bits>
void arrange(std::int8_t* unit) {
    if constexpr (bits == 2 || bits == 4) {
        const int8x16_t a = vld1q_s8(unit), b = vld1q_s8(unit + 16);
        const int8x16_t even = vuzp1q_s8(a, b), odd = vuzp2q_s8(a, b);
        vst1q_s8(unit, bits == 4 ? even : vuzp1q_s8(even, odd));
        vst1q_s8(unit + 16, bits == 4 ? odd : vuzp2q_s8(even, odd));
    }
}

void prepare_row(const float* x, const AffineMatrix& m, const Layout& layout, Byte* into) {
    const std::size_t group = static_cast<std::size_t>(m.group);
    auto* planes = reinterpret_cast<std::int8_t*>(into);
    auto* scales = reinterpret_cast<float*>(into + layout.scales);
    auto* sums = reinterpret_cast<float*>(into + layout.sums);
    const int32x4_t most = vdupq_n_s32((1 << 22) - 1);
    for (std::size_t g = 0; g < round_up(layout.groups, 4); ++g) scales[g] = sums[g] = 0;
    for (std::size_t g = 0; g < layout.groups; ++g) {
        float inverse;
        const float scale = fixed_point(x + g * group, group, &inverse);
        int32x4_t sum = vdupq_n_s32(0);
        for (std::size_t i = g * group; i < (g + 1) * group; i += 16) {
            int32x4_t v[4];
            for (std::size_t j = 0; j < 4; ++j) {
                v[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * j), inverse));
                v[j] = vmaxq_s32(vminq_s32(v[j], most), vnegq_s32(most));
                sum = vaddq_s32(sum, v[j]);
            }
            split(v, planes + i, m.in);
        }
        scales[g] = scale;
        sums[g] = scale * static_cast<float>(vaddvq_s32(sum));
    }
    for (std::size_t i = 0; i < kPlanes * m.in; i += kUnit) {
        if (m.bits == 2) arrange<2>(planes + i);
        if (m.bits == 4) arrange<4>(planes + i);
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

// The codes of one unit less the middle of their range, a byte each: 32 codes in their own order;
// at 4 bits the even ones, then the odd ones; at 2 bits 0, 4, 8, ..., then 1, 5, 9, ... and so on.
template <int bits>
struct Codes {
    static constexpr std::size_t kBytes = kUnit / 8 * bits;

    void load(const Byte* from) {
        const uint8x16_t mask = vdupq_n_u8((1U << bits) - 1);
        if constexpr (bits == 8) {
            center(vld1q_u8(from), vld1q_u8(from + 16));
        } else if constexpr (bits == 4) {
            const uint8x16_t pairs = vld1q_u8(from);
            center(vandq_u8(pairs, mask), vshrq_n_u8(pairs, 4));
        } else if constexpr (bits == 2) {
            const uint8x8_t half = vld1_u8(from);
            const uint8x16_t twice = vcombine_u8(half, half);
            const int8x16_t first = vcombine_s8(vdup_n_s8(0), vdup_n_s8(-2));
            const int8x16_t second = vcombine_s8(vdup_n_s8(-4), vdup_n_s8(-6));
            center(vandq_u8(vshlq_u8(twice, first), mask), vandq_u8(vshlq_u8(twice, second), mask));
        } else {
            center(spread(from, 0), spread(from, 1));
        }
    }

    int8x16_t vector[2];

private:
    void center(uint8x16_t first, uint8x16_t second) {
        const uint8x16_t middle = vdupq_n_u8(1U << (bits - 1));
        vector[0] = vreinterpretq_s8_u8(vsubq_u8(first, middle));
        vector[1] = vreinterpretq_s8_u8(vsubq_u8(second, middle));
    }

    // At 3, 5 and 6 bits, each pair of codes goes to a lane of 16 bits. The second vector is
    // loaded so that it ends where the unit does.
    static constexpr unsigned kLoad = bits == 3 ? 8 : 16;

    struct alignas(16) Places {
        explicit constexpr Places(unsigned vector) {
            for (unsigned pair = 0; pair < 8; ++pair) {
                const unsigned bit = 2 * bits * (8 * vector + pair) - 8 * first_byte(vector);
                bytes[2 * pair] = static_cast<Byte>(bit / 8);
                bytes[2 * pair + 1] = static_cast<Byte>(bit / 8 + 1);
                shifts[pair] = static_cast<std::int16_t>(-static_cast<int>(bit % 8));
            }
        }
        Byte bytes[16] = {};
        std::int16_t shifts[8] = {};
    };

    static constexpr unsigned first_byte(unsigned vector) { return vector * (kBytes - kLoad); }

    static uint8x16_t spread(const Byte* from, unsigned vector) {
        static constexpr Places places[2] = {Places(0), Places(1)};
        const Byte* at = from + first_byte(vector);
        const uint8x16_t loaded =
            kLoad == 16 ? vld1q_u8(at) : vcombine_u8(vld1_u8(at), vdup_n_u8(0));
        const uint8x16_t bytes = vqtbl1q_u8(loaded, vld1q_u8(places[vector].bytes));
        const uint16x8_t pair =
            vshlq_u16(vreinterpretq_u16_u8(bytes), vld1q_s16(places[vector].shifts));
        const uint16x8_t both = vbslq_u16(vdupq_n_u16(0x00ff), pair, vshlq_n_u16(pair, 8 - bits));
        return vandq_u8(vreinterpretq_u8_u16(both), vdupq_n_u8((1U << bits) - 1));
    }
};

// The products of one group's codes with one activation row, lane by lane, in its fixed point.
float32x4_t join(const int32x4_t sum[kPlanes]) {
    const int32x4_t lower = vaddq_s32(vshlq_n_s32(sum[1], 8), sum[2]);
    return vfmaq_n_f32(vcvtq_f32_s32(lower), vcvtq_f32_s32(sum[0]), 65536);
}

// One weight row with `kRows` activation rows. Whatever kRows is, each sum takes the same steps.
template <int bits, int kRows>
void affine_row(const Byte* prepared, const Layout& layout, const AffineMatrix& m, std::size_t o,
                float* y) {
    const std::size_t group = static_cast<std::size_t>(m.group), step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * (m.in / 8 * bits);
    const Byte* scales = static_cast<const Byte*>(m.scales) + o * layout.groups * step;
    const Byte* biases = static_cast<const Byte*>(m.biases) + o * layout.groups * step;
    float32x4_t products[kRows], offsets[kRows];
    for (int t = 0; t < kRows; ++t) products[t] = offsets[t] = vdupq_n_f32(0);

    for (std::size_t first = 0; first < layout.groups; first += 4) {
        const std::size_t count = least(layout.groups - first, 4);
        const float32x4_t scale = load4(m.scalar, scales + first * step, count);
        const float32x4_t bias = load4(m.scalar, biases + first * step, count);
        __builtin_prefetch(scales + first * step + kAhead / 8);
        __builtin_prefetch(biases + first * step + kAhead / 8);
        // The codes are taken from the middle of their range, so the bias moves there too.
        const float32x4_t middle = vfmaq_n_f32(bias, scale, 1 << (bits - 1));
        float unit[kRows][4];
        for (int t = 0; t < kRows; ++t) {
            const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size + first * 4;
            vst1q_f32(unit[t], vmulq_f32(scale, load4(Scalar::f32, row + layout.scales)));
            offsets[t] = vfmaq_f32(offsets[t], middle, load4(Scalar::f32, row + layout.sums));
        }
        for (std::size_t g = 0; g < count; ++g) {
            const std::size_t begin = (first + g) * group;
            int32x4_t sum[kRows][kPlanes];
            for (int t = 0; t < kRows; ++t)
                for (std::size_t plane = 0; plane < kPlanes; ++plane)
                    sum[t][plane] = vdupq_n_s32(0);
            for (std::size_t i = begin; i < begin + group; i += kUnit) {
                const Byte* at = weight + i / 8 * bits;
                __builtin_prefetch(at + kAhead);
                Codes<bits> codes;
                codes.load(at);
                for (int t = 0; t < kRows; ++t) {
                    const Byte* row = prepared + static_cast<std::size_t>(t) * layout.size + i;
                    for (std::size_t plane = 0; plane < kPlanes; ++plane) {
                        const auto* x = reinterpret_cast<const std::int8_t*>(row + plane * m.in);
                        sum[t][plane] = vdotq_s32(sum[t][plane], codes.vector[0], vld1q_s8(x));
                        sum[t][plane] = vdotq_s32(sum[t][plane], codes.vector[1], vld1q_s8(x + 16));
                    }
                }
            }
            for (int t = 0; t < kRows; ++t)
                products[t] = vfmaq_f32(products[t], join(sum[t]), vld1q_dup_f32(&unit[t][g]));
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] = vaddvq_f32(vaddq_f32(products[t], offsets[t]));
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

// Four vectors of sums, so that no multiply-add waits for the one before it.
template <int kRows>
void plain_row(const float* x, const PlainMatrix& m, std::size_t o, float* y) {
    const std::size_t step = size_of(m.scalar);
    const Byte* weight = static_cast<const Byte*>(m.weight) + o * m.in * step;
    float32x4_t sum[kRows][4];
    for (int t = 0; t < kRows; ++t)
        for (std::size_t v = 0; v < 4; ++v) sum[t][v] = vdupq_n_f32(0);
    for (std::size_t i = 0; i < m.in; i += 16) {
        __builtin_prefetch(weight + i * step + kAhead);
        for (std::size_t v = 0; v < 4 && i + 4 * v < m.in; ++v) {
            const std::size_t at = i + 4 * v, count = m.in - at;
            const float32x4_t w = load4(m.scalar, weight + at * step, count);
            for (int t = 0; t < kRows; ++t) {
                const float* from = x + static_cast<std::size_t>(t) * m.in + at;
                const auto* row = reinterpret_cast<const Byte*>(from);
                sum[t][v] = vfmaq_f32(sum[t][v], w, load4(Scalar::f32, row, count));
            }
        }
    }
    for (int t = 0; t < kRows; ++t)
        y[static_cast<std::size_t>(t) * m.out + o] =
            vaddvq_f32(vaddq_f32(vaddq_f32(sum[t][0], sum[t][1]), vaddq_f32(sum[t][2], sum[t][3])));
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

const RowKernels neon_kernels{prepared_bytes, prepare, affine, plain};

}  // namespace flashmoe
