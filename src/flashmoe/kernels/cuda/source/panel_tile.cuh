// A tile of a product of many rows: 128 outputs of an affine matrix by 64 rows of activations.
//
// Owns the way of both through shared memory, and the order of the float sums: group after group,
// for each output as native/panels.h says. Blocks of 256 threads, eight warps of 32 outputs by 32
// rows. While a step of 64 inputs, or one group of 128, is multiplied, the next one's activations
// are copied in the background and its packed codes wait in registers.

#pragma once

#include "panel.cuh"

constexpr int kTileOutputs = 128, kTileRows = 64, kTileThreads = 256;

// An integer beside the bits of a float, which so is the constant plus the integer: from -2^22 to
// 2^22, or from 0 to 2^23. A conversion is one subtraction, and the constant the sum's own start.
constexpr int kSigned = 0x4B400000, kUnsigned = 0x4B000000;
constexpr float kSignedFloat = 0x1.8p23F, kUnsignedFloat = 0x1p23F;

// What a step takes, as it lies in shared memory.
template <int group>
struct Step {
    static constexpr int kBlocks = group == 128 ? 2 : 1, kGroups = group == 32 ? 2 : 1;
    alignas(16) uint4 weights[kBlocks][kTileOutputs / 16][2][32];  // a lane's fragment of a product
    alignas(16) uint8_t rows[kBlocks][2][kTileRows][64];
    alignas(16) float2 factors[kGroups][kTileOutputs];  // scale and bias
    alignas(16) float2 scales[kGroups][kTileRows];      // scale and sum
};

// Two of them, as panels.py says.
static_assert(2 * sizeof(Step<32>) == 38912 && 2 * sizeof(Step<64>) == 35840 &&
              2 * sizeof(Step<128>) == 68608);

// A thread's share of the next step's weights: 32 codes a block of 64 of its output, scale and bias
// of their group.
template <int group>
struct Share {
    uint32_t words[Step<group>::kBlocks][8];
    uint32_t scale, bias;  // floats come of them when they have arrived
};

// Where a thread's shares come from: codes, scales and biases of its output.
struct Origin {
    const uint8_t *codes, *scales, *biases;
    int bits, type, groups;
};

template <int group>
DEVICE Origin origin(const Matrix& m, int output) {
    const int groups = m.columns / group, half = static_cast<int>(threadIdx.x) % 2;
    const int64_t at = int64_t{output} * groups * (m.type == kF32 ? 4 : 2);
    const int64_t codes = output * (int64_t{m.columns} / 32 * m.bits * 4) + 4 * m.bits * half;
    return {m.weight + codes, m.scales + at, m.biases + at, m.bits, m.type, groups};
}

template <int group>
DEVICE void copy_rows(Step<group>& step, const Planes& x, int first_block, int groups, int row) {
    const int thread = afresh(static_cast<int>(threadIdx.x)), piece = thread & 3, at = thread >> 2;
#pragma unroll
    for (int b = 0; b < Step<group>::kBlocks; ++b)
#pragma unroll
        for (int plane = 0; plane < 2; ++plane)
            copy_async(&step.rows[b][plane][at][16 * piece],
                       x.row(first_block + b, plane, row) + 16 * piece);
    const int scale = 64 * first_block / group + piece;
    if (piece < Step<group>::kGroups && scale < groups)
        copy_async_8(&step.scales[piece][at], x.scales(scale) + row);
    copies_committed();
}

template <int group>
DEVICE void take_share(Share<group>& share, const Origin& from, int first_block) {
    constexpr int kBlocks = Step<group>::kBlocks, kGroups = Step<group>::kGroups;
    const int half = static_cast<int>(threadIdx.x) % 2;
    const int first_group = 64 * first_block / group;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
        if (group > 32 || first_group + half < from.groups)
            load_packed(from.bits, from.codes, 2 * (first_block + b), share.words[b]);
    const int mine = first_group + (kGroups == 2 ? half : 0);
    if (mine < from.groups && (kGroups == 2 || half == 0))
        share.scale = load_bits(from.scales, mine, from.type),
        share.bias = load_bits(from.biases, mine, from.type);
}

