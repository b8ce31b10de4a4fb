// A weight matrix as the launchers describe it, and rows of it times one token's activations.
//
// Owns the split of a product over a warp: a lane takes every 32nd chunk of 32 inputs, of `rows`
// rows at once, so that so many loads are under way together, and the warp adds up. The order of
// the sums depends on nothing but the shapes.

#pragma once

#include "fixed.cuh"

// As descriptors.py writes it. `weight`, `scales` and `biases` are addresses, or, of an expert,
// offsets into its record.
struct Matrix {
    const uint8_t* weight;
    const uint8_t* scales;
    const uint8_t* biases;
    int rows, columns;
    int bits;   // 0: plain weights of `type`
    int group;  // inputs a scale
    int type;   // of scales and biases, or of plain weights
    int first;  // where the rows begin, in blocks of a launch or in the output; the kernel says

    DEVICE Matrix at(const uint8_t* record) const {
        Matrix moved = *this;
        const auto base = reinterpret_cast<uint64_t>(record);
        moved.weight = reinterpret_cast<const uint8_t*>(base + reinterpret_cast<uint64_t>(weight));
        moved.scales = reinterpret_cast<const uint8_t*>(base + reinterpret_cast<uint64_t>(scales));
        moved.biases = reinterpret_cast<const uint8_t*>(base + reinterpret_cast<uint64_t>(biases));
        return moved;
    }
};

// One weight, the very number that it is (quant.py).
DEVICE float weight_at(const Matrix& m, int64_t row, int column) {
    if (m.bits == 0) return load_float(m.weight, row * m.columns + column, m.type);
    const int64_t bit = int64_t{column} * m.bits;
    const auto* words =
        reinterpret_cast<const uint32_t*>(m.weight) + row * (int64_t{m.columns} * m.bits / 32);
    const int word = static_cast<int>(bit / 32), shift = static_cast<int>(bit % 32);
    uint32_t code = words[word] >> shift;
    if (shift + m.bits > 32) code |= words[word + 1] << (32 - shift);
    code &= (1U << m.bits) - 1;
    const int64_t at = row * (m.columns / m.group) + column / m.group;
    // Two roundings, not one.
    const float scaled = __fmul_rn(static_cast<float>(code), load_float(m.scales, at, m.type));
    return __fadd_rn(scaled, load_float(m.biases, at, m.type));
}

// Several, by value: a kernel's parameters need no load from memory.
constexpr int kMostMatrices = 6;
struct Matrices {
    Matrix all[kMostMatrices];
    int count, unused;
};

// One token's activations in memory, both ways. `floats` serve plain weights. (Products take any
// type with these two functions; ready.cuh has another.)
struct Activations {
    const float* floats;
    Fixed fixed;

    template <int bits>
    DEVICE void load(int chunk, FixedChunk& out) const {
        load_chunk<bits>(fixed, chunk, out);
    }
    // Eighth `eighth` of a chunk's 32 numbers, counted in fours.
    DEVICE float4 load_floats(int chunk, int eighth) const {
        return *reinterpret_cast<const float4*>(floats + 32 * chunk + 4 * eighth);
    }
};

// A number of such a type by its bits. Of kAny the type is known only when the kernel runs.
constexpr int kAny = -1;
template <int known>
DEVICE float to_float(uint32_t bits, int type) {
    if constexpr (known == kBF16) {
        return __uint_as_float(bits << 16);
    } else {
        const float half = half_to_float(static_cast<uint16_t>(bits));
        const float other = __uint_as_float(type == kF32 ? bits : bits << 16);
        return type == kF16 ? half : other;
    }
}

// Which chunks of a matrix a lane is at, one of each of `count` rows, counted from the matrix's
// first. Both the codes' place and their scale's follow from that number: a division, or an address
// of 64 bits made anew, would cost as much as a quarter of the products.
template <int count>
struct Places {
    uint32_t chunk[count];

