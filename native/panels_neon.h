// Activations in fixed point and weights in panels, as NEON's products of many rows take them.
//
// Included by the files of those alone, and in their unnamed namespaces, since a file with flags of
// its own may define no other function with external linkage (dispatch.h).
//
// v = 256 * high + low, each byte in [-128, 127]. Codes are signed bytes too: at 8 bits they are
// taken from 128, and 128 * sum v is what the sums of such a group start from.
//
// Activations lie in blocks of kRows rows: for every 8 inputs, of each two rows the high bytes of
// the one, of the other, and the low bytes likewise; then a scale a group for each row, a sum, and
// a start. A panel: the codes of kOutputs weight rows, for every 8 inputs four vectors, which hold
// four rows with four codes each (sdot: rows 0 to 3, rows 4 to 7, then the next codes) or two with
// eight (smmla); then scales and biases, kOutputs for each group.

#pragma once

#include <arm_neon.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "generic.h"
#include "panels.h"

namespace flashmoe {
namespace {

using Byte = unsigned char;

constexpr std::size_t kStretch = 2048;  // inputs of a panel
constexpr std::size_t kLane = 4;        // weight rows in a vector
constexpr std::size_t kOutputs = 8;     // met together
constexpr std::size_t kRows = 4;  // likewise: with two vectors of outputs, 16 sums in registers

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }
constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Where the parts of a block of prepared activations lie, in bytes from its start.
struct Block {
    explicit Block(const AffineMatrix& m)
        : group(static_cast<std::size_t>(m.group)),
          groups(m.in / group),
          scales(kRows * 2 * m.in),
          sums(scales + kRows * 4 * groups),
          starts(sums + kRows * 4 * groups),
          size(starts + kRows * 4 * groups) {}

    static constexpr std::size_t kLines = kRows * 16;  // for 8 inputs
    std::size_t group, groups, scales, sums, starts, size;
};

// Weights of a stretch that are met together, and their codes row by row: each row has room behind
// it that the next one overwrites.
struct alignas(64) Panel {
    Byte codes[kOutputs * kStretch];
    float scales[kStretch / 32][kOutputs];
    float biases[kStretch / 32][kOutputs];
    Byte rows[kOutputs * kStretch + kStretch / 2];
};
static_assert(sizeof(Panel) <= kPanelScratch);

// 4 numbers as float32, zeros beyond `count`; nothing past them is touched.
float32x4_t load4(Scalar type, const Byte* from, std::size_t count) {
    Byte room[16] = {};
    if (count < kLane) {
        std::memcpy(room, from, count * size_of(type));
        from = room;
    }
    if (type == Scalar::f32) return vreinterpretq_f32_u8(vld1q_u8(from));
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8(from));
    if (type == Scalar::f16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

// The largest magnitude of a group, or NaN where one of them is infinite or NaN.
float top_of(const float* x, std::size_t count) {
    float32x4_t largest = vdupq_n_f32(0);
    uint32x4_t finite = vdupq_n_u32(~0U);
    for (std::size_t i = 0; i < count; i += 4) {
        const float32x4_t magnitude = vabsq_f32(vld1q_f32(x + i));
        finite = vandq_u32(finite, vcleq_f32(magnitude, vdupq_n_f32(FLT_MAX)));
        largest = vmaxq_f32(largest, magnitude);
    }
    return vminvq_u32(finite) == 0 ? __builtin_nanf("") : vmaxvq_f32(largest);
}

// The low byte of each of 16 integers.
int8x16_t narrow(const int32x4_t (&v)[4]) {
    const auto words = [](int32x4_t a) { return vreinterpretq_s16_s32(a); };
    const int16x8_t low = vuzp1q_s16(words(v[0]), words(v[1]));
    const int16x8_t high = vuzp1q_s16(words(v[2]), words(v[3]));
    return vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
}

// 16 bytes of a row, in the two lines that they belong to.
void store(std::int8_t* at, int8x16_t bytes) {
    vst1_s8(at, vget_low_s8(bytes));
    vst1_s8(at + Block::kLines, vget_high_s8(bytes));
}

std::size_t prepared_bytes(std::size_t rows, const AffineMatrix& m) {
    return round_up(rows, kRows) / kRows * Block(m).size;
}

void prepare(const float* x, const AffineMatrix& m, std::size_t t, void* into) {
    const Block block(m);
    Byte* base = static_cast<Byte*>(into) + t / kRows * block.size;
    t %= kRows;
    auto* at = reinterpret_cast<std::int8_t*>(base + t / 2 * 32 + t % 2 * 8);
    auto* scales = reinterpret_cast<float*>(base + block.scales) + t;
    auto* sums = reinterpret_cast<float*>(base + block.sums) + t;
    auto* starts = reinterpret_cast<std::int32_t*>(base + block.starts) + t;
    for (std::size_t g = 0; g < block.groups; ++g) {
        const float top = top_of(x, block.group);
        const float inverse = top >= kPanelLeast ? kPanelTop / top : 0;
        const int32x4_t keep = vdupq_n_s32(top == top ? -1 : 0);
        int32x4_t sum = vdupq_n_s32(0);
        for (std::size_t i = 0; i < block.group; i += 16, x += 16, at += 2 * Block::kLines) {
            int32x4_t v[4];
            for (std::size_t j = 0; j < 4; ++j) {
                v[j] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * j), inverse));
                v[j] = vandq_s32(v[j], keep);
                sum = vaddq_s32(sum, v[j]);
            }
            store(at + 16, narrow(v));
            for (std::size_t j = 0; j < 4; ++j)
                v[j] = vshrq_n_s32(vaddq_s32(v[j], vdupq_n_s32(128)), 8);
            store(at, narrow(v));
        }
        const std::int32_t whole = vaddvq_s32(sum);
        scales[g * kRows] = top / kPanelTop;
        sums[g * kRows] = static_cast<float>(whole) * scales[g * kRows];
        starts[g * kRows] = m.bits == 8 ? 128 * whole : 0;
    }
}

