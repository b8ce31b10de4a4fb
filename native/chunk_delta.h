// The gated delta net of several tokens that pass together.
//
// Owns the formula and the split into threads. Vector code is written once, in chunk_delta_rows.h,
// and compiled for each instruction set (chunk_delta_*.cpp). Arrays are row-major, contiguous
// float32, aligned to 4 bytes.
//
// Invariants, each a test: a value head is computed whole, by one thread, in one fixed order, and
// blocks end at multiples of kDeltaBlock tokens of the timeline. So no result depends on the number
// of threads, nor on where chunks of several tokens end, if they end at such multiples. NaN in what
// goes in shows in what comes out.

#pragma once

#include <cstddef>

#include "decode.h"

namespace flashmoe {

constexpr std::size_t kDeltaBlock = 64;  // tokens of one step of the chunked rule

// `tokens` of a gated delta net, the first of which stands at `start`. The formula is DeltaStep's,
// computed a block of C tokens at a time (Yang et al., arXiv 2412.06464, section 3.3). With rows of
// Q, K and V a token each, g the logarithms of the decays and b = sigmoid(b):
//   G = cumsum(g); D_ij = e^(G_i - G_j) for j <= i, else 0; A_ij = b_i k_i'k_j D_ij for j < i
//   (I + A) X = b (V - e^G (K S)), by substitution, for all tokens at once
//   O = e^G (Q S) + (Q K' D) X; S = e^(G_C) S + (e^(G_C - G) K)' X
// Decays below e^-80 count as zero: what they leave is below any float32 it could be added to, and
// numbers that small are slow.
struct DeltaChunk {
    DeltaStep step;  // its inputs, and y, have a row for each token
    std::size_t tokens, start;

    std::size_t repeat() const { return step.value_heads / step.key_heads; }
    // Whole vectors, and whole tiles, of every instruction set.
    static constexpr std::size_t padded(std::size_t count) { return (count + 15) / 16 * 16; }
    // A worker's floats, in memory aligned to 64 bytes: the states of `heads` value heads, then
    // what a block needs (Desk in chunk_delta_rows.h).
    std::size_t scratch(std::size_t heads) const {
        const std::size_t keys = padded(step.key_dim), values = padded(step.value_dim);
        return heads * keys * values + kDeltaBlock * (3 * keys + 2 * values + 6 * kDeltaBlock + 8);
    }
};

// The part that depends on the instruction set, under the rule of RowKernels in dispatch.h.
struct DeltaChunkKernels {
    // Value heads [begin, end) of key head `group`, counted from its first. The first of them also
    // writes the new conv state of the key head's queries and keys.
    void (*heads)(const DeltaChunk& chunk, std::size_t group, std::size_t begin, std::size_t end,
                  float* scratch);
};

extern const DeltaChunkKernels delta_generic;
extern const DeltaChunkKernels delta_avx2, delta_avx512;  // x86-64 builds only

void gated_delta(const InstructionSet& set, const DeltaChunk& chunk, int threads);

}  // namespace flashmoe