    DEVICE Places(const Matrix& m, int first, const int (&rows)[count]) {
#pragma unroll
        for (int r = 0; r < count; ++r)
            chunk[r] = static_cast<uint32_t>(rows[r]) * static_cast<uint32_t>(m.columns / 32) +
                       static_cast<uint32_t>(first);
    }
    DEVICE void advance(int chunks) {
#pragma unroll
        for (int r = 0; r < count; ++r) chunk[r] += static_cast<uint32_t>(chunks);
    }
};

// A chunk of `count` rows, before anything is done with it: so that loads of several are under way.
template <int bits, int count, class Memory>
struct Codes {
    uint32_t words[count][bits];
    uint32_t scales[count], biases[count];  // as they are stored

    template <int known>
    DEVICE void load(const Matrix& m, const Places<count>& at) {
#pragma unroll
        for (int r = 0; r < count; ++r) load_codes<Memory>(m.weight, at.chunk[r], words[r]);
        // One branch for all of them, and no use of any: else each would be waited for in turn.
        if (known == kAny && m.type == kF32) {
            load_numbers<uint32_t>(m, at);
        } else {
            load_numbers<uint16_t>(m, at);
        }
    }
    template <class T>
    DEVICE void load_numbers(const Matrix& m, const Places<count>& at) {
        const int spread = m.group / 64;  // chunks a group, as a power of two
#pragma unroll
        for (int r = 0; r < count; ++r) {
            const uint32_t number = at.chunk[r] >> spread;
            scales[r] = Memory::load_number(reinterpret_cast<const T*>(m.scales) + number);
            biases[r] = Memory::load_number(reinterpret_cast<const T*>(m.biases) + number);
        }
    }
    template <int known>
    DEVICE void add(const FixedChunk& v, int type, float (&sums)[count]) const {
#pragma unroll
        for (int r = 0; r < count; ++r) {
            const float scale = to_float<known>(scales[r], type);
            const float bias = to_float<known>(biases[r], type);
            sums[r] = fmaf(dot<bits>(v, words[r]), v.scale * scale, sums[r]);
            sums[r] = fmaf(bias, v.sum, sums[r]);
        }
    }
};

// Chunks first, first + step, ... of weights of so many bits, several at once where `count` is
// small.
template <int bits, int known, class Memory, class X, int count>
DEVICE void affine_chunks(const Matrix& m, const X& x, int first, int step,
                          const int (&rows)[count], float (&sums)[count]) {
    // As many loads at once as there are registers for. (One row is of a small matrix, which seldom
    // has more than 2,048 columns, two chunks a lane.)
    constexpr int kFew = (bits == 4 ? 2 : 1) * (count == 2 || (count == 1 && bits != 4) ? 2 : 1);
    constexpr int kAhead = Memory::kFar ? kFew : 1;
    const int chunks = m.columns / 32;
    Places<count> at(m, first, rows);
#pragma unroll kAhead
    for (int c = first; c < chunks; c += step) {
        Codes<bits, count, Memory> codes;
        codes.template load<known>(m, at);
        at.advance(step);
        FixedChunk v;
        x.template load<bits>(c, v);
        codes.template add<known>(v, m.type, sums);
    }
}

template <class Memory, class X, int count>
DEVICE void plain_chunk(const Matrix& m, const X& x, int chunk, const int (&rows)[count],
                        float (&sums)[count]) {
    for (int i = 32 * chunk; i < 32 * chunk + 32; i += 8) {
        const float4 a = x.load_floats(chunk, i % 32 / 4), b = x.load_floats(chunk, i % 32 / 4 + 1);
        const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int r = 0; r < count; ++r) {
            const int64_t at = int64_t{rows[r]} * m.columns + i;
            if (m.type == kF32) {
                const float* w = reinterpret_cast<const float*>(m.weight) + at;
#pragma unroll
                for (int k = 0; k < 8; ++k)
                    sums[r] = fmaf(__uint_as_float(Memory::load_4(w + k)), v[k], sums[r]);
            } else {
                const uint4 w = Memory::load_16(reinterpret_cast<const uint16_t*>(m.weight) + at);
                const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    const auto bits = static_cast<uint16_t>(words[k / 2] >> (16 * (k % 2)));
                    const float value = m.type == kF16 ? half_to_float(bits) : bf16_to_float(bits);
                    sums[r] = fmaf(value, v[k], sums[r]);
                }
            }
        }
    }
}