// Output 8 h + g of 16 is word h and word 2 + h of lanes 4 g to 4 g + 3; of their order the lowest
// two bits are turned by g / 2, so that the threads of a warp write to different banks.
template <int group>
DEVICE void put_share(Step<group>& step, const Share<group>& share, int bits, int type) {
    constexpr int kGroups = Step<group>::kGroups;
    const int thread = afresh(static_cast<int>(threadIdx.x));
    const int half = thread & 1, output = thread >> 1, g = output & 7, h = output >> 3 & 1;
#pragma unroll
    for (int b = 0; b < Step<group>::kBlocks; ++b) {
        uint32_t bytes[8];
        spread_codes(bits, share.words[b], bytes);
        auto* to = reinterpret_cast<uint32_t*>(step.weights[b][output >> 4][half]) + h;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            uint32_t* at = to + 4 * (4 * g + (j ^ g >> 1));
            at[2 * half] = half ? bytes[2 * j + 1] : bytes[2 * j];
            at[2 - 2 * half] = half ? bytes[2 * j] : bytes[2 * j + 1];
        }
    }
    if (kGroups == 2 || half == 0)
        step.factors[kGroups == 2 ? half : 0][output] = {bits_to_float(share.scale, type),
                                                         bits_to_float(share.bias, type)};
}

// Two words a product of 32, of all products of a step, of a row of 64 bytes a block.
template <int products>
DEVICE void take_row(const uint8_t* row, int stride, int slot, uint32_t (&words)[products][2]) {
#pragma unroll
    for (int b = 0; b < products / 2; ++b) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + b * stride + 16 * slot);
        words[2 * b][0] = v.x, words[2 * b][1] = v.y;
        words[2 * b + 1][0] = v.z, words[2 * b + 1][1] = v.w;
    }
}

// One group of 16 outputs by 8 rows. `factors` of outputs lane / 4 and 8 further; x has scale and
// sum of rows lane % 4 * 2 and the next.
template <int first, int count, int products>
DEVICE void add_group(const uint32_t (&weights)[products][4], const uint32_t (&high)[products][2],
                      const uint32_t (&low)[products][2], const float2 (&factors)[2], float4 x,
                      float (&total)[4]) {
    // Sums of 64 codes and low bytes are below 2^22, of 128 below 2^23.
    constexpr bool wide = count > 2;
    constexpr int below = wide ? kUnsigned : kSigned;
    constexpr float below_float = wide ? kUnsignedFloat : kSignedFloat;
    constexpr int from[4] = {kSigned, kSigned, kSigned, kSigned};
    constexpr int from_below[4] = {below, below, below, below};
    int upper[4], lower[4];
    multiply_us(upper, weights[first], high[first], from);
    multiply_uu(lower, weights[first], low[first], from_below);
#pragma unroll
    for (int p = first + 1; p < first + count; ++p) {
        multiply_us(upper, weights[p], high[p]);
        multiply_uu(lower, weights[p], low[p]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 w = factors[i / 2];
        const float scale = i % 2 ? x.z : x.x, sum = i % 2 ? x.w : x.y;
        // 256 * upper + lower, rounded once, as an integer becomes a float.
        const float whole = fmaf(__int_as_float(upper[i]) - kSignedFloat, 256.0F,
                                 __int_as_float(lower[i]) - below_float);
        total[i] = fmaf(whole, scale * w.x, total[i]);
        total[i] = fmaf(w.y, sum, total[i]);
    }
}

// A warp's 32 outputs by 32 rows of a step; `groups` are left, this one's included.
template <int group>
DEVICE void multiply_step(const Step<group>& step, int groups, float (&total)[2][4][4]) {
    constexpr int kProducts = 2 * Step<group>::kBlocks, kGroups = Step<group>::kGroups;
    constexpr int kEach = kProducts / kGroups;
    const int thread = afresh(static_cast<int>(threadIdx.x)), lane = thread & 31,
              warp = thread >> 5;
    const int slot = lane & 3, output = (warp >> 1) * 32 + (lane >> 2), row = (warp & 1) * 32;
    uint32_t weights[2][kProducts][4];
    float2 factors[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int p = 0; p < kProducts; ++p) {
            const uint4 v = step.weights[p / 2][(warp >> 1) * 2 + m][p % 2][lane ^ lane >> 3];
            weights[m][p][0] = v.x, weights[m][p][1] = v.y;
            weights[m][p][2] = v.z, weights[m][p][3] = v.w;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) factors[m][h] = step.factors[0][output + 16 * m + 8 * h];
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        uint32_t high[kProducts][2], low[kProducts][2];
        const int at = row + 8 * n + (lane >> 2);
        take_row(step.rows[0][0][at], 2 * kTileRows * 64, slot, high);
        take_row(step.rows[0][1][at], 2 * kTileRows * 64, slot, low);
        const float2* scales = &step.scales[0][row + 8 * n + 2 * slot];
        const float4 x = *reinterpret_cast<const float4*>(scales);
#pragma unroll
        for (int m = 0; m < 2; ++m)
            add_group<0, kEach>(weights[m], high, low, factors[m], x, total[m][n]);
        if constexpr (kGroups == 2) {
            if (groups < 2) continue;
            const float4 next = *reinterpret_cast<const float4*>(scales + kTileRows);
            const float2* second = &step.factors[kGroups - 1][afresh(output)];  // registers are few
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const float2 both[2] = {second[16 * m], second[16 * m + 8]};
                add_group<kEach, kEach>(weights[m], high, low, both, next, total[m][n]);
            }
        }
    }
}

