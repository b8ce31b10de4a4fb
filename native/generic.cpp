// The kernels in portable C++: no intrinsics; loops of constant length over independent lanes,
// which compilers vectorise for whatever machine they are given.
//
// Compiled with -ffp-contract=off: a fused multiply-add would skip a rounding in dequantisation.

#include "generic.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "threads.h"

namespace flashmoe::generic {
namespace {

using Byte = unsigned char;

constexpr std::size_t kLanes = 16;
// Below this many multiply-adds, waking a second thread costs more than it saves (about 10 us).
constexpr std::size_t kWorthThreads = 1 << 16;

float f16_to_f32(std::uint16_t half) {
    // The exponent moves from bias 15 to bias 127 by an exact multiplication, which also makes
    // float32 normals of the half subnormals; infinity and NaN get their exponent put back.
    const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff) << 13;
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
    const std::uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000U : 0;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special | sign);
}

template <Scalar type>
float load(const Byte* at) {
    if constexpr (type == Scalar::f32) {
        float value;
        std::memcpy(&value, at, sizeof value);
        return value;
    } else {
        std::uint16_t value;
        std::memcpy(&value, at, sizeof value);
        if constexpr (type == Scalar::f16) return f16_to_f32(value);
        return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
    }
}

float dot(const float* a, const float* b, std::size_t count) {
    float lane[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (std::size_t j = 0; j < kLanes; ++j) lane[j] += a[i + j] * b[i + j];
    for (std::size_t j = 0; i + j < count; ++j) lane[j] += a[i + j] * b[i + j];
    for (std::size_t half = kLanes / 2; half > 0; half /= 2)
        for (std::size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
    return lane[0];
}

// Splits each byte into its low `width` bits and the rest: an interleave, which vectorises.
template <int width>
void split(const Byte* from, std::size_t count, Byte* into) {
    for (std::size_t i = 0; i < count; ++i) {
        into[2 * i] = static_cast<Byte>(from[i] & ((1U << width) - 1));
        into[2 * i + 1] = static_cast<Byte>(from[i] >> width);
    }
}

template <int bits, std::size_t k>
Byte code(const std::uint32_t* words) {
    constexpr std::size_t at = bits * k / 32, shift = bits * k % 32;
    std::uint32_t value = words[at] >> shift;
    if constexpr (shift + bits > 32) value |= words[at + 1] << (32 - shift);
    return static_cast<Byte>(value & ((1U << bits) - 1));
}

// Every shift is a constant: 32 codes in straight-line code.
template <int bits, std::size_t... k>
void unpack32(const std::uint32_t* words, Byte* codes, std::index_sequence<k...>) {
    ((codes[k] = code<bits, k>(words)), ...);
}

// The `count` codes of a row, one a byte; `count` is a multiple of 32. 2, 4 and 8 bits never
// cross a byte; of the others, every `bits` words hold 32 codes.
template <int bits>
void unpack(const Byte* packed, std::size_t count, Byte* codes) {
    if constexpr (bits == 8) {
        std::memcpy(codes, packed, count);
    } else if constexpr (bits == 4) {
        split<4>(packed, count / 2, codes);
    } else if constexpr (bits == 2) {
        Byte* pairs = codes + count;
        split<4>(packed, count / 4, pairs);
        split<2>(pairs, count / 2, codes);
    } else {
        for (; count > 0; count -= 32, packed += 4 * bits, codes += 32) {
            std::uint32_t words[bits];
            std::memcpy(words, packed, sizeof words);
            unpack32<bits>(words, codes, std::make_index_sequence<32>{});
        }
    }
}

// A worker's own memory: one weight row as float32, its codes, and 2-bit codes in pairs.
struct Scratch {
    explicit Scratch(std::size_t in) : row(in), codes(in + in / 2) {}
    std::vector<float> row;
    std::vector<Byte> codes;
};

// Unpacking the whole row before scaling it keeps the wide loads of the second loop away from
// the byte stores of the first, which a CPU cannot forward to them.
template <int bits, Scalar type, std::size_t group>
void dequantize_row(const AffineMatrix& m, std::size_t row, Scratch& scratch) {
    const std::size_t groups = m.in / group;
    const std::size_t first = row * groups * size_of(type);
    const Byte* scales = static_cast<const Byte*>(m.scales) + first;
    const Byte* biases = static_cast<const Byte*>(m.biases) + first;
    const Byte* codes = scratch.codes.data();
    float* into = scratch.row.data();
    unpack<bits>(static_cast<const Byte*>(m.weight) + row * (m.in / 8) * bits, m.in,
                 scratch.codes.data());
    for (std::size_t g = 0; g < groups; ++g, codes += group, into += group) {
        const float scale = load<type>(scales + g * size_of(type));
        const float bias = load<type>(biases + g * size_of(type));
        for (std::size_t i = 0; i < group; ++i)
            into[i] = static_cast<float>(codes[i]) * scale + bias;
    }
}

using DequantizeRow = void (*)(const AffineMatrix&, std::size_t row, Scratch& scratch);

template <int bits, Scalar type>
DequantizeRow for_group(int group) {
    if (group == 32) return dequantize_row<bits, type, 32>;
    if (group == 64) return dequantize_row<bits, type, 64>;
    return dequantize_row<bits, type, 128>;
}

template <int bits>
DequantizeRow for_scalar(const AffineMatrix& m) {
    if (m.scalar == Scalar::f32) return for_group<bits, Scalar::f32>(m.group);
    if (m.scalar == Scalar::f16) return for_group<bits, Scalar::f16>(m.group);
    return for_group<bits, Scalar::bf16>(m.group);
}

DequantizeRow dequantizer(const AffineMatrix& m) {
    switch (m.bits) {
        case 2: return for_scalar<2>(m);
        case 3: return for_scalar<3>(m);
        case 4: return for_scalar<4>(m);
        case 5: return for_scalar<5>(m);
        case 6: return for_scalar<6>(m);
        default: return for_scalar<8>(m);
    }
}

template <Scalar type>
void widen_row(const PlainMatrix& m, std::size_t row, Scratch& scratch) {
    float* into = scratch.row.data();
    const Byte* from = static_cast<const Byte*>(m.weight) + row * m.in * size_of(type);
    for (std::size_t i = 0; i < m.in; ++i) into[i] = load<type>(from + i * size_of(type));
}

using WidenRow = void (*)(const PlainMatrix&, std::size_t row, Scratch& scratch);

WidenRow widener(const PlainMatrix& m) {
    if (m.scalar == Scalar::f32) return widen_row<Scalar::f32>;
    return m.scalar == Scalar::f16 ? widen_row<Scalar::f16> : widen_row<Scalar::bf16>;
}

// Each weight row is made float32 once, in the worker's scratch row, then meets every row of x.
template <class Matrix, class MakeRow>
void range(const float* x, std::size_t rows, const Matrix& m, std::size_t begin, std::size_t end,
           float* y, Scratch& scratch, MakeRow make_row) {
    for (std::size_t o = begin; o < end; ++o) {
        make_row(m, o, scratch);
        for (std::size_t t = 0; t < rows; ++t)
            y[t * m.out + o] = dot(x + t * m.in, scratch.row.data(), m.in);
    }
}

template <class Matrix, class MakeRow>
void matmul(const float* x, std::size_t rows, const Matrix& m, float* y, int threads,
            MakeRow make_row) {
    if (rows * m.out * m.in < kWorthThreads) threads = 1;
    std::vector<Scratch> scratch(static_cast<std::size_t>(std::max(threads, 1)), Scratch(m.in));
    parallel_rows(m.out, threads, [&](std::size_t begin, std::size_t end, int worker) {
        range(x, rows, m, begin, end, y, scratch[static_cast<std::size_t>(worker)], make_row);
    });
}

}  // namespace

void unpack(const AffineMatrix& m, std::size_t row, unsigned char* codes) {
    const Byte* packed =
        static_cast<const Byte*>(m.weight) + row * (m.in / 8) * static_cast<std::size_t>(m.bits);
    switch (m.bits) {
        case 2: return unpack<2>(packed, m.in, codes);
        case 3: return unpack<3>(packed, m.in, codes);
        case 4: return unpack<4>(packed, m.in, codes);
        case 5: return unpack<5>(packed, m.in, codes);
        case 6: return unpack<6>(packed, m.in, codes);
        default: return unpack<8>(packed, m.in, codes);
    }
}

float number(Scalar type, const void* array, std::size_t index) {
    const Byte* at = static_cast<const Byte*>(array) + index * size_of(type);
    if (type == Scalar::f32) return load<Scalar::f32>(at);
    return type == Scalar::f16 ? load<Scalar::f16>(at) : load<Scalar::bf16>(at);
}

void matmul_affine(const float* x, std::size_t rows, const AffineMatrix& matrix, float* y,
                   int threads) {
    matmul(x, rows, matrix, y, threads, dequantizer(matrix));
}

void matmul_plain(const float* x, std::size_t rows, const PlainMatrix& matrix, float* y,
                  int threads) {
    matmul(x, rows, matrix, y, threads, widener(matrix));
}

void plain(const float* x, std::size_t rows, const PlainMatrix& matrix, std::size_t begin,
           std::size_t end, float* y) {
    Scratch scratch(matrix.in);
    range(x, rows, matrix, begin, end, y, scratch, widener(matrix));
}

}  // namespace flashmoe::generic