// Adds chunks first, first + step, ... of several rows to the lane's own sums.
template <class Memory = Global, class X, int count>
DEVICE void add_chunks(const Matrix& m, const X& x, int first, int step, const int (&rows)[count],
                       float (&sums)[count]) {
    using In = Memory;
    switch (m.bits) {
        case 2: return affine_chunks<2, kAny, In>(m, x, first, step, rows, sums);
        case 3: return affine_chunks<3, kAny, In>(m, x, first, step, rows, sums);
        case 4:  // the most usual by far
            if (m.type == kBF16) return affine_chunks<4, kBF16, In>(m, x, first, step, rows, sums);
            return affine_chunks<4, kAny, In>(m, x, first, step, rows, sums);
        case 5: return affine_chunks<5, kAny, In>(m, x, first, step, rows, sums);
        case 6: return affine_chunks<6, kAny, In>(m, x, first, step, rows, sums);
        case 8: return affine_chunks<8, kAny, In>(m, x, first, step, rows, sums);
        default:
            for (int c = first; c < m.columns / 32; c += step) plain_chunk<In>(m, x, c, rows, sums);
    }
}

// The rows' products with x, whole, for every lane.
template <class X, int count>
DEVICE void row_products(const Matrix& m, const X& x, const int (&rows)[count],
                         float (&sums)[count]) {
#pragma unroll
    for (int r = 0; r < count; ++r) sums[r] = 0.0F;
    add_chunks(m, x, static_cast<int>(threadIdx.x) % 32, 32, rows, sums);
#pragma unroll
    for (int r = 0; r < count; ++r) sums[r] = warp_sum(sums[r]);
}

template <int bits, int known, int count>
DEVICE void affine_pair(const Matrix& a, const Matrix& b, const Activations& x,
                        const int (&rows)[count], float (&of_a)[count], float (&of_b)[count]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Places<count> at(a, lane, rows);  // and of b, whose shape is the same
#pragma unroll 1  // two would take twice the registers, and halve the blocks at work
    for (int c = lane; c < a.columns / 32; c += 32) {
        Codes<bits, count, Global> first, second;
        first.template load<known>(a, at);
        second.template load<known>(b, at);
        at.advance(32);
        FixedChunk v;
        x.load<bits>(c, v);
        first.template add<known>(v, a.type, of_a);
        second.template add<known>(v, b.type, of_b);
    }
}

// The same rows of two matrices of the same shape; those of 4 bits with twice as many loads under
// way. (Those of more would want more registers than there are.)
template <int count>
DEVICE void pair_products(const Matrix& a, const Matrix& b, const Activations& x,
                          const int (&rows)[count], float (&of_a)[count], float (&of_b)[count]) {
    if (a.bits != 4 || b.bits != 4) {
        row_products(a, x, rows, of_a);
        row_products(b, x, rows, of_b);
        return;
    }
#pragma unroll
    for (int r = 0; r < count; ++r) of_a[r] = of_b[r] = 0.0F;
    if (a.type == kBF16 && b.type == kBF16) {
        affine_pair<4, kBF16>(a, b, x, rows, of_a, of_b);
    } else {
        affine_pair<4, kAny>(a, b, x, rows, of_a, of_b);
    }
#pragma unroll
    for (int r = 0; r < count; ++r) of_a[r] = warp_sum(of_a[r]), of_b[r] = warp_sum(of_b[r]);
}