// Of 128 outputs from `first_output` on and `count` rows, at most 64, of which this thread's part
// to copy is `row`: the warp's sums. `shared` has two steps.
template <int group>
DEVICE void multiply_tile(const Matrix& m, int first_output, const Planes& x, int row,
                          unsigned char* shared, float (&total)[2][4][4]) {
    auto* steps = reinterpret_cast<Step<group>*>(shared);
    // Outputs that lie beyond are multiplied too, as the last one again, and so are rows.
    const int output = min(first_output + static_cast<int>(threadIdx.x) / 2, m.rows - 1);
    const Origin from = origin<group>(m, output);
    const int last = (from.groups + Step<group>::kGroups - 1) / Step<group>::kGroups;
    Share<group> share = {};
    copy_rows(steps[0], x, 0, from.groups, row);
    take_share(share, from, 0);
    put_share(steps[0], share, from.bits, from.type);
    for (int s = 0; s < last; ++s) {
        copies_awaited<0>();
        block_barrier();
        const int next = Step<group>::kBlocks * (s + 1);
        if (s + 1 < last) {
            copy_rows(steps[(s + 1) % 2], x, next, from.groups, row);
            take_share(share, from, next);
        }
        multiply_step(steps[s % 2], from.groups - s * Step<group>::kGroups, total);
        if (s + 1 < last) put_share(steps[(s + 1) % 2], share, from.bits, from.type);
    }
}

// The row of x that this thread copies, of those from `first_place` on: places, or chosen[place].
DEVICE int copied_row(const int* chosen, int first_place, int count) {
    const int place = first_place + min(static_cast<int>(threadIdx.x) / 4, count - 1);
    return chosen == nullptr ? place : chosen[place];
}

// The sums into rows of `outputs` of y, from `first_place` on, `residual` added, where there is
// one: it may be y itself.
DEVICE void put_tile(const float (&total)[2][4][4], int first_output, int outputs, int first_place,
                     int count, const float* residual, float* y) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int k = 0; k < 32; ++k) {
        const int t = k / 4 % 4, i = k % 4;
        const int o = first_output + warp / 2 * 32 + 16 * (k / 16) + 8 * (i / 2) + lane / 4;
        const int p = warp % 2 * 32 + 8 * t + lane % 4 * 2 + i % 2;
        if (o >= outputs || p >= count) continue;
        const int64_t at = int64_t{first_place + p} * outputs + o;
        const float value = total[k / 16][t][i];
        y[at] = residual == nullptr ? value : residual[at] + value;
    }
}