// Words [i][j] become [j][i].
inline void transpose(uint32x4_t (&v)[4]) {
    const auto pairs = [](uint32x4_t a) { return vreinterpretq_u64_u32(a); };
    const uint32x4_t a = vtrn1q_u32(v[0], v[1]), b = vtrn2q_u32(v[0], v[1]);
    const uint32x4_t c = vtrn1q_u32(v[2], v[3]), d = vtrn2q_u32(v[2], v[3]);
    v[0] = vreinterpretq_u32_u64(vtrn1q_u64(pairs(a), pairs(c)));
    v[1] = vreinterpretq_u32_u64(vtrn1q_u64(pairs(b), pairs(d)));
    v[2] = vreinterpretq_u32_u64(vtrn2q_u64(pairs(a), pairs(c)));
    v[3] = vreinterpretq_u32_u64(vtrn2q_u64(pairs(b), pairs(d)));
}

// Of 4 weight rows, the scales or biases of `count` groups.
void unpack_scales(const AffineMatrix& m, const void* array, std::size_t o, std::size_t first,
                   std::size_t count, float* into) {
    const std::size_t groups = m.in / static_cast<std::size_t>(m.group), step = size_of(m.scalar);
    for (std::size_t g = first; g < first + count; g += kLane) {
        uint32x4_t v[kLane];
        for (std::size_t r = 0; r < kLane; ++r) {
            const Byte* from =
                static_cast<const Byte*>(array) + (least(o + r, m.out - 1) * groups + g) * step;
            v[r] = vreinterpretq_u32_f32(load4(m.scalar, from, groups - g));
        }
        transpose(v);
        for (std::size_t i = 0; i < least(first + count - g, kLane); ++i, into += kOutputs)
            vst1q_f32(into, vreinterpretq_f32_u32(v[i]));
    }
}

// 16 codes of 4 weight rows, the first of them at `from`, to every other two vectors (sdot) or to
// two of every four (smmla).
template <bool smmla>
void place(const Byte* from, std::size_t stride, uint8x16_t sign, Byte* into) {
    uint32x4_t v[kLane];
    for (std::size_t r = 0; r < kLane; ++r)
        v[r] = vreinterpretq_u32_u8(veorq_u8(vld1q_u8(from + r * stride), sign));
    if constexpr (smmla) {
        const auto pairs = [](uint32x4_t a) { return vreinterpretq_u64_u32(a); };
        const auto write = [&](std::size_t at, uint64x2_t a) {
            vst1q_u8(into + at, vreinterpretq_u8_u64(a));
        };
        write(0, vtrn1q_u64(pairs(v[0]), pairs(v[1])));
        write(16, vtrn1q_u64(pairs(v[2]), pairs(v[3])));
        write(64, vtrn2q_u64(pairs(v[0]), pairs(v[1])));
        write(80, vtrn2q_u64(pairs(v[2]), pairs(v[3])));
    } else {
        transpose(v);
        for (std::size_t w = 0; w < 4; ++w) vst1q_u8(into + 32 * w, vreinterpretq_u8_u32(v[w]));
    }
}

