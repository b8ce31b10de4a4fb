// Activations of many rows in fixed point, and codes of weights as bytes, as tensor cores take
// them.
//
// Owns what the numbers are, which is what native/panels.h says, bit for bit. Of each group of x,
// with the matrix's own group size: top = max |x|, scale = top / kPanelTop, v = round(x *
// (kPanelTop / top)), to even at ties. A group whose top is not finite has the scale NaN; one below
// kPanelLeast counts as zeros.
//
// v = 256 * high + low, high with a sign and low without, in two planes of bytes. Both planes and
// the codes stand in blocks of 64 inputs, in this order, so that a lane finds the fragments of two
// products of 32 in 16 bytes: byte 16 j + 8 c + i is input 32 c + 8 j + order(i), order being
// 0 2 4 6 1 3 5 7.
//
// In memory, for `rows` of activations: [block of 64][high, low][row][64], then float scale and sum
// of scale * v [group][row].

#pragma once

#include "matrix.cuh"

constexpr float kPanelTop = 127 * 256;
constexpr float kPanelLeast = 0x1p-100F;

struct Planes {
    uint8_t* bytes;
    int rows, columns, group;

    DEVICE uint8_t* row(int block, int plane, int which) const {
        return bytes + ((int64_t{2} * block + plane) * rows + which) * 64;
    }
    DEVICE float2* scales(int which) const {
        const int64_t blocks = (columns + 63) / 64;
        return reinterpret_cast<float2*>(bytes + blocks * 128 * rows) + int64_t{which} * rows;
    }
};

// Four values of one plane as a word.
DEVICE uint32_t packed(int a, int b, int c, int d) {
    return static_cast<uint32_t>(a & 255) | static_cast<uint32_t>(b & 255) << 8 |
           static_cast<uint32_t>(c & 255) << 16 | static_cast<uint32_t>(d & 255) << 24;
}

// 256 inputs of a row by a warp, eight a lane: x are those from `column` on. Past the columns
// nothing is written.
DEVICE void fix_row(const float (&x)[8], int row, int column, Planes into) {
    float top = 0.0F, odd = 0.0F;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const bool finite = isfinite(x[i]);
        odd = finite ? odd : 1.0F;
        top = fmaxf(top, finite ? fabsf(x[i]) : 0.0F);
    }
    for (int mask = into.group / 16; mask; mask >>= 1) {
        top = fmaxf(top, shuffle_xor(top, mask));
        odd = fmaxf(odd, shuffle_xor(odd, mask));
    }
    const bool finite = odd == 0.0F;
    const float inverse = finite && top >= kPanelLeast ? kPanelTop / top : 0.0F;
    int v[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] = finite ? __float2int_rn(x[i] * inverse) : 0;
        sum += v[i];
    }
    for (int mask = into.group / 16; mask; mask >>= 1) sum += shuffle_xor(sum, mask);
    if (column >= into.columns) return;
    const int block = column / 64, at = 16 * (column / 8 % 4) + 8 * (column / 32 % 2);
    *reinterpret_cast<uint2*>(into.row(block, 0, row) + at) = {
        packed(v[0] >> 8, v[2] >> 8, v[4] >> 8, v[6] >> 8),
        packed(v[1] >> 8, v[3] >> 8, v[5] >> 8, v[7] >> 8)};
    *reinterpret_cast<uint2*>(into.row(block, 1, row) + at) = {packed(v[0], v[2], v[4], v[6]),
                                                               packed(v[1], v[3], v[5], v[7])};
    if (column % into.group == 0) {
        const float scale = finite ? top / kPanelTop : not_a_number();
        into.scales(column / into.group)[row] = {scale, static_cast<float>(sum) * scale};
    }
}

// Element `index` of an array of a Type, as its bits, and the float that those are.
DEVICE uint32_t load_bits(const uint8_t* array, int index, int type) {
    return type == kF32 ? load_once_4(array + int64_t{4} * index)
                        : load_once_2(array + int64_t{2} * index);
}
DEVICE float bits_to_float(uint32_t bits, int type) {
    if (type == kF32) return __uint_as_float(bits);
    const auto half = static_cast<uint16_t>(bits);
    return type == kF16 ? half_to_float(half) : bf16_to_float(half);
}

template <int bits>
DEVICE void take_codes(const uint8_t* row, int chunk, uint32_t (&words)[8]) {
    uint32_t taken[bits];
    load_codes<Global>(row, chunk, taken);
#pragma unroll
    for (int i = 0; i < bits; ++i) words[i] = taken[i];
}

// The words of 32 codes of a row, as many as the bits.
DEVICE void load_packed(int bits, const uint8_t* row, int chunk, uint32_t (&words)[8]) {
    switch (bits) {
        case 2: return take_codes<2>(row, chunk, words);
        case 3: return take_codes<3>(row, chunk, words);
        case 4: return take_codes<4>(row, chunk, words);
        case 5: return take_codes<5>(row, chunk, words);
        case 6: return take_codes<6>(row, chunk, words);
        default: return take_codes<8>(row, chunk, words);
    }
}

// Those codes as bytes: eight, in the order above, in words 2 j and 2 j + 1.
template <int bits>
DEVICE void spread(const uint32_t (&words)[8], uint32_t (&bytes)[8]) {
    if constexpr (bits == 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            bytes[2 * j] = words[j] & 0x0F0F0F0FU;
            bytes[2 * j + 1] = words[j] >> 4 & 0x0F0F0F0FU;
        }
    } else if constexpr (bits == 2) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint32_t fourth[4];  // of codes 0 4 8 12, of 1 5 9 13, ...
#pragma unroll
            for (int k = 0; k < 4; ++k) fourth[k] = words[j / 2] >> (2 * k) & 0x03030303U;
            bytes[2 * j] = permute(fourth[0], fourth[2], 0x5140);
            bytes[2 * j + 1] = permute(fourth[1], fourth[3], 0x5140);
            bytes[2 * j + 2] = permute(fourth[0], fourth[2], 0x7362);
            bytes[2 * j + 3] = permute(fourth[1], fourth[3], 0x7362);
        }
    } else {
        uint32_t own[bits];
#pragma unroll
        for (int i = 0; i < bits; ++i) own[i] = words[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t a = codes<bits>(own, 2 * j), b = codes<bits>(own, 2 * j + 1);
            bytes[2 * j] = permute(a, b, 0x6420);
            bytes[2 * j + 1] = permute(a, b, 0x7531);
        }
    }
}

DEVICE void spread_codes(int bits, const uint32_t (&words)[8], uint32_t (&bytes)[8]) {
    switch (bits) {
        case 2: return spread<2>(words, bytes);
        case 3: return spread<3>(words, bytes);
        case 4: return spread<4>(words, bytes);
        case 5: return spread<5>(words, bytes);
        case 6: return spread<6>(words, bytes);
        default: return spread<8>(words, bytes);
    }
}
