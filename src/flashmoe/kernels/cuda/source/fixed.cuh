// Activations of one token in fixed point, and the product of 32 of them with quantised weights.
//
// Owns what the numbers are. Of each chunk of 32 inputs: top = max |x|, scale = top / kTop,
// v = round(x / scale), 24 bits with the sign, held as three planes of bytes (high with sign,
// middle, low), so that dp4a multiplies four at once and the sums of integers are exact. It is
// float32's own precision of the chunk's largest. A chunk whose top is not finite has the scale
// NaN; one below kLeast counts as zeros.
//
// In memory, for `inputs` (a multiple of 32): high, middle and low planes of so many bytes, then a
// float scale and a float sum of scale * v a chunk.

#pragma once

#include "machine.cuh"

constexpr float kTop = 127 * 65536;
constexpr float kLeast = 0x1p-100F;

struct Fixed {
    uint8_t* planes;
    int inputs;

    DEVICE uint8_t* plane(int which) const { return planes + int64_t{which} * inputs; }
    DEVICE float* scales() const { return reinterpret_cast<float*>(planes + int64_t{3} * inputs); }
    DEVICE float* sums() const { return scales() + inputs / 32; }
};

// Bytes of such an array.
DEVICE int64_t fixed_bytes(int inputs) { return int64_t{3} * inputs + inputs / 4; }

// What a chunk's largest number makes of it. That comes as the bits of |x|, which are in the order
// of the numbers, and of which those of no finite one are the largest.
struct Measure {
    float factor, scale;

    DEVICE explicit Measure(int top_bits) {
        const float top = __int_as_float(top_bits);
        const bool finite = top_bits < 0x7F800000, counts = finite && top >= kLeast;
        factor = counts ? kTop / top : 0.0F;
        scale = finite ? (counts ? top / kTop : 0.0F) : not_a_number();
    }
    DEVICE int of(float x) const { return factor > 0.0F ? __float2int_rn(x * factor) : 0; }
};
DEVICE int magnitude(float x) { return __float_as_int(x) & 0x7FFFFFFF; }

// One chunk by a warp: lane i brings x of input 32 * chunk + i.
DEVICE void fix(float x, int chunk, Fixed into) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int top = magnitude(x);
    for (int mask = 16; mask; mask >>= 1) top = max(top, shuffle_xor(top, mask));
    const Measure by(top);
    int v = by.of(x);
    const int at = 32 * chunk + lane;
    into.plane(0)[at] = static_cast<uint8_t>(v >> 16);
    into.plane(1)[at] = static_cast<uint8_t>(v >> 8);
    into.plane(2)[at] = static_cast<uint8_t>(v);
    for (int mask = 16; mask; mask >>= 1) v += shuffle_xor(v, mask);
    if (lane == 0) {
        into.scales()[chunk] = by.scale;
        into.sums()[chunk] = by.scale * static_cast<float>(v);
    }
}

// The same by eight lanes, of which each brings four of its inputs, to be put where they belong.
struct FixedQuad {
    uint32_t even[3], odd[3];  // of each plane the bytes of the first and third, second and fourth
    float scale, sum;

    DEVICE explicit FixedQuad(float4 x) {
        int top = max(max(magnitude(x.x), magnitude(x.y)), max(magnitude(x.z), magnitude(x.w)));
        for (int mask = 4; mask; mask >>= 1) top = max(top, shuffle_xor(top, mask));
        const Measure by(top);
        const int v[4] = {by.of(x.x), by.of(x.y), by.of(x.z), by.of(x.w)};
#pragma unroll
        for (int p = 0; p < 3; ++p) {
            const uint32_t both = (2 - p) | (6 - p) << 4;
            even[p] = permute(static_cast<uint32_t>(v[0]), static_cast<uint32_t>(v[2]), both);
            odd[p] = permute(static_cast<uint32_t>(v[1]), static_cast<uint32_t>(v[3]), both);
        }
        int total = v[0] + v[1] + v[2] + v[3];
        for (int mask = 4; mask; mask >>= 1) total += shuffle_xor(total, mask);
        scale = by.scale;
        sum = by.scale * static_cast<float>(total);
    }
    // Of a plane, as they came.
    DEVICE uint32_t word(int plane) const { return permute(even[plane], odd[plane], 0x5140); }
};

// The order of inputs in which codes of so many bits come out of their words four at a time.
//   4 bits: a word has codes 0 to 7; 0 2 4 6, then 1 3 5 7
//   2 bits: a word has codes 0 to 15; 0 4 8 12, then 1 5 9 13, ...
//   others: as they are
template <int bits>
DEVICE void arrange(uint32_t (&x)[8]) {
    if constexpr (bits == 4) {
        for (int i = 0; i < 8; i += 2) {
            const uint32_t a = x[i], b = x[i + 1];
            x[i] = permute(a, b, 0x6420);
            x[i + 1] = permute(a, b, 0x7531);
        }
    } else if constexpr (bits == 2) {
        for (int i = 0; i < 8; i += 4) {                         // the transpose of 4 by 4 bytes
            const uint32_t a = permute(x[i], x[i + 1], 0x5140);  // a0 b0 a1 b1
            const uint32_t b = permute(x[i + 2], x[i + 3], 0x5140);  // c0 d0 c1 d1
            const uint32_t c = permute(x[i], x[i + 1], 0x7362);
            const uint32_t d = permute(x[i + 2], x[i + 3], 0x7362);
            x[i] = permute(a, b, 0x5410);
            x[i + 1] = permute(a, b, 0x7632);
            x[i + 2] = permute(c, d, 0x5410);
            x[i + 3] = permute(c, d, 0x7632);
        }
    }
}

