// Which instruction sets this machine has, and the products of each.
//
// Owns the choice and the split into threads; the arithmetic lies in a file for each set. A set
// is offered only where CPU and operating system both support it, so no instruction is executed
// that either lacks.

#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "chunk_delta.h"
#include "decode.h"
#include "draw.h"
#include "kernels.h"
#include "panels.h"

namespace flashmoe {

// The part of a product that depends on the instruction set: plain functions over row ranges.
//
// The files behind them are compiled with flags of their own and so must define no function with
// external linkage beyond their table, templates of the standard library included: the linker
// keeps one copy of each, and it could be the one that an older machine cannot execute.
struct RowKernels {
    // Bytes that `prepare` fills for `rows` activation rows; a function of bits, group and `in`.
    std::size_t (*prepared_bytes)(std::size_t rows, const AffineMatrix& matrix);
    // The activations in the order and form that `affine` wants; `into` is aligned to 64 bytes.
    void (*prepare)(const float* x, std::size_t rows, const AffineMatrix& matrix, void* into);
    // Outputs [begin, end) of every activation row.
    void (*affine)(const void* prepared, std::size_t rows, const AffineMatrix& matrix,
                   std::size_t begin, std::size_t end, float* y);
    void (*plain)(const float* x, std::size_t rows, const PlainMatrix& matrix, std::size_t begin,
                  std::size_t end, float* y);
};

struct InstructionSet {
    const char* name;
    const RowKernels* kernels;              // null: the portable kernels
    const DecodeKernels* decode = nullptr;  // null: likewise
    const DeltaChunkKernels* delta = nullptr;
    const PanelKernels* panels = &panels_generic;
    const DrawKernels* draw = &draw_generic;
};

inline const DecodeKernels& decode_of(const InstructionSet& set) {
    return set.decode == nullptr ? decode_generic : *set.decode;
}

extern const RowKernels avx2_kernels, avx512_kernels;  // x86-64 builds only
extern const RowKernels neon_kernels;                  // 64-bit ARM builds only

// The threads to use for so much work, at most `threads`.
int worth(std::size_t multiply_adds, int threads);

// Activation rows as `kernels.affine` wants them for that matrix.
std::shared_ptr<void> prepare(const RowKernels& kernels, const float* x, std::size_t rows,
                              const AffineMatrix& matrix);

// Those that this machine executes, the best first; never empty, the last is "generic".
const std::vector<InstructionSet>& instruction_sets();

}  // namespace flashmoe
