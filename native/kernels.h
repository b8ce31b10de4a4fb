// The arithmetic, a function a kernel: formula, shapes, alignment, tolerance.
//
// Owns no memory beyond one scratch row a thread, and knows neither Python nor files. Arrays are
// row-major and contiguous. Activations and results are aligned to 4 bytes; weights, scales and
// biases to nothing, since they are read where they lie in a record.
//
// Invariants, each a test:
// - A quantised weight is the float32 number f32(f32(q * scale) + bias), two roundings as in
//   quant.py. The portable kernels form it; the others sum q * x and x apart in each group and
//   apply scale and bias to the sums, which is the same number but for the tolerance below.
// - Each result y[t, o] is summed in one order, which depends on the matrix alone: not on the
//   number of threads, nor on the number of activation rows computed together.
//
// Tolerance, relative to sum_i |x_i w_i|, of the float32 numbers' exact sum:
// - generic, and every plain product: (n / 16 + 5) * 2^-24 for n inputs;
// - affine with avx2, avx512 and neon: 1e-5. Typical weights and activations keep it below
//   1e-6. Two things can bring it near: a group whose weights are tiny beside their scale times the
//   largest code, so that the two sums cancel; and, since they hold the activations of a group
//   as 23-bit fixed point (avx2 22-bit at 8 bits), one activation that is 2^14 times the others and
//   meets a zero.

#pragma once

#include <cstddef>
#include <variant>
#include <vector>

namespace flashmoe {

enum class Scalar : int { f32 = 0, f16 = 1, bf16 = 2 };

constexpr std::size_t size_of(Scalar type) { return type == Scalar::f32 ? 4 : 2; }

// MLX's affine format: code k of a row lies at bits [bits * k, bits * (k + 1)) of the row's
// little-endian bit stream; `group` consecutive inputs share one scale and one bias.
struct AffineMatrix {
    const void* weight;  // (out, in * bits / 32) uint32
    const void* scales;  // (out, in / group) of `scalar`
    const void* biases;  // (out, in / group) of `scalar`
    Scalar scalar;
    int bits;   // 2, 3, 4, 5, 6 or 8
    int group;  // 32, 64 or 128; divides `in`
    std::size_t out, in;
};

struct PlainMatrix {
    const void* weight;  // (out, in) of `scalar`
    Scalar scalar;
    std::size_t out, in;
};

using Matrix = std::variant<AffineMatrix, PlainMatrix>;

inline std::size_t out_of(const Matrix& matrix) {
    return std::visit([](const auto& each) { return each.out; }, matrix);
}

inline std::size_t in_of(const Matrix& matrix) {
    return std::visit([](const auto& each) { return each.in; }, matrix);
}

// gate and up are (intermediate, hidden), down is (hidden, intermediate).
struct Expert {
    Matrix gate, up, down;
};

struct InstructionSet;  // dispatch.h

// y[t, o] = sum_i x[t, i] * w[o, i]; x (rows, in), y (rows, out). std::bad_alloc when the scratch
// rows do not fit, std::system_error when a thread cannot start.
void matmul_affine(const InstructionSet& set, const float* x, std::size_t rows,
                   const AffineMatrix& matrix, float* y, int threads);

void matmul_plain(const InstructionSet& set, const float* x, std::size_t rows,
                  const PlainMatrix& matrix, float* y, int threads);

// A matrix and where its product with the activations goes, (rows, out).
struct Product {
    const Matrix* matrix;
    float* y;
};

// Several products of the same activations x (rows, in) in one parallel region.
void project(const InstructionSet& set, const float* x, std::size_t rows,
             const std::vector<Product>& products, int threads);

// An expert, and where what it makes of a token goes, (hidden).
struct ExpertUse {
    const Expert* expert;
    float* y;
};

// y = down(silu(gate(x)) * up(x)), silu(z) = z / (1 + exp(-z)), for every use of one token's x
// (hidden). The three products are those above, bit for bit, whatever experts are computed
// together; exp is that of decode.h. Those of more tokens are panels.h's.
void experts(const InstructionSet& set, const float* x, const std::vector<ExpertUse>& uses,
             int threads);

}  // namespace flashmoe
