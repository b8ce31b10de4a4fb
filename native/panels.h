// Products of many activation rows at once: a prompt's.
//
// Owns the form in which such activations are held, what the numbers are, and the split into
// threads; the arithmetic lies in a file for each instruction set (panels_*.cpp).
//
// An affine matrix meets activations in 16-bit fixed point. Of each group of x, with the matrix's
// own group size:
//   top = max |x|, scale = top / 32512, v = round(x * (32512 / top)), to even at ties
//   y[t, o] = sum over groups, in order, of float(sum_i q_i v_i) * (scale * w_scale), then of
//             w_bias * (float(sum_i v_i) * scale), each by one fused multiply-add
// The sums of integers are exact, so a result is the same bits on every instruction set, for any
// number of threads, and however many rows pass together. A group whose top is not finite makes its
// row NaN; one below 2^-100 counts as zeros.
//
// Tolerance: half a step of v, so |error| <= sum over groups of top / 65024 * sum_i |w_i|, and
// (groups + 5) * 2^-23 * sum_i (|q_i scale| + |bias|) |x_i| for the float32 sums.
//
// Plain matrices are multiplied as for one row (kernels.h), in float32.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace flashmoe {

struct InstructionSet;  // dispatch.h

constexpr float kPanelTop = 32512;         // 127 * 256: the high byte of v is in [-127, 127]
constexpr float kPanelLeast = 0x1p-100F;   // a smaller top counts as zero
constexpr std::size_t kPanelOutputs = 32;  // what a task computes is a multiple of so many outputs

constexpr std::size_t kPanelScratch = 3 << 16;  // bytes a worker, at most; kernels/cpu.py plans so

// Under the rule of RowKernels in dispatch.h.
struct PanelKernels {
    // Bytes of so many activation rows in fixed point, in blocks whose number of rows divides
    // 48; those of the last block must be zeros where `prepare` does not write.
    std::size_t (*prepared_bytes)(std::size_t rows, const AffineMatrix& matrix);
    // x (in) in fixed point as row t of those; `into` is aligned to 64 bytes.
    void (*prepare)(const float* x, const AffineMatrix& matrix, std::size_t t, void* into);
    // Bytes that one worker needs for `affine`, at an address that is a multiple of 64.
    std::size_t (*scratch_bytes)(const AffineMatrix& matrix);
    // Outputs [begin, end) of every row; y (rows, out). begin is a multiple of kPanelOutputs.
    void (*affine)(const void* prepared, std::size_t rows, const AffineMatrix& matrix,
                   std::size_t begin, std::size_t end, float* y, void* scratch);
};

extern const PanelKernels panels_generic;
// x86-64 builds only:
extern const PanelKernels panels_avx2, panels_avxvnni, panels_avx512, panels_amx;
extern const PanelKernels panels_neon, panels_i8mm;  // 64-bit ARM builds only

// Several products of the same activations x (rows, in).
void project_panels(const InstructionSet& set, const float* x, std::size_t rows,
                    const std::vector<Product>& products, int threads);

// An expert of a chunk: the tokens that want it, and with what weight.
struct PanelUse {
    const Expert* expert;
    std::vector<std::size_t> tokens;
    std::vector<float> weights;
};

// y[token] += weight * down(silu(gate(x)) * up(x)), expert by expert in the order given; x and y
// (T, hidden).
void add_experts(const InstructionSet& set, const float* x, const std::vector<PanelUse>& uses,
                 float* y, int threads);

}  // namespace flashmoe