// A chunk of x in registers, in the order of `bits`.
struct FixedChunk {
    uint32_t high[8], middle[8], low[8];
    float scale, sum;
};

template <int bits>
DEVICE void load_chunk(Fixed x, int chunk, FixedChunk& out) {
    uint32_t* planes[3] = {out.high, out.middle, out.low};
#pragma unroll
    for (int p = 0; p < 3; ++p) {
        const uint4* from = reinterpret_cast<const uint4*>(x.plane(p) + 32 * chunk);
        const uint4 a = from[0], b = from[1];
        planes[p][0] = a.x, planes[p][1] = a.y, planes[p][2] = a.z, planes[p][3] = a.w;
        planes[p][4] = b.x, planes[p][5] = b.y, planes[p][6] = b.z, planes[p][7] = b.w;
    }
    arrange<bits>(out.high);
    arrange<bits>(out.middle);
    arrange<bits>(out.low);
    out.scale = x.scales()[chunk];
    out.sum = x.sums()[chunk];
}

// Where weights are: in global memory, read once and by one warp, or in shared memory.
struct Global {
    static constexpr bool kFar = true;
    DEVICE static uint4 load_16(const void* from) { return load_once(from); }
    DEVICE static uint2 load_8(const void* from) { return load_once_8(from); }
    DEVICE static uint32_t load_4(const void* from) { return load_once_4(from); }
    template <class T>
    DEVICE static uint32_t load_number(const T* from) {
        return ::load_number(from);
    }
};
struct Shared {
    static constexpr bool kFar = false;
    DEVICE static uint4 load_16(const void* from) { return load_shared<uint4>(from); }
    DEVICE static uint2 load_8(const void* from) { return load_shared<uint2>(from); }
    DEVICE static uint32_t load_4(const void* from) { return load_shared<uint32_t>(from); }
    template <class T>
    DEVICE static uint32_t load_number(const T* from) {
        return load_shared<T>(from);
    }
};

// The `bits` words of 32 codes. Rows begin at multiples of 4 bytes only, unless their length says
// otherwise: a chunk of 4 or 8 bits begins at 16 bytes, one of 2 bits at 8.
template <class Memory, int bits>
DEVICE void load_codes(const uint8_t* codes, uint32_t chunk, uint32_t (&words)[bits]) {
    const uint8_t* from = codes + uint64_t{chunk} * (4 * bits);
    if constexpr (bits % 4 == 0) {
#pragma unroll
        for (int i = 0; i < bits; i += 4) {
            const uint4 v = Memory::load_16(from + 4 * i);
            words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
        }
    } else if constexpr (bits % 2 == 0) {
#pragma unroll
        for (int i = 0; i < bits; i += 2) {
            const uint2 v = Memory::load_8(from + 4 * i);
            words[i] = v.x, words[i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < bits; ++i) words[i] = Memory::load_4(from + 4 * i);
    }
}

// Codes as bytes: word i of eight, in the order of arrange().
template <int bits>
DEVICE uint32_t codes(const uint32_t (&words)[bits], int i) {
    if constexpr (bits == 8) {
        return words[i];
    } else if constexpr (bits == 4) {
        return words[i / 2] >> (4 * (i % 2)) & 0x0F0F0F0FU;
    } else if constexpr (bits == 2) {
        return words[i / 4] >> (2 * (i % 4)) & 0x03030303U;
    } else {
        // Four codes of an odd width, from bit 4 * bits * i on.
        constexpr uint32_t mask = (1U << bits) - 1;
        const int first = 4 * bits * i, word = first / 32, shift = first % 32;
        uint32_t raw = words[word] >> shift;
        if (shift + 4 * bits > 32) raw |= words[word + 1] << (32 - shift);
        uint32_t spread = raw & mask;
#pragma unroll
        for (int k = 1; k < 4; ++k) spread |= (raw >> (bits * k) & mask) << (8 * k);
        return spread;
    }
}

// sum_i q_i v_i of a chunk.
template <int bits>
DEVICE float dot(const FixedChunk& x, const uint32_t (&words)[bits]) {
    int high = 0, middle = 0, low = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint32_t q = codes<bits>(words, i);
        high = dot_us(q, x.high[i], high);
        middle = dot_uu(q, x.middle[i], middle);
        low = dot_uu(q, x.low[i], low);
    }
    return fmaf(static_cast<float>(high), 65536.0F, static_cast<float>(middle * 256 + low));
}