// Inputs [first, first + count) of weight rows o to o + kOutputs - 1; those beyond the last stand
// for it.
template <bool smmla>
void unpack(const AffineMatrix& m, std::size_t o, std::size_t first, std::size_t count,
            Panel& panel) {
    const std::size_t group = static_cast<std::size_t>(m.group);
    const std::size_t bits = static_cast<std::size_t>(m.bits);
    const uint8x16_t sign = vdupq_n_u8(m.bits == 8 ? 0x80 : 0);
    AffineMatrix part = m;  // a row alone, from `first` on
    part.in = count;
    for (std::size_t r = 0; r < kOutputs; ++r) {
        part.weight = static_cast<const Byte*>(m.weight) +
                      (least(o + r, m.out - 1) * m.in + first) / 8 * bits;
        generic::unpack(part, 0, panel.rows + r * count);
    }
    for (std::size_t lane = 0; lane < kOutputs; lane += kLane) {
        const Byte* rows = panel.rows + lane * count;
        Byte* into = panel.codes + lane * (smmla ? 8 : 4);
        for (std::size_t i = 0; i < count; i += 16)
            place<smmla>(rows + i, count, sign, into + kOutputs * i);
        unpack_scales(m, m.scales, o + lane, first / group, count / group, panel.scales[0] + lane);
        unpack_scales(m, m.biases, o + lane, first / group, count / group, panel.biases[0] + lane);
    }
}

// Inputs [first, first + count), for which a panel has been unpacked.
struct Stretch {
    std::size_t first, count;
};

// A group, as its integer sums join the others: the block's from + g, and the panel's g.
struct Group {
    Group(const Byte* base, const Block& block, const Panel& panel, std::size_t from, std::size_t g)
        : scales(reinterpret_cast<const float*>(base + block.scales) + (from + g) * kRows),
          sums(reinterpret_cast<const float*>(base + block.sums) + (from + g) * kRows),
          starts(reinterpret_cast<const std::int32_t*>(base + block.starts) + (from + g) * kRows),
          weight_scales(panel.scales[g]),
          weight_biases(panel.biases[g]) {}

    // The total of row t and outputs 4 h to 4 h + 3, with the sums of this group.
    float32x4_t added(float32x4_t total, int32x4_t high, int32x4_t low, std::size_t t,
                      std::size_t h) const {
        const int32x4_t whole = vaddq_s32(vshlq_n_s32(high, 8), low);
        const float32x4_t unit = vmulq_n_f32(vld1q_f32(weight_scales + 4 * h), scales[t]);
        total = vfmaq_f32(total, vcvtq_f32_s32(whole), unit);
        return vfmaq_n_f32(total, vld1q_f32(weight_biases + 4 * h), sums[t]);
    }

    const float *scales, *sums;
    const std::int32_t* starts;
    const float *weight_scales, *weight_biases;
};

// The outputs of a row so far, of which there are `lanes`.
void fetch(const float* y, float32x4_t (&totals)[2], std::size_t lanes) {
    float room[kOutputs] = {};
    std::memcpy(room, y, lanes * sizeof(float));
    totals[0] = vld1q_f32(room);
    totals[1] = vld1q_f32(room + kLane);
}

void store(float* y, const float32x4_t (&totals)[2], std::size_t lanes) {
    float room[kOutputs];
    vst1q_f32(room, totals[0]);
    vst1q_f32(room + kLane, totals[1]);
    std::memcpy(y, room, lanes * sizeof(float));
}

// The first so many rows of a block with a panel; y points to the first output of the first row,
// of which there are `lanes`.
using Tile = void (*)(const Byte* base, const Block&, const Panel&, const Stretch&,
                      std::size_t lanes, float* y, std::size_t out);

std::size_t scratch_bytes(const AffineMatrix&) { return sizeof(Panel); }

template <bool smmla>
void meet(const Tile (&tiles)[kRows], const void* prepared, std::size_t rows, const AffineMatrix& m,
          std::size_t begin, std::size_t end, float* y, void* scratch) {
    const Block block(m);
    Panel& panel = *static_cast<Panel*>(scratch);
    for (std::size_t o = begin; o < end; o += kOutputs)
        for (std::size_t first = 0; first < m.in; first += kStretch) {
            const Stretch stretch{first, least(m.in - first, kStretch)};
            unpack<smmla>(m, o, first, stretch.count, panel);
            for (std::size_t t = 0; t < rows; t += kRows)
                tiles[least(rows - t, kRows) - 1](
                    static_cast<const Byte*>(prepared) + t / kRows * block.size, block, panel,
                    stretch, least(end - o, kOutputs), y + t * m.out + o, m.out);
        }
}

}  // namespace
}  // namespace flashmoe
